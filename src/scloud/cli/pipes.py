"""Streams joined to this process's stdin and stdout, its terminal, or sockets it listens on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys
import termios
import threading
import tty
from collections.abc import Iterator, Sequence

from scloud.cli.output import note
from scloud.client import streams
from scloud.client.contexts import Context

LEAVE = b"\x1d"
"""Ctrl-]"""
_PIECE = 65536


class Stdin:
    """stdin as an asynchronous source: files and /dev/null too, which an event loop cannot wait for.

    A daemon thread does the reading, so a read that never returns does not keep the process from ending.
    """

    def __init__(self, leave: bytes | None = None) -> None:
        self._leave = leave
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue(maxsize=4)
        self._loop = asyncio.get_running_loop()
        self._over = False
        threading.Thread(target=self._pump, daemon=True).start()

    async def read(self) -> bytes:
        if self._over:
            return b""
        data = await self._pieces.get()
        self._over = not data
        return data

    def _pump(self) -> None:
        while True:
            try:
                data = os.read(0, _PIECE)
            except BlockingIOError:
                select.select([0], [], [])
                continue
            except OSError:
                data = b""
            before, found, _ = data.partition(self._leave) if self._leave else (data, b"", b"")
            pieces = [before, b""] if before and found else [before]
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the interest
                for piece in pieces:
                    asyncio.run_coroutine_threadsafe(self._pieces.put(piece), self._loop).result()
            if found or not data:
                return


def _write_all(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(1, rest) :]
        except BlockingIOError:
            select.select([], [1], [])


async def write_stdout(data: bytes) -> None:
    if data:
        await asyncio.to_thread(_write_all, data)


@contextlib.contextmanager
def raw_terminal() -> Iterator[None]:
    """Every key goes through as it is, until the end, whatever the end is."""
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


async def console(context: Context, vm: str, name: str, linger: float) -> None:
    """Join a console to the terminal, or to the pipes that stdin and stdout are."""
    path = streams.console_path(vm)
    if not sys.stdin.isatty():
        async with streams.open_stream(context, path) as connection:
            await streams.relay(connection, Stdin().read, write_stdout, after_end=linger)
        return
    async with streams.open_stream(context, path) as connection:
        with raw_terminal():
            # Said only now: whoever reads it may type at once, and going raw throws away what was typed before.
            note(f"Connected to {name}. Ctrl-] leaves; Enter may be needed for a prompt.", end="\r\n")
            await streams.relay(connection, Stdin(LEAVE).read, write_stdout, after_end=0)
    note(f"\nLeft the console of {name}.")


async def forward_stdio(context: Context, vm: str, port: int, boot: float) -> None:
    """Carry one connection over stdin and stdout; for `boot` seconds a guest that does not answer is tried again."""
    path = streams.forward_path(vm, port)
    source = Stdin()
    if not boot:
        async with streams.open_stream(context, path) as connection:
            await streams.relay(connection, source.read, write_stdout, after_end=streams.DRAIN_S)
        return
    told = 0

    def on_wait(reason: str) -> None:
        nonlocal told
        told += 1
        if told == 2:  # one refusal is nothing to speak of
            note(f"Port {port} does not answer yet ({reason}); trying for {boot:g} s. `scloud vm log` shows the boot.")

    await streams.relay_until_answered(context, path, source.read, write_stdout, patience=boot, on_wait=on_wait)


async def forward_listen(context: Context, vm: str, name: str, pairs: Sequence[tuple[int, int]]) -> None:
    """Listen on 127.0.0.1 for each (local, remote) until cancelled. A connection that fails is told of on stderr."""
    from scloud.client.problems import failure
    from scloud.model.errors import CloudError

    def serve(remote: int) -> streams.Accept:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await streams.forward_connection(context, vm, remote, reader, writer)
            except CloudError as error:
                note(f"port {remote}: {error.message}")

        return accept

    async with contextlib.AsyncExitStack() as stack:
        for local, remote in pairs:
            try:
                server = await asyncio.start_server(serve(remote), "127.0.0.1", local)
            except OSError as error:
                raise failure("conflict", f"127.0.0.1:{local} cannot be listened on ({error.strerror})") from error
            await stack.enter_async_context(server)
            note(f"127.0.0.1:{server.sockets[0].getsockname()[1]} -> {name}:{remote}  (Ctrl-C ends)")
        await asyncio.Event().wait()
