"""A day of a big cloud's manager in minutes: nodes join, VMs are made, come and go, connections break, it is killed."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from scloud.sim.cloud import VPC_SIZE, Cloud, cpu_seconds, percentile, resident_mib, vm
from scloud.sim.pipelined import Connection

T = TypeVar("T")
WORKERS = 16
"""Clients that ask at the same time."""
IDLE_S = 10
"""How long the manager is watched while nobody asks for anything."""
LIST_EVERY_S = 0.2
PATIENCE_S = 60.0
"""After which what a manager that was killed says of VMs has to be true."""
AWAY_S = (0.5, 5.0)
"""How long a node whose connection broke is away: shortest and longest."""


@dataclass
class Figures:
    """`lost` are VMs that the API calls running and no node runs; `stray` those that run where the API does not say."""

    nodes: int = 0
    vms: int = 0
    seed: int = 0
    join_s: float = 0.0
    idle_cpu: float = 0.0
    """Of one processor, while nodes send nothing but heartbeats, before there are VMs."""
    idle_mib: float = 0.0
    vms_a_second: float = 0.0
    """From the first POST to the last `running`."""
    manager_ms_a_vm: float = 0.0
    loaded_cpu: float = 0.0
    loaded_mib: float = 0.0
    list_ms: tuple[float, float] = (0.0, 0.0)
    """Median and 99th percentile of listing 100 VMs while others are made."""
    churn: Counter[str] = field(default_factory=Counter)
    churn_list_ms: tuple[float, float] = (0.0, 0.0)
    restart_s: float = 0.0
    """The manager killed with -9 and started again: until it has every node."""
    agreed_s: float = 0.0
    """From then on: until what it says is what runs. Nodes that are back still have to say what they run."""
    lost: int = 0
    stray: int = 0
    failed: list[str] = field(default_factory=list)
    """What went wrong with operations that should have worked."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Watcher:
    """Whom a run tells how it goes: a phase begins with how much there is to do, and gets on."""

    begin: Callable[[str, int], None] = lambda title, total: None
    done: Callable[[int], None] = lambda count: None


class Scale:
    """One run; `run` returns what was measured."""

    def __init__(self, nodes: int, vms: int, churn_s: float, seed: int, watcher: Watcher, idle_s: int = IDLE_S) -> None:
        self._churn_s = churn_s
        self._idle_s = idle_s
        self._watcher = watcher
        self._dice = random.Random(seed)
        self._cloud = Cloud(nodes, thin=True)
        self._names: list[str] = []
        """Of VMs that are there and that nobody is changing."""
        self.figures = Figures(nodes=nodes, vms=vms, seed=seed)

    async def run(self) -> Figures:
        figures, cloud = self.figures, self._cloud
        async with cloud:
            self._watcher.begin("nodes join", figures.nodes)
            began = time.perf_counter()
            await cloud.join(self._watcher.done)
            figures.join_s = time.perf_counter() - began
            await cloud.image()
            figures.idle_cpu, figures.idle_mib = await self._idle()
            await self._fill()
            figures.loaded_cpu, figures.loaded_mib = await self._idle()
            await self._churn()
            await self._restart()
            await self._agree()
        return figures

    async def _idle(self) -> tuple[float, float]:
        """(share of a processor, MiB) of the manager while nobody asks for anything."""
        self._watcher.begin("nothing but heartbeats", self._idle_s)
        began, spent = time.perf_counter(), cpu_seconds(self._cloud.manager.pid)
        for second in range(self._idle_s):
            await asyncio.sleep(1)
            self._watcher.done(second + 1)
        used = cpu_seconds(self._cloud.manager.pid) - spent
        return used / (time.perf_counter() - began), resident_mib(self._cloud.manager.pid)

    async def _fill(self) -> None:
        figures, cloud = self.figures, self._cloud
        vpcs = -(-figures.vms // VPC_SIZE)
        self._watcher.begin("networks", vpcs)
        made = 0

        async def network(number: int, connection: Connection) -> None:
            nonlocal made
            await cloud.vpc(number, connection)
            made += 1
            self._watcher.done(made)

        await self._together(iter(range(vpcs)), network)
        self._watcher.begin("VMs", figures.vms)
        spent, began = cpu_seconds(cloud.manager.pid), time.perf_counter()
        operations: list[str] = []

        async def create(number: int, connection: Connection) -> None:
            name, vpc = f"vm-{number}", number // VPC_SIZE
            operations.append((await connection.json("POST", "/vms", vm(name, vpc)))["operation"]["id"])
            self._names.append(name)
            self._watcher.done(len(operations))

        lists = await self._listing(self._together(iter(range(figures.vms)), create))
        await self._together(iter(operations), self._ended)
        seconds = time.perf_counter() - began
        figures.vms_a_second = figures.vms / seconds
        figures.manager_ms_a_vm = 1e3 * (cpu_seconds(cloud.manager.pid) - spent) / figures.vms
        figures.list_ms = _milliseconds(lists)

    async def _ended(self, operation: str, connection: Connection) -> None:
        try:
            await self._cloud.ended(operation, connection)
        except RuntimeError as error:
            self.figures.failed.append(str(error))

    async def _together(self, things: Iterator[T], do: Callable[[T, Connection], Awaitable[None]]) -> None:
        """Each thing by one of the clients."""

        async def work() -> None:
            connection = self._cloud.connection()
            for thing in things:
                await do(thing, connection)

        await asyncio.gather(*(work() for _ in range(WORKERS)))

    async def _listing(self, work: Awaitable[None]) -> list[float]:
        """Seconds of each list that was asked for while the work was done."""
        lists: list[float] = []

        async def watch() -> None:
            connection = self._cloud.connection()
            while True:
                began = time.perf_counter()
                await connection.json("GET", "/vms?limit=100")
                lists.append(time.perf_counter() - began)
                await asyncio.sleep(LIST_EVERY_S)

        watching = asyncio.create_task(watch())
        try:
            await work
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        return lists

    async def _churn(self) -> None:
        """VMs are made, deleted, stopped, started; every second a node's connection breaks."""
        self._watcher.begin("churn", int(self._churn_s))
        began = time.perf_counter()
        loop_end = began + self._churn_s
        numbers = iter(range(self.figures.vms, 1 << 60))

        def still() -> Iterator[int]:
            while time.perf_counter() < loop_end:
                self._watcher.done(int(time.perf_counter() - began))
                yield next(numbers)

        async def crashes() -> None:
            while time.perf_counter() < loop_end:
                number, away = self._dice.randrange(self.figures.nodes), self._dice.uniform(*AWAY_S)
                self._cloud.order(f"crash {number} {away:.1f}")
                self.figures.churn["connections broken"] += 1
                await asyncio.sleep(1)

        async def both() -> None:
            await asyncio.gather(self._together(still(), self._change), crashes())

        self.figures.churn_list_ms = _milliseconds(await self._listing(both()))

    async def _change(self, number: int, connection: Connection) -> None:
        kind = self._dice.choice(("create", "delete", "stop and start")) if self._names else "create"
        if kind == "create":
            name = f"vm-{number}"
            vpc = self._dice.randrange(-(-self.figures.vms // VPC_SIZE))
            await self._ask("POST", "/vms", vm(name, vpc), connection)
        else:
            name = self._take_any()
            if kind == "delete":
                await self._ask("DELETE", f"/vms/{name}", None, connection)
            else:
                for action in ("stop", "start"):
                    await self._ask("POST", f"/vms/{name}/actions/{action}", {}, connection)
        if kind != "delete":
            self._names.append(name)
        self.figures.churn[kind] += 1

    async def _ask(self, method: str, path: str, body: Any, connection: Connection) -> None:
        answer = await connection.json(method, path, body)
        await self._ended(answer["operation"]["id"], connection)

    def _take_any(self) -> str:
        number = self._dice.randrange(len(self._names))
        self._names[number], self._names[-1] = self._names[-1], self._names[number]
        return self._names.pop()

    async def _restart(self) -> None:
        self._watcher.begin("the manager is killed", self.figures.nodes)
        self._cloud.kill_manager()
        began = time.perf_counter()
        await self._cloud.start_manager()
        await self._cloud.ready(self._watcher.done)
        self.figures.restart_s = time.perf_counter() - began

    async def _agree(self) -> None:
        figures, began = self.figures, time.perf_counter()
        while True:
            figures.lost, figures.stray = await self._compare()
            figures.agreed_s = time.perf_counter() - began
            if not (figures.lost or figures.stray) or figures.agreed_s > PATIENCE_S:
                return

    async def _compare(self) -> tuple[int, int]:
        """(VMs that are said to run and do not, VMs that run where they are not said to be)."""
        said: dict[str, str] = {}
        cursor, seen = "", 0
        self._watcher.begin("comparing", len(self._names))
        while cursor is not None:
            page = await self._cloud.api.json("GET", f"/vms?limit=1000{cursor and '&cursor=' + cursor}")
            said |= {row["id"]: row["status"]["node"] for row in page["items"] if row["status"]["state"] == "running"}
            cursor, seen = page["next"], seen + len(page["items"])
            self._watcher.done(seen)
        path = self._cloud.root / "running.json"
        path.unlink(missing_ok=True)
        self._cloud.order(f"running {path}")
        while not path.exists():
            await asyncio.sleep(0.1)
        runs: dict[str, list[str]] = json.loads(path.read_text())
        truth = {(vm_, node) for node, vms in runs.items() for vm_ in vms}
        return len(set(said.items()) - truth), len(truth - set(said.items()))


def _milliseconds(seconds: list[float]) -> tuple[float, float]:
    """(median, 99th percentile) in milliseconds."""
    return (1e3 * statistics.median(seconds), 1e3 * percentile(seconds, 0.99)) if seconds else (0.0, 0.0)
