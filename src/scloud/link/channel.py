"""One connection between manager and agent, as both sides see it: typed messages first, raw bytes where agreed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from pydantic import TypeAdapter

from scloud.link import frames
from scloud.link.pki import MANAGER_NAME
from scloud.model.base import Value

DEAD_PEER_MS = 15_000
"""Sent bytes that stay unacknowledged for so long end the connection (TCP_USER_TIMEOUT)."""
BUFFER = 1024 * 1024
T = TypeVar("T")


class Channel(Protocol):
    """A two-way, ordered, reliable connection. When it is gone every call raises OSError (mostly ConnectionError).

    `peer` is the name in the other end's verified certificate: a node's id on the manager, MANAGER_NAME on an agent,
    and "" for one that showed none.
    """

    @property
    def peer(self) -> str: ...

    async def send(self, message: Value) -> None:
        """Queue one message; waits only while too much is queued. `CloudError(TOO_LARGE)`."""
        ...

    async def receive(self, adapter: TypeAdapter[T]) -> T:
        """The next message. `CloudError(INVALID)` if it is not one of the adapter's, `CloudError(TOO_LARGE)`."""
        ...

    async def write(self, data: bytes) -> None:
        """Raw bytes, after both sides agreed on them."""
        ...

    async def read(self, limit: int = 65536) -> bytes:
        """Up to `limit` raw bytes, b"" at the end."""
        ...

    async def close(self) -> None:
        """Hang up; never raises."""
        ...


Handler = Callable[[Channel], Awaitable[None]]
"""Serves one accepted channel; it is closed when this returns."""
Dialer = Callable[[], Awaitable[Channel]]
"""Opens a new channel to the manager, or raises OSError."""


class StreamChannel:
    """A Channel over an asyncio stream, with TLS or without."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: str) -> None:
        self._reader = reader
        self._writer = writer
        self._peer = peer

    @property
    def peer(self) -> str:
        return self._peer

    async def send(self, message: Value) -> None:
        await self.write(frames.encode(message))

    async def receive(self, adapter: TypeAdapter[T]) -> T:
        return frames.decode(await frames.read_frame(self._reader), adapter)

    async def write(self, data: bytes) -> None:
        if self._writer.is_closing():
            raise ConnectionError("this end of the link has closed")
        self._writer.write(data)
        await self._writer.drain()

    async def read(self, limit: int = 65536) -> bytes:
        return await self._reader.read(limit)

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            # a peer that never answers TLS's goodbye must not hold us
            async with asyncio.timeout(2):
                await self._writer.wait_closed()


async def dial(host: str, port: int, context: ssl.SSLContext, timeout_s: float = 10.0) -> Channel:
    """A connection to the manager, verified as the context says. OSError (TimeoutError is one) when there is none."""
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(
            host, port, ssl=context, server_hostname=MANAGER_NAME, limit=BUFFER, ssl_handshake_timeout=timeout_s
        )
    _tune(writer)
    return StreamChannel(reader, writer, peer_name(writer))


def listen(host: str, port: int, backlog: int = 1024) -> socket.socket:
    """A socket to serve on; connections are kept waiting until somebody does."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(backlog)
    listener.setblocking(False)
    return listener


async def serve(handler: Handler, listener: socket.socket, context: ssl.SSLContext) -> asyncio.Server:
    """Accept connections on a bound socket until the server is closed; each is handled in its own task."""

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _tune(writer)
        channel = StreamChannel(reader, writer, peer_name(writer))
        try:
            await handler(channel)
        except OSError:
            pass  # the peer is gone; whoever waits for it has seen that too
        finally:
            await channel.close()

    return await asyncio.start_server(
        accepted, sock=listener, ssl=context, limit=BUFFER, backlog=1024, ssl_handshake_timeout=10.0
    )


def peer_name(writer: asyncio.StreamWriter) -> str:
    """The common name in the peer's verified certificate, or ""."""
    certificate = writer.get_extra_info("peercert") or {}
    for part in certificate.get("subject", ()):
        for key, value in part:
            if key == "commonName":
                return str(value)
    return ""


def _tune(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_MS)
    writer.transport.set_write_buffer_limits(high=4 * BUFFER)
