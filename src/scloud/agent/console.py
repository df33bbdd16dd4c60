"""Serial consoles: QEMU takes one client for each, and this hub shares it among all who look."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

from scloud.agent.deadlines import within
from scloud.link.channel import Channel
from scloud.model.errors import CloudError, ErrorKind

HISTORY = 64 * 1024
"""Bytes of the log that a new viewer sees first."""
VIEWER_QUEUE = 256
"""Pieces that a viewer may be behind; one that does not read is let go."""
PIECE = 16 * 1024


def read_log(path: Path, limit: int) -> bytes:
    """The last `limit` bytes of a console log; b"" if there is none yet."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - limit))
            return file.read(limit)
    except FileNotFoundError:
        return b""


class _Line:
    """The connection to one VM's serial port and who shares it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.viewers: list[asyncio.Queue[bytes]] = []

    def say(self, data: bytes) -> None:
        """To all viewers; b"" is the end."""
        for viewer in list(self.viewers):
            try:
                viewer.put_nowait(data)
            except asyncio.QueueFull:
                self.viewers.remove(viewer)
                while not viewer.empty():
                    viewer.get_nowait()
                viewer.put_nowait(b"")


class Consoles:
    """By VM. Everybody sees what the guest writes; what anybody types goes to the guest."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._pumps: dict[str, asyncio.Task[None]] = {}
        self._opening: dict[str, asyncio.Lock] = {}

    async def open(self, vm: str, socket: Path) -> None:
        """Connect to the VM's serial port, if nobody has. `CloudError(CONFLICT)` if the VM is not running."""
        async with self._opening.setdefault(vm, asyncio.Lock()):
            if vm in self._lines:
                return
            try:
                connecting = asyncio.open_unix_connection(str(socket))
                reader, writer = await within("connect", f"opening the console of {vm}", connecting)
            except OSError as error:
                raise CloudError(
                    ErrorKind.CONFLICT, f"the console of {vm} cannot be opened, is it running? ({error})"
                ) from error
            line = _Line(reader, writer)
            self._lines[vm] = line
            self._pumps[vm] = asyncio.get_running_loop().create_task(self._pump(vm, line), name=f"console {vm}")

    async def view(self, vm: str, history: bytes, channel: Channel) -> None:
        """Serve one viewer of an open console until either side ends; closes the console after the last one."""
        line = self._lines.get(vm)
        if line is None:
            return
        queue: asyncio.Queue[bytes] = asyncio.Queue(VIEWER_QUEUE)
        line.viewers.append(queue)
        typing = asyncio.get_running_loop().create_task(self._typed(line, channel))
        showing = asyncio.get_running_loop().create_task(self._shown(queue, history, channel))
        try:
            await asyncio.wait({typing, showing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (typing, showing):
                task.cancel()
            await asyncio.gather(typing, showing, return_exceptions=True)
            with contextlib.suppress(ValueError):
                line.viewers.remove(queue)
            if not line.viewers:
                self._hang_up(vm, line)

    async def close(self) -> None:
        """Let go of every console."""
        for vm, line in list(self._lines.items()):
            self._hang_up(vm, line)
        await asyncio.gather(*self._pumps.values(), return_exceptions=True)

    def _hang_up(self, vm: str, line: _Line) -> None:
        if self._lines.get(vm) is line:
            del self._lines[vm]
        line.writer.close()
        line.say(b"")

    async def _pump(self, vm: str, line: _Line) -> None:
        try:
            while data := await line.reader.read(PIECE):
                line.say(data)
        except OSError:
            pass  # QEMU has gone
        finally:
            self._hang_up(vm, line)
            if self._pumps.get(vm) is asyncio.current_task():
                del self._pumps[vm]

    @staticmethod
    async def _typed(line: _Line, channel: Channel) -> None:
        with contextlib.suppress(OSError):
            while data := await channel.read(PIECE):
                line.writer.write(data)
                await line.writer.drain()

    @staticmethod
    async def _shown(queue: asyncio.Queue[bytes], history: bytes, channel: Channel) -> None:
        with contextlib.suppress(OSError):
            if history:
                await channel.write(history)
            while data := await queue.get():
                await channel.write(data)
