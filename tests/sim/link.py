"""The network between a node and the manager, as TCP has it.

Over `link.memory`'s channels this adds what a connection does when hosts and wires fail: bytes are never lost from its
middle, so what is sent into a partition comes after it, or the connection dies; a peer that is gone answers with a
reset; and what a process has sent arrives although it has died since.
"""

from __future__ import annotations

import asyncio
from typing import Any

from scloud.link.channel import Channel
from scloud.link.memory import Conditions, MemoryChannel, MemoryListener, _Pipe
from scloud.link.pki import MANAGER_NAME
from scloud.model.base import Value

from .loop import WORLD, Life, SimLoop

UNACKED_S = 15.0
"""TCP_USER_TIMEOUT of the real link."""


class Wire(Conditions):
    """One node's way to the manager. `dropping` is a partition; set it by `part` and `heal`."""

    def __init__(self, loop: SimLoop, **more: Any) -> None:
        super().__init__(**more)
        self.loop = loop
        self.channels: set[SimChannel] = set()
        self.numbers = 0

    def part(self) -> None:
        self.dropping = True

    def heal(self) -> None:
        self.dropping = False
        for channel in sorted(self.channels, key=lambda item: item.number):
            channel.wire_healed()

    def cut(self) -> None:
        """Break every connection that is open."""
        for channel in sorted(self.channels, key=lambda item: item.number):
            channel.cut()
        self.channels.clear()


class SimChannel(MemoryChannel):
    """One end. `other` is the far end."""

    other: SimChannel

    def __init__(self, peer: str, wire: Wire, incoming: _Pipe, outgoing: _Pipe) -> None:
        super().__init__(peer, wire, incoming, outgoing)
        self._wire = wire
        wire.numbers += 1
        self.number = wire.numbers
        self._held: list[Value | bytes | None] = []
        self._unacked: asyncio.TimerHandle | None = None
        self.gone = False
        """Its process has let go of it."""
        wire.channels.add(self)

    def __hash__(self) -> int:
        return self.number

    async def close(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Hang up, or be hung up by the kernel because the process died."""
        if self.gone:
            return
        self.gone = True
        if not self._out.ended:
            self._deliver(self._out, None)
        self._end(self._in)
        self._forget()

    def vanish(self) -> None:
        """The host is gone: nothing is said to anybody."""
        self.gone = True
        self._in.arrived.clear()
        self._end(self._in)
        self._held.clear()
        self._forget()

    def cut(self) -> None:
        super().cut()
        for end in (self, self.other):
            end._held.clear()
            end._forget()

    def _forget(self) -> None:
        if not self._held:
            self._wire.channels.discard(self)
            if self._unacked is not None:
                self._unacked.cancel()

    def _put(self, item: Value | bytes) -> None:
        if self._in.ended or self._out.ended:
            raise ConnectionError("the link is closed")
        if not self._wire.dropping:
            if self.other.gone and not self._held:
                self.cut()
                raise ConnectionResetError("the other end is gone")
            if self._wire.breaks():
                self.cut()
                raise ConnectionError("the link broke")
        self._deliver(self._out, item)

    def _deliver(self, pipe: _Pipe, item: Value | bytes | None) -> None:
        loop = self._wire.loop
        if self._wire.dropping:
            self._held.append(item)
            if self._unacked is None or self._unacked.cancelled():
                self._unacked = loop.call_later(UNACKED_S, self._gave_up, context=WORLD)
            return
        arrival = max(loop.time() + self._wire.delay(), pipe.last_arrival)
        pipe.last_arrival = arrival
        if arrival <= loop.time():
            self._arrive(pipe, item)
        else:
            loop.call_at(arrival, self._arrive, pipe, item, context=WORLD)

    def _gave_up(self) -> None:
        """Nothing was acknowledged for too long: this end is broken, the other hears nothing of it."""
        self._unacked = None
        if self._held:
            self._held.clear()
            self.gone = True
            self._in.arrived.clear()
            self._end(self._in)
            self._forget()

    def wire_healed(self) -> None:
        if self._unacked is not None:
            self._unacked.cancel()
            self._unacked = None
        held, self._held = self._held, []
        if held and self.other.gone and any(item is not None for item in held):
            self.cut()
            return
        for item in held:
            self._deliver(self._out, item)
        if self.gone:
            self._forget()


class SimListener(MemoryListener):
    """Where the manager listens while it lives."""

    def __init__(self, loop: SimLoop) -> None:
        super().__init__()
        self._loop = loop
        self._life: Life | None = None
        self._ends: list[SimChannel] = []

    def open(self, life: Life, handler: Any) -> None:
        self._life, self.handler = life, handler

    def manager_died(self) -> None:
        """The kernel closes what the process had open."""
        self._life = self.handler = None
        ends, self._ends = self._ends, []
        for end in ends:
            end.drop()

    async def connect(self, client: str, wire: Wire) -> SimChannel:
        """As `dial`; the handler runs in the manager's life."""
        await asyncio.sleep(wire.delay())
        if self.handler is None or self._life is None or wire.dropping or not wire.reachable:
            raise ConnectionRefusedError("the manager cannot be reached")
        up, down = _Pipe(), _Pipe()
        mine, other = SimChannel(MANAGER_NAME, wire, down, up), SimChannel(client, wire, up, down)
        mine.other, other.other = other, mine
        self._ends = [end for end in self._ends if not end.gone]
        self._ends.append(other)
        self._life.spawn(self._serve(self.handler, other))
        return mine

    async def dial(self, client: str, conditions: Conditions | None = None) -> Channel:
        assert isinstance(conditions, Wire)
        return await self.connect(client, conditions)
