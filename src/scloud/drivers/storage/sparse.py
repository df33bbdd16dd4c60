"""Copying a raw file's bytes without its holes: shared extents where the file system can, else data extents only.

Blocking; meant for a thread. Every function raises OSError as the system gave it.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator

FICLONE = 0x40049409
"""linux/fs.h: _IOW(0x94, 9, int)."""
CHUNK = 16 * 1024 * 1024
"""Bytes between two looks at whether to stop: about 0.1 s of a slow disk."""
_CANNOT_CLONE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
_CANNOT_COPY_RANGE = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}


class Stopped(Exception):
    """The caller asked to stop in the middle."""


def reflink(source: int, target: int) -> bool:
    """Share the source's extents; False if this file system, or this pair of them, cannot."""
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as error:
        if error.errno in _CANNOT_CLONE:
            return False
        raise
    return True


def extents(source: int) -> Iterator[tuple[int, int]]:
    """(start, end) in bytes of each run of data; a file system that knows no holes gives one run."""
    position = 0
    while True:
        try:
            start = os.lseek(source, position, os.SEEK_DATA)
        except OSError as error:
            # ENXIO: nothing but a hole from here to the end.
            if error.errno == errno.ENXIO:
                return
            raise
        position = os.lseek(source, start, os.SEEK_HOLE)
        yield start, position


def copy(source: int, target: int, stop: Callable[[], bool]) -> None:
    """Copy all data extents to the same offsets; the target is empty and keeps the holes. Raises Stopped."""
    in_kernel = True
    for start, end in extents(source):
        while start < end:
            if stop():
                raise Stopped
            length = min(CHUNK, end - start)
            if in_kernel:
                try:
                    copied = os.copy_file_range(source, target, length, start, start)
                except OSError as error:
                    if error.errno not in _CANNOT_COPY_RANGE:
                        raise
                    in_kernel = False
                    continue
            else:
                copied = _send(source, target, start, length)
            if copied == 0:
                raise OSError(errno.EIO, f"the source became shorter than {end} bytes while it was copied")
            start += copied


def _send(source: int, target: int, offset: int, length: int) -> int:
    os.lseek(target, offset, os.SEEK_SET)
    return os.sendfile(target, source, offset, length)
