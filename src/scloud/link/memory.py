"""Channels inside one process, with delay and breakage injected: the link of tests and of the simulator.

Time is the running loop's, so a loop with virtual time makes whole clusters run in an instant, in the same order for
the same conditions. What is sent is encoded and decoded as on the wire unless `encode=False`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import TypeAdapter

from scloud.link import frames
from scloud.link.channel import Channel, Handler
from scloud.link.pki import MANAGER_NAME
from scloud.model.base import Value

T = TypeVar("T")
_HEADER = 4


@dataclass
class Conditions:
    """What a link between two ends suffers. All may be changed while it is in use.

    `delay` gives the seconds each message takes (order is kept all the same); `reachable` says whether a new
    connection can be made; `dropping` swallows everything sent, silently, as a partition does; `breaks`, asked before
    each message, cuts the connection when it answers True: that message and all still on the way are lost.
    """

    delay: Callable[[], float] = lambda: 0.0
    breaks: Callable[[], bool] = lambda: False
    reachable: bool = True
    dropping: bool = False
    encode: bool = True


@dataclass
class _Pipe:
    """One direction: what has arrived and waits to be read."""

    arrived: deque[Value | bytes] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    last_arrival: float = 0.0
    ended: bool = False


class MemoryChannel:
    """One end of a pair made by `memory_pair`."""

    def __init__(self, peer: str, conditions: Conditions, incoming: _Pipe, outgoing: _Pipe) -> None:
        self._peer = peer
        self._conditions = conditions
        self._in = incoming
        self._out = outgoing

    @property
    def peer(self) -> str:
        return self._peer

    async def send(self, message: Value) -> None:
        self._put(frames.encode(message)[_HEADER:] if self._conditions.encode else message)

    async def receive(self, adapter: TypeAdapter[T]) -> T:
        item = await self._get()
        if item is None:
            raise ConnectionError("the other end of the link has closed")
        if isinstance(item, bytes):
            return frames.decode(item, adapter)
        return adapter.validate_python(item)

    async def write(self, data: bytes) -> None:
        if data:
            self._put(bytes(data))

    async def read(self, limit: int = 65536) -> bytes:
        item = await self._get()
        if item is None:
            return b""
        if not isinstance(item, bytes):
            raise ConnectionError("a message came where raw bytes were agreed on")
        if len(item) > limit:
            self._in.arrived.appendleft(item[limit:])
            item = item[:limit]
        return item

    async def close(self) -> None:
        """What was sent before still arrives, unless the link is dropping everything."""
        if not self._out.ended and not self._conditions.dropping:
            self._deliver(self._out, None)
        self._end(self._in)

    def cut(self) -> None:
        """Break the connection for both ends at once, as a reset does."""
        for pipe in (self._in, self._out):
            pipe.arrived.clear()
            self._end(pipe)

    def _put(self, item: Value | bytes) -> None:
        if self._in.ended or self._out.ended:
            raise ConnectionError("the link is closed")
        if self._conditions.dropping:
            return
        if self._conditions.breaks():
            self.cut()
            raise ConnectionError("the link broke")
        self._deliver(self._out, item)

    def _deliver(self, pipe: _Pipe, item: Value | bytes | None) -> None:
        loop = asyncio.get_running_loop()
        delay = self._conditions.delay()
        arrival = max(loop.time() + delay, pipe.last_arrival)
        pipe.last_arrival = arrival
        if arrival <= loop.time():
            self._arrive(pipe, item)
        else:
            loop.call_at(arrival, self._arrive, pipe, item)

    def _arrive(self, pipe: _Pipe, item: Value | bytes | None) -> None:
        if pipe.ended:
            return
        if item is None:
            self._end(pipe)
        else:
            pipe.arrived.append(item)
            pipe.wake.set()

    @staticmethod
    def _end(pipe: _Pipe) -> None:
        pipe.ended = True
        pipe.wake.set()

    async def _get(self) -> Value | bytes | None:
        while not self._in.arrived:
            if self._in.ended:
                return None
            self._in.wake.clear()
            await self._in.wake.wait()
        return self._in.arrived.popleft()


def memory_pair(
    client: str, server: str = MANAGER_NAME, conditions: Conditions | None = None
) -> tuple[MemoryChannel, MemoryChannel]:
    """(the client's end, the server's end). Each end's `peer` is the other's name."""
    shared = conditions or Conditions()
    up, down = _Pipe(), _Pipe()
    return MemoryChannel(server, shared, down, up), MemoryChannel(client, shared, up, down)


class MemoryListener:
    """Stands where the manager's listening socket is. Set `handler` to None while the manager is down."""

    def __init__(self, handler: Handler | None = None) -> None:
        self.handler = handler
        self._tasks: dict[asyncio.Task[None], MemoryChannel] = {}

    async def dial(self, client: str, conditions: Conditions | None = None) -> Channel:
        """A new connection, as seen by the client. ConnectionError while nobody listens or the link is down."""
        shared = conditions or Conditions()
        delay = shared.delay()
        if delay > 0:
            await asyncio.sleep(delay)
        if self.handler is None or not shared.reachable or shared.dropping:
            raise ConnectionRefusedError("the manager cannot be reached")
        mine, other = memory_pair(client, conditions=shared)
        task = asyncio.get_running_loop().create_task(self._serve(self.handler, other))
        self._tasks[task] = other
        task.add_done_callback(lambda done: self._tasks.pop(done, None))
        return mine

    async def stop(self) -> None:
        """The manager dies: every connection is cut, every handler cancelled."""
        self.handler = None
        tasks = dict(self._tasks)
        for task, channel in tasks.items():
            channel.cut()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    async def _serve(handler: Handler, channel: MemoryChannel) -> None:
        try:
            await handler(channel)
        except OSError:
            pass
        finally:
            await channel.close()
