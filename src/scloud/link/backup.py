"""The format of a disk's backup, on the link, over the API and in files.

    magic     10 bytes, b"SCLDDISK1\\n"
    header    4-byte length and so many bytes of JSON: a BackupHeader
    records   kind (1 byte), offset and length (8 bytes each, in bytes), CRC-32 of the data (4 bytes), the data
              D  data: `length` bytes follow
              Z  zeros: `length` of them, nothing follows
              X  the sender failed: `length` bytes of JSON follow, [error kind, message]; nothing comes after it
              E  the end: `offset` is how many records came before, and 32 bytes follow, the SHA-256 of all before them

Numbers are big-endian. Offsets rise, and pieces do not overlap. Without `since` all that is not told is zeros; with it
(the id of an older snapshot of the same disk) all that is not told is as it was in that snapshot. A file without an end
record is not whole. No piece of data is longer than CHUNK.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable

from scloud.model.base import Value
from scloud.model.errors import CloudError, ErrorKind

MAGIC = b"SCLDDISK1\n"
CHUNK = 4 * 1024 * 1024
MAX_HEADER = 64 * 1024
MIB = 1024 * 1024
_LENGTH = struct.Struct(">I")
_RECORD = struct.Struct(">cQQI")
MAX_PIECE = 1024 * 1024
Extent = tuple[int, bytes | int]
"""(offset, data) or (offset, length of zeros), in bytes."""
Read = Callable[[int], Awaitable[bytes]]
"""Up to so many bytes, b"" at the end."""


class BackupHeader(Value):
    """Which snapshot of which disk; `size_mib` is the disk's size in it."""

    disk: str
    snapshot: str
    since: str | None = None
    size_mib: int


def _broken(what: str) -> CloudError:
    return CloudError(ErrorKind.INVALID, f"the backup is damaged: {what}; take it anew")


async def encode(header: BackupHeader, extents: AsyncIterator[Extent]) -> AsyncIterator[bytes]:
    """A backup, piece by piece. What goes wrong with the extents is told in the backup itself."""
    total = hashlib.sha256()
    count = 0

    def out(piece: bytes) -> bytes:
        total.update(piece)
        return piece

    text = header.model_dump_json().encode()
    yield out(MAGIC + _LENGTH.pack(len(text)) + text)
    try:
        async for offset, piece in extents:
            if isinstance(piece, int):
                count += 1
                yield out(_RECORD.pack(b"Z", offset, piece, 0))
                continue
            for at in range(0, len(piece), CHUNK):
                data = piece[at : at + CHUNK]
                count += 1
                yield out(_RECORD.pack(b"D", offset + at, len(data), zlib.crc32(data)) + data)
    except (CloudError, OSError) as error:
        kind = error.kind if isinstance(error, CloudError) else ErrorKind.ENGINE
        said = json.dumps([kind, str(error)]).encode()
        yield _RECORD.pack(b"X", 0, len(said), zlib.crc32(said)) + said
        return
    yield out(_RECORD.pack(b"E", count, 32, 0)) + total.digest()


class Decoder:
    """Reads a backup: `header` first, then `extents` to their end. INVALID if it is damaged or not whole."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._held = bytearray()
        self._total = hashlib.sha256()
        self._count = 0
        self.bytes = 0
        """Of data so far."""

    async def _take(self, count: int, *, counted: bool = True) -> bytes:
        while len(self._held) < count:
            data = await self._read(CHUNK)
            if not data:
                raise _broken("it ends too early")
            self._held += data
        taken = bytes(self._held[:count])
        del self._held[:count]
        if counted:
            self._total.update(taken)
        return taken

    async def header(self) -> BackupHeader:
        if await self._take(len(MAGIC)) != MAGIC:
            raise CloudError(ErrorKind.INVALID, "this is no backup of a disk: it does not begin as one")
        (length,) = _LENGTH.unpack(await self._take(_LENGTH.size))
        if length > MAX_HEADER:
            raise _broken("its header is too long")
        try:
            return BackupHeader.model_validate_json(await self._take(length))
        except ValueError as error:
            raise _broken("its header cannot be read") from error

    async def extents(self, size: int) -> AsyncIterator[Extent]:
        """Those of a disk of `size` bytes."""
        position = 0
        while True:
            raw = await self._take(_RECORD.size, counted=False)
            kind, offset, length, crc = _RECORD.unpack(raw)
            if kind == b"X":
                await self._failed(length, crc)
            self._total.update(raw)
            if kind == b"E":
                await self._end(offset)
                return
            if kind not in (b"D", b"Z") or offset < position or length == 0:
                raise _broken(f"its record {self._count + 1} makes no sense")
            if offset + length > size:
                raise CloudError(ErrorKind.INVALID, f"the backup has bytes beyond the disk's {size // MIB} MiB")
            position = offset + length
            self._count += 1
            if kind == b"Z":
                yield offset, length
                continue
            if length > CHUNK:
                raise _broken(f"its record {self._count} is too long")
            data = await self._take(length)
            if zlib.crc32(data) != crc:
                raise _broken(f"the checksum of its record {self._count} is wrong")
            self.bytes += length
            yield offset, data

    async def _end(self, count: int) -> None:
        if count != self._count or await self._take(32, counted=False) != self._total.digest():
            raise _broken("its checksum is wrong")

    async def _failed(self, length: int, crc: int) -> None:
        said = b"" if length > MAX_HEADER else await self._take(length, counted=False)
        if zlib.crc32(said) != crc:
            raise _broken("its failure cannot be read")
        try:
            kind, message = json.loads(said)
            error = CloudError(ErrorKind(kind), f"the backup broke off: {message}")
        except (ValueError, TypeError) as problem:
            raise _broken("its failure cannot be read") from problem
        raise error


async def whole(extents: AsyncIterator[Extent], size: int) -> AsyncIterator[Extent]:
    """With what a backup without `since` leaves out, as zeros, up to `size` bytes."""
    position = 0
    async for offset, piece in extents:
        if offset > position:
            yield position, offset - position
        yield offset, piece
        position = offset + (piece if isinstance(piece, int) else len(piece))
    if position < size:
        yield position, size - position


# --- on a channel whose other direction must stay open: pieces with their length, of which the last is empty


def pieces(data: bytes) -> bytes:
    """As it goes over the channel; nothing is the end."""
    parts = [data[at : at + MAX_PIECE] for at in range(0, len(data), MAX_PIECE)] or [b""]
    return b"".join(_LENGTH.pack(len(part)) + part for part in parts)


def joined(read: Read) -> Read:
    """What was sent, b"" once the empty piece or the end of the channel has come."""
    held = bytearray()
    left = 0
    over = False

    async def more(limit: int) -> bytes:
        nonlocal left, over
        while not over:
            if left and held:
                part = bytes(held[: min(left, limit)])
                del held[: len(part)]
                left -= len(part)
                return part
            if not left and len(held) >= _LENGTH.size:
                (left,) = _LENGTH.unpack(bytes(held[: _LENGTH.size]))
                del held[: _LENGTH.size]
                over = left == 0
                continue
            data = await read(CHUNK)
            over = not data
            held.extend(data)
        return b""

    return more
