"""Waiting for a file or a listening socket to appear, woken by inotify."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from scloud.drivers.supervisor.identity import Identity

_IN_CREATE, _IN_MOVED_TO = 0x100, 0x80
_LISTEN_RETRY_S = 0.01


def is_ready(path: Path) -> bool | None:
    """Whether it can be used: True or False; None for a socket that exists and takes no connections yet."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    if not stat.S_ISSOCK(mode):
        return True
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        code = _connect(probe, path)
    if code == errno.ECONNREFUSED:
        return None
    # EAGAIN: the backlog is full, so someone listens. EPROTOTYPE: a socket of another type, which has no listen().
    return code in (0, errno.EAGAIN, errno.EPROTOTYPE)


def _connect(probe: socket.socket, path: Path) -> int:
    # Through the folder's descriptor: the address of a UNIX socket may have 107 bytes, a path many more.
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        return probe.connect_ex(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[int]:
    """A descriptor that becomes readable when an entry appears in the folder."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    try:
        if libc.inotify_add_watch(fd, os.fsencode(folder), _IN_CREATE | _IN_MOVED_TO) < 0:
            raise OSError(ctypes.get_errno(), f"cannot watch {folder}")
        yield fd
    finally:
        os.close(fd)


async def wait_ready(path: Path, process: Identity | None, timeout_s: float) -> Literal["ready", "died", "late"]:
    """Wait until `path` can be used, the process ends, or the time is over."""
    loop = asyncio.get_running_loop()
    path.parent.mkdir(parents=True, exist_ok=True)
    changed, died = asyncio.Event(), asyncio.Event()
    with contextlib.ExitStack() as stack:
        notices = stack.enter_context(watched(path.parent))

        def on_notice() -> None:
            os.read(notices, 65536)
            changed.set()

        def on_death() -> None:
            died.set()
            changed.set()

        if process is not None:
            pidfd = stack.enter_context(process.opened())
            if pidfd is None:
                return "died"
            loop.add_reader(pidfd, on_death)
            stack.callback(loop.remove_reader, pidfd)
        loop.add_reader(notices, on_notice)
        stack.callback(loop.remove_reader, notices)
        try:
            async with asyncio.timeout(timeout_s):
                while not (state := is_ready(path)):
                    if died.is_set():
                        return "died"
                    if state is None:
                        # Nothing tells when bind() is followed by listen(); it is a matter of microseconds.
                        await asyncio.sleep(_LISTEN_RETRY_S)
                    else:
                        await changed.wait()
                        changed.clear()
        except TimeoutError:
            return "late"
    return "ready"
