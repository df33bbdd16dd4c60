"""The control plane alone: a real manager (SQLite, synchronous=FULL), simulated nodes over the real TLS link.

    .venv/bin/python bench/control_plane.py [--nodes 500] [--vms 5000] [--runs 3]

Prints VMs a second from POST to `running`, one VM alone, a 100-row list with details during the burst, small GETs a
second, and the manager's memory. The simulated nodes (the real agent on fake drivers), the manager and this client
share the machine. VMs are spread over VPCs of 10, as small tenants have.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipelined import Connection

VPC_SIZE = 10
WORKERS = 16


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


class Cloud:
    """A manager and its simulated nodes, in a folder of their own."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self.root = Path(tempfile.mkdtemp(prefix="scloud-bench-"))
        self.processes: list[subprocess.Popen[str]] = []

    def _spawn(self, name: str, *argv: str, stdin: str | None = None) -> subprocess.Popen[str]:
        """A Python module of the product in a process of its own, its log in our folder."""
        log = (self.root / f"{name}.log").open("w")
        pipe = subprocess.PIPE if stdin is not None else subprocess.DEVNULL
        process = subprocess.Popen([sys.executable, "-m", *argv], stdin=pipe, stderr=log, text=True)
        self.processes.append(process)
        if process.stdin is not None and stdin is not None:
            process.stdin.write(stdin)
            process.stdin.close()
        return process

    async def __aenter__(self) -> Cloud:
        root = str(self.root / "m")
        addresses = ("--api", "127.0.0.1:0", "--link", "127.0.0.1:17991")
        self.manager = self._spawn("manager", "scloud.manager", "--root", root, *addresses)
        ready = self.root / "m" / "ready"
        while not ready.exists():
            await asyncio.sleep(0.05)
            if self.manager.poll() is not None:
                raise SystemExit((self.root / "manager.log").read_text())
        told = json.loads(ready.read_text())
        self.port = int(told["api"].rpartition(":")[2])
        self.token = (self.root / "m" / "admin.token").read_text().strip()
        self.api = self.connection()
        await self._start_nodes(told["link"])
        return self

    async def _start_nodes(self, link: str) -> None:
        tokens = []
        for number in range(self.nodes):
            answer = await self.api.json("POST", "/nodes", {"name": f"sim-{number}"})
            tokens.append(answer["join"]["token"])
        self.simulated = nodes = self._spawn("nodes", "scloud.sim.nodes", "--manager", link, stdin="\n".join(tokens))
        while (await self.api.json("GET", "/status"))["nodes"].get("ready", 0) < self.nodes:
            await asyncio.sleep(0.2)
            if nodes.poll() is not None:
                raise SystemExit((self.root / "nodes.log").read_text()[-2000:])

    async def __aexit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            process.terminate()
            process.wait(30)
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
        while True:
            found: dict[str, Any] = await (connection or self.api).json("GET", f"/operations/{operation}?wait=30")
            if found["state"] not in ("queued", "running"):
                if found["state"] != "done":
                    raise RuntimeError(found["message"])
                return found

    async def vpc(self, number: int) -> None:
        await self.api.json("POST", "/vpcs", {"name": f"v{number}"})
        spec = {"vpc": f"v{number}", "cidr": "10.0.0.0/24"}
        await self.api.json("POST", "/subnets", {"name": f"s{number}", "spec": spec})


def vm(name: str, vpc: int) -> dict[str, Any]:
    spec = {"image": "micro", "cpus": 1, "memory_mib": 64, "nics": [{"subnet": f"s{vpc}"}]}
    return {"name": name, "spec": spec}


async def burst(cloud: Cloud, vms: int) -> tuple[float, list[float]]:
    """(VMs a second from the first POST to the last `running`, seconds of each list during it)."""
    numbers = iter(range(vms))
    lists: list[float] = []
    done = False

    async def post() -> list[str]:
        connection, operations = cloud.connection(), []
        for number in numbers:
            answer = await connection.json("POST", "/vms", vm(f"vm-{number}", number // VPC_SIZE))
            operations.append(answer["operation"]["id"])
        for operation in operations:
            await cloud.ended(operation, connection)
        return operations

    async def watch() -> None:
        connection = cloud.connection()
        while not done:
            begun = time.perf_counter()
            await connection.json("GET", "/vms?limit=100")
            lists.append(time.perf_counter() - begun)
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    begun = time.perf_counter()
    await asyncio.gather(*(post() for _ in range(WORKERS)))
    seconds = time.perf_counter() - begun
    done = True
    await watching
    return vms / seconds, lists


async def alone(cloud: Cloud, run: int, times: int = 20) -> list[float]:
    """Seconds from POST to `running`, one VM after another, nothing else going on."""
    result = []
    await cloud.vpc(100_000 + run)
    for number in range(times):
        begun = time.perf_counter()
        answer = await cloud.api.json("POST", "/vms", vm(f"alone-{run}-{number}", 100_000 + run))
        await cloud.ended(answer["operation"]["id"])
        result.append(time.perf_counter() - begun)
    return result


async def gets(cloud: Cloud, seconds: float = 4.0) -> float:
    """GETs of one VM a second, 16 at a time."""
    until = time.perf_counter() + seconds

    async def ask() -> int:
        connection, count = cloud.connection(), 0
        while time.perf_counter() < until:
            await connection.request("GET", "/vms/vm-7")
            count += 1
        return count

    return sum(await asyncio.gather(*(ask() for _ in range(16)))) / seconds


async def measure(nodes: int, vms: int, run: int) -> dict[str, float]:
    async with Cloud(nodes) as cloud:
        await cloud.image()
        for number in range(-(-vms // VPC_SIZE)):
            await cloud.vpc(number)
        single = await alone(cloud, run)
        before = [cpu_seconds(pid) for pid in (cloud.manager.pid, cloud.simulated.pid, os.getpid())]
        rate, lists = await burst(cloud, vms)
        after = [cpu_seconds(pid) for pid in (cloud.manager.pid, cloud.simulated.pid, os.getpid())]
        cpu = [1e3 * (late - early) / vms for early, late in zip(before, after, strict=True)]
        return {
            "VMs a second, POST to running": rate,
            "CPU ms a VM, manager": cpu[0],
            "CPU ms a VM, simulated nodes": cpu[1],
            "CPU ms a VM, this client": cpu[2],
            "one VM alone, ms": 1e3 * statistics.median(single),
            "list of 100 in the burst, median ms": 1e3 * statistics.median(lists),
            "list of 100 in the burst, p99 ms": 1e3 * percentile(lists, 0.99),
            "GETs a second": await gets(cloud),
            f"manager memory at {vms + len(single)} VMs, MiB": resident_mib(cloud.manager.pid),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--vms", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    runs = [asyncio.run(measure(options.nodes, options.vms, run)) for run in range(options.runs)]
    print(f"{options.nodes} nodes, {options.vms} VMs, {options.runs} runs: median (min - max)")
    for name in runs[0]:
        values = [run[name] for run in runs]
        print(f"{name:44} {statistics.median(values):9.1f}  ({min(values):.1f} - {max(values):.1f})")


if __name__ == "__main__":
    main()
