"""Byte streams over WebSockets: a VM's serial console, and TCP ports of a VM.

Messages are binary and carry bytes as they are. An empty message says that its sender has no more bytes to send (the
half-close of TCP); the other direction goes on until the connection is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from scloud.client.contexts import API_PREFIX, Context
from scloud.client.http import HURRY_S, is_local, tls_context
from scloud.client.problems import failure, from_response

if TYPE_CHECKING:
    from scloud.model.errors import CloudError

Read = Callable[[], Awaitable[bytes]]
"""The next bytes to send; empty at the end."""
Write = Callable[[bytes], Awaitable[None]]
"""Takes bytes received; empty when the other side will send no more."""

Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Takes a connection that a listening socket has accepted."""

OPEN_S = 30.0
RETRY_S = 0.5
"""Pause between attempts at a guest that does not answer yet."""
DRAIN_S = 60.0
"""How long a forwarded connection whose local side has ended may stay silent before it is closed."""


def console_path(vm: str) -> str:
    return f"/vms/{vm}/console"


def forward_path(vm: str, port: int) -> str:
    return f"/vms/{vm}/forward?{urlencode({'port': port})}"


@asynccontextmanager
async def open_stream(context: Context, path: str) -> AsyncIterator[ClientConnection]:
    """A connection to a stream of the API, by the first of the cloud's managers that answers; `path` is below /api/v1.
    Raises the CloudError of a refusal."""
    failures: list[str] = []
    roots = (context.url, *context.others)
    for root in roots:
        try:
            # One that hangs takes the connection all the same; the last has time for what takes long.
            connection = await _open(context, root, path, OPEN_S if root == roots[-1] else HURRY_S)
            break
        except InvalidStatus as error:
            if "retry-after" in error.response.headers and root != roots[-1]:
                failures.append(f"{root} knows of no manager that leads")
                continue
            raise from_response(
                error.response.status_code, bytes(error.response.body or b""), what=f"opening {path}"
            ) from error
        except (InvalidHandshake, OSError, TimeoutError) as error:
            failures.append(f"{root} does not open the stream ({error or 'no answer'})")
    else:
        raise failure("unavailable", f"{'; '.join(failures)}: see `scloud status`")
    try:
        yield connection
    finally:
        await connection.close()


async def _open(context: Context, root: str, path: str, limit_s: float) -> ClientConnection:
    """By one manager."""
    parts = urlsplit(root.rstrip("/"))
    secure = parts.scheme == "https"
    url = urlunsplit(("wss" if secure else "ws", parts.netloc, parts.path + API_PREFIX, "", "")) + path
    return await connect(
        url,
        additional_headers={"Authorization": f"Bearer {context.token}"},
        ssl=tls_context(context) if secure else None,
        proxy=None if is_local(root) else True,
        open_timeout=limit_s,
        max_size=None,
        compression=None,
    )


async def relay(connection: ClientConnection, read: Read, write: Write, *, after_end: float | None = None) -> None:
    """Carry bytes both ways until the far side closes the connection.

    When `read` has ended the far side is told, and the relay goes on until it closes or, if `after_end` is given, has
    been silent for that many seconds. A close for a reason raises CloudError with that reason.
    """
    loop = asyncio.get_running_loop()
    ended = False
    last_heard = loop.time()

    async def send() -> None:
        nonlocal ended, last_heard
        try:
            while data := await read():
                await connection.send(data)
            await connection.send(b"")
        except ConnectionClosed:
            return  # what has arrived is still to be written, and the receiver learns why it ended
        ended, last_heard = True, loop.time()

    async def receive() -> None:
        nonlocal last_heard
        async for message in connection:
            last_heard = loop.time()
            await write(message.encode() if isinstance(message, str) else message)

    sender, receiver = asyncio.create_task(send()), asyncio.create_task(receive())
    try:
        waiting = {sender, receiver}
        while receiver in waiting:
            timeout = None
            if ended and after_end is not None:
                timeout = last_heard + after_end - loop.time()
                if timeout <= 0:
                    return
            done, waiting = await asyncio.wait(waiting, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    except ConnectionClosed as closed:
        _raise_reason(closed)
    finally:
        for task in (sender, receiver):
            task.cancel()
        await asyncio.gather(sender, receiver, return_exceptions=True)


def _raise_reason(closed: ConnectionClosed) -> None:
    frame = closed.rcvd
    if frame is None:
        raise failure("unavailable", "the connection to the manager was lost: see `scloud status`") from closed
    if frame.code not in (1000, 1001):
        raise _closed_error(frame.code, frame.reason) from closed


def _closed_error(code: int, reason: str) -> CloudError:
    """The manager's reason begins with the error's code: `not_found: there is no vm 'a'`."""
    kind, colon, message = reason.partition(": ")
    if colon and kind.replace("_", "").isalpha():
        return failure(kind, message)
    return failure("unavailable", reason or f"the stream was closed with code {code}: see `scloud status`")


async def relay_until_answered(
    context: Context, path: str, read: Read, write: Write, *, patience: float, on_wait: Callable[[str], None]
) -> None:
    """Relay, but connect again for `patience` seconds until the far side has sent its first byte.

    For a guest that still boots. What was read meanwhile is sent anew on every connection, so the far side, which
    hears one connection, misses nothing. `on_wait` gets the reason of each failed attempt.
    """
    loop = asyncio.get_running_loop()
    give_up = loop.time() + patience
    source = _Replay(read)
    try:
        while True:
            answered, error = await _attempt(context, path, source, write, give_up)
            if answered or source.exhausted:
                if error:
                    raise error
                return
            reason = error.message if error else "the connection was closed without a byte"
            if loop.time() >= give_up:
                raise failure("timed_out", f"no answer within {patience:g} s: {reason}")
            on_wait(reason)
            await asyncio.sleep(RETRY_S)
    finally:
        await source.close()


async def _attempt(
    context: Context, path: str, source: _Replay, write: Write, give_up: float
) -> tuple[bool, CloudError | None]:
    """One connection: whether the far side sent anything, and how it failed. Errors that will not pass are raised."""
    from scloud.model.errors import CloudError, ErrorKind

    answered = False
    limit = asyncio.timeout_at(give_up)

    async def note(data: bytes) -> None:
        nonlocal answered
        if data and not answered:
            answered = True
            limit.reschedule(None)
            source.forget()
        await write(data)

    try:
        async with limit, open_stream(context, path) as connection:
            source.rewind()
            await relay(connection, source.read, note, after_end=DRAIN_S)
    except TimeoutError:
        return answered, failure("timed_out", "it does not answer")
    except CloudError as error:
        if error.kind in (ErrorKind.NOT_FOUND, ErrorKind.FORBIDDEN, ErrorKind.UNAUTHENTICATED, ErrorKind.INVALID):
            raise
        return answered, error
    return answered, None


class _Replay:
    """A source of bytes that can be read again from the start until it is told to forget."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._kept: list[bytes] = []
        self._position = 0
        self._keeping = True
        self._pending: asyncio.Task[bytes] | None = None
        self.exhausted = False

    def rewind(self) -> None:
        self._position = 0

    def forget(self) -> None:
        self._keeping = False

    async def read(self) -> bytes:
        if self._position < len(self._kept):
            self._position += 1
            return self._kept[self._position - 1]
        if self.exhausted:
            return b""
        if self._pending is None:
            self._pending = asyncio.ensure_future(self._read())
        # Shielded: an attempt that is given up must not lose the bytes that the next one will need.
        data = await asyncio.shield(self._pending)
        self._pending = None
        if not data:
            self.exhausted = True
        elif self._keeping:
            self._kept.append(data)
            self._position += 1
        return data

    async def close(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
            await asyncio.gather(self._pending, return_exceptions=True)


async def forward_connection(
    context: Context, vm: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Carry one accepted TCP connection to a port of the VM; the writer is closed at the end."""

    async def read() -> bytes:
        return await reader.read(65536)

    async def write(data: bytes) -> None:
        if data:
            writer.write(data)
            await writer.drain()
        elif writer.can_write_eof():
            writer.write_eof()

    try:
        async with open_stream(context, forward_path(vm, port)) as connection:
            await relay(connection, read, write, after_end=DRAIN_S)
    except (ConnectionError, BrokenPipeError):
        return
    finally:
        writer.close()
