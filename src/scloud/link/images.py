"""A raw image file over a channel, holes left out.

After a FetchStart frame come extents: a 16-byte header (offset and length, big-endian, bytes) and that many bytes, in
order of offset. A header with length 0 and the file's size as its offset is the end. The receiver hashes every byte of
the file, holes as zeros, and compares with the sum it was told to expect.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from scloud.link.channel import Channel
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.wire import FetchHello, FetchStart, Refused, fetch_answer

CHUNK = 1024 * 1024
_EXTENT = struct.Struct(">QQ")
_ZEROS = bytes(CHUNK)


async def send_image(channel: Channel, path: Path, sha256: str) -> None:
    """Answer a FetchHello with this raw file. `sha256` is of all its bytes, known from its import."""
    descriptor = await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        await channel.send(FetchStart(size=size, sha256=sha256))
        extents = data_extents(descriptor, size)
        while (extent := await asyncio.to_thread(next, extents, None)) is not None:
            offset, length = extent
            data = await asyncio.to_thread(os.pread, descriptor, length, offset)
            if len(data) != length:
                raise CloudError(ErrorKind.INTERNAL, f"image file {path} became shorter while it was sent")
            await channel.write(_EXTENT.pack(offset, length) + data)
        await channel.write(_EXTENT.pack(size, 0))
    finally:
        os.close(descriptor)


async def receive_image(channel: Channel, image: str, destination: Path, sha256: str) -> int:
    """Fetch an image into a new file (which must not exist); returns its size in bytes.

    The file is flushed to disk when this returns, and removed when this fails: `CloudError(ENGINE)` when the bytes are
    not those of `sha256`, NO_CAPACITY when the disk is full, ConnectionError when the link breaks, or what the manager
    refused with.
    """
    await channel.send(FetchHello(image=image))
    start = await channel.receive(fetch_answer)
    if isinstance(start, Refused):
        raise CloudError(ErrorKind(start.error[0]), start.error[1])
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = await asyncio.to_thread(os.open, destination, flags, 0o600)
    try:
        await asyncio.to_thread(os.ftruncate, descriptor, start.size)
        found = await _receive_extents(channel, descriptor, start.size)
        if found != sha256:
            raise CloudError(
                ErrorKind.ENGINE,
                f"image {image} arrived with SHA-256 {found} instead of {sha256}; import it again if this repeats",
            )
        await asyncio.to_thread(os.fsync, descriptor)
    except BaseException as error:
        destination.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CloudError(
                ErrorKind.NO_CAPACITY, f"no room on this node's disk for image {image} ({start.size >> 20} MiB)"
            ) from error
        raise
    finally:
        os.close(descriptor)
    return start.size


def data_extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the parts that are not holes, in order, each at most CHUNK bytes."""
    position = 0
    while position < size:
        try:
            begin = os.lseek(descriptor, position, os.SEEK_DATA)
            end = min(os.lseek(descriptor, begin, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        for offset in range(begin, end, CHUNK):
            yield offset, min(CHUNK, end - offset)
        position = end


async def _receive_extents(channel: Channel, descriptor: int, size: int) -> str:
    buffer = _Buffer(channel)
    total = hashlib.sha256()
    position = 0
    while True:
        offset, length = _EXTENT.unpack(await buffer.take(_EXTENT.size))
        if offset < position or offset + length > size or length > CHUNK or (length == 0 and offset != size):
            raise CloudError(ErrorKind.INVALID, "a malformed image extent came over the link")
        data = await buffer.take(length)
        await asyncio.to_thread(_store, descriptor, total, position, offset, data)
        position = offset + length
        if length == 0:
            return total.hexdigest()


def _store(descriptor: int, total: hashlib._Hash, position: int, offset: int, data: bytes) -> None:
    hole = offset - position
    while hole > 0:
        part = min(hole, CHUNK)
        total.update(_ZEROS[:part])
        hole -= part
    total.update(data)
    while data:
        written = os.pwrite(descriptor, data, offset)
        offset += written
        data = data[written:]


class _Buffer:
    """Exact numbers of bytes out of a channel's stream."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._held = bytearray()

    async def take(self, count: int) -> bytes:
        while len(self._held) < count:
            data = await self._channel.read(CHUNK)
            if not data:
                raise ConnectionError("the link closed in the middle of an image")
            self._held += data
        taken = bytes(self._held[:count])
        del self._held[:count]
        return taken
