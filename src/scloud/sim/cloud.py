"""A real manager in a folder of its own, and simulated nodes that join it over the link."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scloud.sim.pipelined import Connection

VPC_SIZE = 10
"""VMs in a VPC: many small tenants."""
JOINING = 16
"""Nodes that are told of at the same time."""
LOOK_S = 0.5
"""How often it is asked how many nodes are there: counting is work, too."""


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def vm(name: str, vpc: int) -> dict[str, Any]:
    """What is posted to make a small VM in the VPC of that number."""
    spec = {"image": "micro", "cpus": 1, "memory_mib": 64, "nics": [{"subnet": f"s{vpc}"}]}
    return {"name": name, "spec": spec}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Cloud:
    """A manager and its simulated nodes; `thin` ones are nothing but the link. All is gone at the end."""

    def __init__(self, nodes: int, *, thin: bool = False) -> None:
        self.nodes = nodes
        self._thin = thin
        self.root = Path(tempfile.mkdtemp(prefix="scloud-sim-"))
        self.processes: list[subprocess.Popen[str]] = []
        self.port, self._link = _free_port(), f"127.0.0.1:{_free_port()}"

    def _spawn(self, name: str, *argv: str, pipe: bool = False) -> subprocess.Popen[str]:
        """A Python module of the product in a process of its own, its log in our folder."""
        with (self.root / f"{name}.log").open("a") as log:
            stdin = subprocess.PIPE if pipe else subprocess.DEVNULL
            process = subprocess.Popen([sys.executable, "-m", *argv], stdin=stdin, stderr=log, text=True)
        self.processes.append(process)
        return process

    async def __aenter__(self) -> Cloud:
        try:
            await self.start_manager()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def start_manager(self) -> None:
        """Start it (again, where it was); returns when it answers."""
        ready = self.root / "m" / "ready"
        ready.unlink(missing_ok=True)
        addresses = ("--api", f"127.0.0.1:{self.port}", "--link", self._link)
        self.manager = self._spawn("manager", "scloud.manager", "--root", str(self.root / "m"), *addresses)
        while not ready.exists():
            await asyncio.sleep(0.05)
            self._check(self.manager, "manager")
        self.token = (self.root / "m" / "admin.token").read_text().strip()
        self.api = self.connection()

    def kill_manager(self) -> None:
        self.manager.kill()
        self.manager.wait()

    async def join(self, told: Callable[[int], None] = lambda ready: None) -> None:
        """Let all nodes join; `told` hears now and then how many are ready."""
        numbers, tokens = iter(range(self.nodes)), dict[int, str]()

        async def announce() -> None:
            connection = self.connection()
            for number in numbers:
                answer = await connection.json("POST", "/nodes", {"name": f"sim-{number}"})
                tokens[number] = answer["join"]["token"]

        await asyncio.gather(*(announce() for _ in range(JOINING)))
        argv = ("scloud.sim.nodes", "--manager", self._link, *(["--thin"] if self._thin else []))
        self.simulated = self._spawn("nodes", *argv, pipe=True)
        self.order("\n".join(tokens[number] for number in sorted(tokens)) + "\n")
        await self.ready(told)

    async def ready(self, told: Callable[[int], None] = lambda ready: None) -> None:
        """Return once all nodes are, and the manager hears them."""
        while (count := await self._ready()) < self.nodes:
            told(count)
            await asyncio.sleep(LOOK_S)
            self._check(self.simulated, "nodes")
        told(self.nodes)

    async def _ready(self) -> int:
        found = await self.api.json("GET", "/status")
        return int(min(found["nodes"].get("ready", 0), found["connected"]))

    def order(self, line: str) -> None:
        """Tell the nodes' process something."""
        assert self.simulated.stdin is not None
        self.simulated.stdin.write(line + "\n")
        self.simulated.stdin.flush()

    def _check(self, process: subprocess.Popen[str], name: str) -> None:
        if process.poll() is not None:
            raise SystemExit(f"the {name} ended:\n" + (self.root / f"{name}.log").read_text()[-2000:])

    async def __aexit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.root)

    def connection(self) -> Connection:
        return Connection("127.0.0.1", self.port, self.token)

    async def image(self) -> None:
        path = self.root / "image.raw"
        with path.open("wb") as file:
            file.truncate(64 * 1024 * 1024)
        answer = await self.api.json(
            "POST", "/images", {"name": "micro", "spec": {"source": f"file://{path}", "format": "raw"}}
        )
        await self.ended(answer["operation"]["id"])

    async def ended(self, operation: str, connection: Connection | None = None) -> dict[str, Any]:
        """The operation when it has ended; RuntimeError if it failed."""
        while True:
            found: dict[str, Any] = await (connection or self.api).json("GET", f"/operations/{operation}?wait=30")
            if found["state"] not in ("queued", "running"):
                if found["state"] != "done":
                    raise RuntimeError(found["message"])
                return found

    async def vpc(self, number: int, connection: Connection | None = None) -> None:
        api = connection or self.api
        await api.json("POST", "/vpcs", {"name": f"v{number}"})
        spec = {"vpc": f"v{number}", "cidr": "10.0.0.0/24"}
        await api.json("POST", "/subnets", {"name": f"s{number}", "spec": spec})
