"""Live migration between the simulation's nodes: the way between two agents, and what libvirtd makes of it.

A migration is libvirtd's: it goes on, or breaks off, whether or not an agent is there to hear of it. It breaks off with
either agent, whose sockets its bytes go through.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scloud.agent.passages import Connections, Way, nobody, nothing
from scloud.drivers.hypervisor.fake import FakeDomain
from scloud.drivers.hypervisor.protocol import DomainEvent, DomainSpec, MoveOptions, MoveRoute
from scloud.model.errors import CloudError, ErrorKind

if TYPE_CHECKING:
    from .processes import AgentProcess
    from .world import World

LOST_ANSWER = 0.2
"""How often the target's last answer gets lost."""


class Road:
    """One agent's passages."""

    def __init__(self, world: World, node: AgentProcess) -> None:
        self._world = world
        self._node = node
        self._life = node.life
        self.expected: dict[str, tuple[str, DomainSpec]] = {}
        self.released: Callable[[str], Awaitable[None]] = nobody
        self.brought: Callable[[str, Connections], Awaitable[None]] = nothing
        node.road = self

    async def expect(self, vm: str, source: str, spec: DomainSpec) -> str:
        await asyncio.sleep(self._world.short())
        self.expected[vm] = (source, spec)
        return self._node.id

    async def forget(self, vm: str) -> None:
        self.expected.pop(vm, None)

    @asynccontextmanager
    async def route(self, vm: str, target: str, address: str) -> AsyncIterator[Way]:
        there = self._world.node(target)
        await asyncio.sleep(self._world.short())
        road = there.road if there.life is not None and not there.life.dead else None
        source, spec = road.expected.get(vm, ("", None)) if road is not None else ("", None)
        if road is None or spec is None or source != self._node.id or not self._reaches(there):
            raise CloudError(ErrorKind.CONFLICT, f"node {target}: {vm} is not expected here")

        async def release() -> None:
            await asyncio.sleep(self._world.short())
            if self._world.rng.random() < LOST_ANSWER or not self._reaches(there):
                raise ConnectionError("the way to the target is gone")
            if (life := there.life) is not None and there.road is road:
                life.spawn(road.released(vm))

        async def hand_on(connections: Connections) -> None:
            await asyncio.sleep(self._world.short())
            if not self._reaches(there):
                raise ConnectionError("the way to the target is gone")
            if (life := there.life) is not None and there.road is road:
                life.spawn(road.brought(vm, connections))

        sockets = MoveRoute(control=Path(self._node.id), memory=Path(target), disks=Path())
        yield Way(spec, sockets, release, hand_on)

    def _reaches(self, other: AgentProcess) -> bool:
        return not other.off and self._world.wires.joins(self._node.id, other.id)

    async def close(self) -> None:
        self.expected.clear()


class Migration:
    """One of libvirtd's. `run` belongs to no agent; its futures tell whoever asked: the source's copy will never run
    again, and nothing of it is left. Between the two its process closes its disks."""

    def __init__(self, world: World, vm: str, spec: DomainSpec, route: MoveRoute, options: MoveOptions) -> None:
        self._world = world
        self._vm = vm
        self._spec = spec
        self._options = options
        self._source, self._target = world.node(str(route.control)), world.node(str(route.memory))
        self._lives = (self._source.life, self._target.life)
        self.given_up: asyncio.Future[None] = world.loop.create_future()
        self.done: asyncio.Future[None] = world.loop.create_future()

    def _whole(self, here: FakeDomain, there: FakeDomain) -> bool:
        """Whether nothing has happened to the two domains, to the two agents or between them."""
        lives = (self._source.life, self._target.life)
        wired = self._world.wires.joins(self._source.id, self._target.id)
        road = self._target.road
        return (
            wired
            and road is not None
            and self._vm in road.expected
            and all(
                now is then and now is not None and not now.dead for now, then in zip(lives, self._lives, strict=True)
            )
            and self._source.hardware.host.domains.get(self._vm) is here
            and self._target.hardware.host.domains.get(self._vm) is there
            and here.running
            and there.running
        )

    async def run(self) -> None:
        source, target = self._source.hardware.host, self._target.hardware.host
        here = source.domains.get(self._vm)
        expected = self._target.road is not None and self._vm in self._target.road.expected
        if here is None or not here.running or self._vm in target.domains or self._target.off or not expected:
            return self._fail("it cannot begin")
        there = replace(here, spec=self._spec, paused=True, moving=True, pid=None)
        there.disks = {disk.disk: disk for disk in self._spec.disks}
        there.nics = {nic.nic: nic for nic in self._spec.nics}
        if not self._copy():
            return self._fail("there is no room for its disks")
        target.domains[self._vm] = there
        source.moves[self._vm] = cancelled = asyncio.Event()
        try:
            async with asyncio.timeout(self._world.rng.uniform(0.1, 4.0)):
                await cancelled.wait()
        except TimeoutError:
            pass
        if cancelled.is_set() or not self._whole(here, there):
            source.moves.pop(self._vm, None)
            self._drop(there)
            return self._fail("canceled by client" if cancelled.is_set() else "the connection broke off")
        here.paused = here.moving = True
        await asyncio.sleep(self._world.rng.uniform(0.0, 0.3))
        source.moves.pop(self._vm, None)
        if not self._whole(here, there):
            self._drop(there)
            self._let(here)
            return self._fail("the connection broke off")
        self._copy()
        target.last_pid += 1
        there.pid, there.moving, there.complete = target.last_pid, False, True
        await asyncio.sleep(self._world.rng.uniform(0.0, 0.1))
        if self._world.rng.random() < LOST_ANSWER or not self._whole(here, there):
            # Its answer is lost: libvirtd lets the source run again, unless it was itself away, and then it is held.
            if self._world.rng.random() < 0.7:
                self._let(here)
            return self._fail("the target's answer was lost")
        self.given_up.set_result(None)
        await asyncio.sleep(self._world.rng.uniform(0.0, 2.0))
        if source.domains.get(self._vm) is here:
            del source.domains[self._vm]
            source.publish(DomainEvent(kind="stopped", vm=self._vm))
        self.done.set_result(None)
        return None

    def _copy(self) -> bool:
        """The bytes of disks in the source's own storage. False if nobody has made room for them."""
        source, target = self._source.hardware.disk.volumes, self._target.hardware.disk.volumes
        for disk in self._options.copies:
            if disk not in source or disk not in target or source[disk].size_mib != target[disk].size_mib:
                return False
        target.update({disk: replace(source[disk], snapshots={}) for disk in self._options.copies})
        return True

    def _let(self, here: FakeDomain) -> None:
        if self._source.hardware.host.domains.get(self._vm) is here and here.running:
            here.paused = here.moving = False
            self._world.started(self._source, self._vm)

    def _drop(self, there: FakeDomain) -> None:
        host = self._target.hardware.host
        if host.domains.get(self._vm) is there and there.moving:
            del host.domains[self._vm]

    def _fail(self, words: str) -> None:
        self._world.note(f"{self._vm} does not move from {self._source.name} to {self._target.name}: {words}")
        for future in (self.given_up, self.done):
            future.set_exception(CloudError(ErrorKind.ENGINE, f"move {self._vm}: {words}"))
            future.exception()
