"""A supervisor of processes that exist only in memory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from scloud.drivers.supervisor.protocol import ProcessFacts, ProcessSpec
from scloud.model.errors import CloudError, ErrorKind


@dataclass
class _Process:
    spec: ProcessSpec
    pid: int
    restarts: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class FakeHost:
    """What outlives a supervisor: give the same host to its successor, and it finds the processes again."""

    processes: dict[str, _Process] = field(default_factory=dict)
    next_pid: int = 100


class FakeSupervisor:
    """`broken` names processes that end as soon as they are started; `start_s` is how long a start takes."""

    def __init__(self, host: FakeHost | None = None, start_s: float = 0.0) -> None:
        self.host = host or FakeHost()
        self.broken: set[str] = set()
        self.start_s = start_s

    async def ensure(self, spec: ProcessSpec) -> bool:
        known = self.host.processes.get(spec.name)
        if known is not None and not known.ended.is_set():
            if (known.spec.argv, known.spec.env, known.spec.netns) == (spec.argv, spec.env, spec.netns):
                return False
            known.ended.set()
            restarts = 0
        else:
            restarts = known.restarts + 1 if known is not None else 0
        self.host.next_pid += 1
        fresh = _Process(spec, self.host.next_pid, restarts)
        self.host.processes[spec.name] = fresh
        if spec.name in self.broken:
            fresh.ended.set()
            raise CloudError(ErrorKind.ENGINE, f"{spec.name} ended at once; its log {spec.name}.log ends: (empty)")
        await asyncio.sleep(self.start_s)
        return True

    async def stop(self, name: str, grace_s: float = 5.0) -> None:
        known = self.host.processes.pop(name, None)
        if known is not None:
            known.ended.set()

    async def died(self, name: str) -> None:
        known = self.host.processes.get(name)
        if known is not None:
            await known.ended.wait()

    async def processes(self) -> list[ProcessFacts]:
        return [
            ProcessFacts(
                name=name,
                pid=None if process.ended.is_set() else process.pid,
                running=not process.ended.is_set(),
                restarts=process.restarts,
            )
            for name, process in sorted(self.host.processes.items())
        ]

    def kill(self, name: str) -> None:
        """The process dies by itself."""
        self.host.processes[name].ended.set()
