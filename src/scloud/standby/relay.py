"""Connections to a standby, passed on to the leader byte by byte: its API, console, streams and link work as the
leader's own, and TLS is the leader's from end to end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable

CHUNK = 65536
DIAL_S = 2.0
READ_S = 5.0
Address = tuple[str, int]
Target = Callable[[], Address | None]
"""Where the leader is now; None if nobody leads."""
TurnAway = Callable[[socket.socket], Awaitable[None]]
"""Ends a connection that cannot be passed on, and closes its socket."""

_BODY = json.dumps(
    {
        "type": "about:blank",
        "title": "unavailable",
        "status": 503,
        "detail": "no manager leads at this moment; another takes over within seconds: try again",
        "code": "unavailable",
    }
).encode()
NOBODY_LEADS = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 2\r\n"
    b"Connection: close\r\nContent-Length: " + str(len(_BODY)).encode() + b"\r\n\r\n" + _BODY
)


async def apologise(accepted: socket.socket) -> None:
    """Tell who asks the API that nobody leads."""
    reader, writer = await asyncio.open_connection(sock=accepted)
    try:
        # The request is read first: an answer to one that is still on its way may be lost with a reset.
        await asyncio.wait_for(reader.read(CHUNK), READ_S)
        writer.write(NOBODY_LEADS)
        await writer.drain()
    finally:
        writer.close()


class Relay:
    """Passes on what comes to a listening socket until it is stopped; the socket stays open for whoever is next.

    Where nobody leads, or the leader does not take the connection, it is turned away.
    """

    def __init__(self, listener: socket.socket, target: Target, turn_away: TurnAway) -> None:
        self._listener = listener
        self._target = target
        self._turn_away = turn_away
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled; then every connection that it passes on is ended, too."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                accepted, _ = await loop.sock_accept(self._listener)
                task = loop.create_task(self._serve(accepted))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        with contextlib.suppress(OSError, TimeoutError):
            try:
                far = await self._dial()
            except asyncio.CancelledError:
                accepted.close()
                raise
            if far is None:
                await self._turn_away(accepted)
            else:
                await self._pass_on(accepted, *far)

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        target = self._target()
        if target is None:
            return None
        try:
            async with asyncio.timeout(DIAL_S):
                return await asyncio.open_connection(*target)
        except (OSError, TimeoutError):
            return None

    @staticmethod
    async def _pass_on(
        accepted: socket.socket, far_reader: asyncio.StreamReader, far_writer: asyncio.StreamWriter
    ) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=accepted)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_pump(reader, far_writer))
                    group.create_task(_pump(far_reader, writer))
            except* OSError:
                pass
            finally:
                writer.close()
        finally:
            far_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All bytes of one direction, then its end."""
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
