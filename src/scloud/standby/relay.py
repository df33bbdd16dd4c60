"""Connections to a standby, passed on to the leader byte by byte: its API, console, streams and link work as the
leader's own, and TLS is the leader's from end to end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable

CHUNK = 65536
DIAL_S = 5.0
Address = tuple[str, int]
Target = Callable[[], Address | None]
"""Where the leader is now; None if nobody leads."""

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


class Relay:
    """Passes on what comes to a listening socket until it is stopped; the socket stays open for whoever is next."""

    def __init__(self, listener: socket.socket, target: Target, apology: bytes = b"") -> None:
        self._listener = listener
        self._target = target
        self._apology = apology
        """Told to who connects while nobody leads."""
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
        reader, writer = await asyncio.open_connection(sock=accepted)
        try:
            with contextlib.suppress(OSError, TimeoutError):
                await self._pass_on(reader, writer)
        finally:
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = self._target()
        try:
            if target is None:
                raise ConnectionError
            async with asyncio.timeout(DIAL_S):
                far_reader, far_writer = await asyncio.open_connection(*target)
        except (OSError, TimeoutError):
            if self._apology:
                # The request is read first: an answer to one that is still on its way may be lost with a reset.
                await asyncio.wait_for(reader.read(CHUNK), DIAL_S)
                writer.write(self._apology)
                await writer.drain()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, far_writer))
                group.create_task(_pump(far_reader, writer))
        except* OSError:
            pass
        finally:
            far_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All bytes of one direction, then its end."""
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
