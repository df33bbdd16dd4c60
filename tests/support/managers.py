"""Two managers, each a process of its own, on one real PostgreSQL; nodes are real agents on fake drivers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

from support.proxy import Wire

LIMIT_S = 90.0
START_S = 60.0
"""Processes start slowly on a machine that is busy, and nothing is measured meanwhile."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def until(true: Callable[[], Any], what: str, seconds: float = LIMIT_S) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - began


class ManagerProcess:
    """One manager. The ways to its database, and to its link from nodes and from the other manager, are wires that can
    be cut."""

    def __init__(self, root: Path, database: str) -> None:
        self.root = root
        self.api, self.link = free_port(), free_port()
        server = urlsplit(database)
        self.to_database = Wire(str(server.hostname), int(server.port or 0))
        self.from_nodes, self.from_manager = (Wire("127.0.0.1", self.link) for _ in range(2))
        place = server.netloc.rpartition("@")[0]
        self._database = urlunsplit(server._replace(netloc=f"{place}@{self.to_database.address}"))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        addresses = ("--api", f"127.0.0.1:{self.api}", "--link", f"127.0.0.1:{self.link}")
        addresses = (*addresses, "--advertise", self.from_manager.address)
        (self.root / "url").write_text(self._database)
        database = ("--database", f"@{self.root / 'url'}")
        argv = (sys.executable, "-m", "scloud.manager", "--root", str(self.root), *addresses, *database)
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(argv, stderr=log)

    def role(self) -> str | None:
        return str(said["role"]) if (said := self._says()) else None

    def epoch(self) -> int | None:
        """In which it leads."""
        return int(said["epoch"]) if (said := self._says()) else None

    def _says(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.root / "ready").read_text()))
        except (OSError, ValueError):
            return {}

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self) -> int:
        """Its exit status, when it has ended by itself."""
        assert self.process is not None
        return self.process.wait(30)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for wire in (self.to_database, self.from_nodes, self.from_manager):
            wire.close()


class Pair:
    """Two managers and two nodes."""

    def __init__(self, folder: Path, database: str) -> None:
        self.one, self.other = (ManagerProcess(folder / name, database) for name in ("m1", "m2"))
        self._folder = folder
        self.nodes: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.one.start()
        until(lambda: self.one.role() == "leader", "the first leads", START_S)
        self._led_since = time.monotonic()
        self.token = (self.one.root / "admin.token").read_text().strip()
        self.other.start()
        until(lambda: self.other.role() == "standby", "the second stands by", START_S)
        tokens = [self.post("/nodes", {"name": f"n{number}"})["join"]["token"] for number in (1, 2)]
        argv = [sys.executable, "-m", "scloud.sim.nodes"]
        for manager in (self.one, self.other):
            argv += ["--manager", manager.from_nodes.address]
        with (self._folder / "nodes.log").open("a") as log:
            self.nodes = subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=log, text=True)
        assert self.nodes.stdin is not None
        self.nodes.stdin.write("\n".join(tokens) + "\n\n")
        self.nodes.stdin.close()
        until(lambda: self.get("/status")["nodes"].get("ready") == 2, "both nodes are ready", START_S)

    def led_s(self) -> float:
        """How long the first has led."""
        return time.monotonic() - self._led_since

    def stop(self) -> None:
        if self.nodes is not None and self.nodes.poll() is None:
            self.nodes.kill()
            self.nodes.wait()
        for manager in (self.one, self.other):
            manager.close()

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        via: ManagerProcess | None = None,
        patience_s: float = 20.0,
    ) -> httpx.Response:
        url = f"http://127.0.0.1:{(via or self.one).api}/api/v1{path}"
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.request(method, url, json=body, headers=headers, timeout=patience_s, trust_env=False)

    def get(self, path: str, via: ManagerProcess | None = None) -> Any:
        return self.request("GET", path, via=via).raise_for_status().json()

    def post(self, path: str, body: Any, via: ManagerProcess | None = None) -> Any:
        return self.request("POST", path, body, via).raise_for_status().json()

    def answers(self, via: ManagerProcess) -> bool:
        return self.says(via) == 200

    def says(self, via: ManagerProcess) -> int | None:
        """The status of a read; None without an answer."""
        try:
            return self.request("GET", "/vms", via=via, patience_s=2.0).status_code
        except httpx.TransportError:
            return None

    def vms(self, via: ManagerProcess) -> list[Any]:
        return list(self.get("/vms", via)["items"])

    def runs(self, name: str, via: ManagerProcess) -> bool:
        return bool(self.get(f"/vms/{name}", via)["status"]["state"] == "running")

    def make_vm(self, name: str, via: ManagerProcess) -> str:
        """Its operation's id."""
        spec = {"image": "micro", "cpus": 1, "memory_mib": 64, "nics": [{"subnet": "s"}]}
        return str(self.post("/vms", {"name": name, "spec": spec}, via)["operation"]["id"])

    def furnish(self) -> None:
        """An image and a network; asked of the standby, which passes it on."""
        file = self._folder / "image.raw"
        with file.open("wb") as stream:
            stream.write(b"scloud" * 1000)
            stream.truncate(64 << 20)  # what simulated nodes say that every image has
        via = self.other
        made = self.post("/images", {"name": "micro", "spec": {"source": f"file://{file}", "format": "raw"}}, via)
        assert self.get(f"/operations/{made['operation']['id']}?wait=20", via)["state"] == "done"
        self.post("/vpcs", {"name": "v"}, via)
        self.post("/subnets", {"name": "s", "spec": {"vpc": "v", "cidr": "10.0.0.0/24"}}, via)
