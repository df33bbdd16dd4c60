"""The bytes of raw files as extents: (offset, data) or (offset, length of zeros). Blocking; meant for a thread."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator

from scloud.drivers.storage import sparse

Extent = tuple[int, bytes | int]

CHUNK = 4 * 1024 * 1024
"""The longest piece of data told at once, in bytes."""
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
_libc = ctypes.CDLL(None, use_errno=True)


def data_of(source: int) -> Iterator[Extent]:
    """All that is not a hole."""
    for start, end in sparse.extents(source):
        for at in range(start, end, CHUNK):
            yield at, _read(source, at, min(CHUNK, end - at))


def changes(source: int, older: int) -> Iterator[Extent]:
    """What is not as in the older file. Where only the older one has data, zeros; past its end it counts as zeros."""
    size = os.fstat(source).st_size
    for start, end in _union(source, older):
        for at in range(start, min(end, size), CHUNK):
            length = min(CHUNK, end - at, size - at)
            now = _read(source, at, length)
            if now == _read(older, at, length):
                continue
            yield (at, length) if not any(now) else (at, now)


def write(target: int, offset: int, piece: bytes | int) -> None:
    """OSError as the system gives it."""
    if isinstance(piece, bytes):
        while piece:
            written = os.pwrite(target, piece, offset)
            piece, offset = piece[written:], offset + written
    elif _libc.fallocate(target, _PUNCH_HOLE_KEEP_SIZE, ctypes.c_long(offset), ctypes.c_long(piece)) != 0:
        code = ctypes.get_errno()
        if code != errno.EOPNOTSUPP:
            raise OSError(code, os.strerror(code))
        for at in range(offset, offset + piece, CHUNK):
            write(target, at, bytes(min(CHUNK, offset + piece - at)))


def is_open(file: int) -> bool:
    """Whether a QEMU has the file open: it holds open-file-description locks on some bytes of it."""
    probe = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, probe)
    return bool(struct.unpack("hhqqi", answer)[0] != fcntl.F_UNLCK)


def _read(source: int, offset: int, length: int) -> bytes:
    """Zeros past the end."""
    parts = []
    while length:
        part = os.pread(source, length, offset)
        if not part:
            parts.append(bytes(length))
            break
        parts.append(part)
        offset, length = offset + len(part), length - len(part)
    return b"".join(parts)


def _union(one: int, other: int) -> Iterator[tuple[int, int]]:
    """Runs in which either file has data."""
    runs = sorted([*sparse.extents(one), *sparse.extents(other)])
    begin, end = 0, 0
    for start, stop in runs:
        if start > end:
            if end > begin:
                yield begin, end
            begin, end = start, stop
        else:
            end = max(end, stop)
    if end > begin:
        yield begin, end
