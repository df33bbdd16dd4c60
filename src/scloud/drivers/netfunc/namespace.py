"""Named network namespaces, and work inside one.

Work is done by a thread that enters the namespace and ends there: no other code ever runs in the wrong one.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from scloud.drivers.netfunc.command import run
from scloud.model.errors import CloudError, ErrorKind

FOLDER = Path("/run/netns")
"""Where `ip netns` keeps its names; private to the node."""
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_T = TypeVar("_T")


def identity(name: str) -> int | None:
    """A number that no other living namespace has; None if there is no namespace of that name.

    After a reboot names may be left over as plain files, with no namespace behind them.
    """
    try:
        stat = (FOLDER / name).stat()
    except FileNotFoundError:
        return None
    return stat.st_ino if stat.st_dev == Path("/proc/self/ns/net").stat().st_dev else None


def names(prefix: str) -> list[str]:
    """The namespaces whose names begin so."""
    try:
        found = sorted(entry.name for entry in FOLDER.iterdir() if entry.name.startswith(prefix))
    except FileNotFoundError:
        return []
    return [name for name in found if identity(name) is not None]


async def create(name: str) -> int:
    """Make it and return its identity."""
    # Only a name without a namespace can be there.
    (FOLDER / name).unlink(missing_ok=True)
    await run("ip", "netns", "add", name)
    made = identity(name)
    if made is None:
        raise CloudError(ErrorKind.ENGINE, f"network namespace {name} was made and is not there")
    return made


async def delete(name: str) -> None:
    if identity(name) is not None:
        await run("ip", "netns", "delete", name)
    else:
        (FOLDER / name).unlink(missing_ok=True)


async def inside(name: str, work: Callable[[], _T], discard: Callable[[_T], None] | None = None) -> _T:
    """Run `work` in the namespace and return what it returns; NOT_FOUND if there is none.

    `work` must be short. Is the caller cancelled meanwhile, then the result goes to `discard`.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(result: _T) -> None:
        if not future.done():
            future.set_result(result)
        elif discard is not None:
            discard(result)

    def fail(error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)

    def tell(how: Callable[[Any], None], what: object) -> None:
        # RuntimeError: the loop is closed, nobody waits any more.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(how, what)

    def body() -> None:
        try:
            _enter(name)
            result = work()
        except Exception as error:
            tell(fail, error)
        else:
            tell(settle, result)

    threading.Thread(target=body, name=f"in-{name}", daemon=True).start()
    return await future


def _enter(name: str) -> None:
    if identity(name) is None:
        raise CloudError(ErrorKind.NOT_FOUND, f"there is no network namespace {name} on this node")
    handle = os.open(FOLDER / name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(handle, _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise CloudError(ErrorKind.ENGINE, f"network namespace {name} cannot be entered: {os.strerror(code)}")
    finally:
        os.close(handle)
