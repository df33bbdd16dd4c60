"""One node's connection to one storage cluster, shared by the drivers of its pools.

librados and librbd block, so every call runs in a thread of this connection's own, with time limits of the library's:
a cluster that is away costs these threads and nothing else. A session that was cut off is not used again.
"""

from __future__ import annotations

import asyncio
import errno
import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, WeakSet

import rados
import rbd

from scloud.drivers.ceph.handle import new_handle
from scloud.drivers.storage import rbd_names as names
from scloud.model.errors import CloudError, ErrorKind

Result = TypeVar("Result")

THREADS = 8
LONG_THREADS = 16
"""For what may take long, such as copying: so many disks are made at the same time."""
OPTIONS = {
    # Seconds. Above the time in which a cluster elects a monitor or finds out that an OSD is dead.
    "client mount timeout": "10",
    "rados mon op timeout": "20",
    "rados osd op timeout": "30",
    # Clones of snapshots that are protected: known to every cluster, and what depends on what can be told.
    "rbd default clone format": "1",
    # What is deleted is gone, however a cluster that was adopted is set: our own trash is the manager's.
    "rbd move to trash on remove": "false",
}
_KINDS = {
    errno.ENOENT: ErrorKind.NOT_FOUND,
    errno.EEXIST: ErrorKind.CONFLICT,
    errno.EBUSY: ErrorKind.IN_USE,
    errno.ENOSPC: ErrorKind.NO_CAPACITY,
    errno.EDQUOT: ErrorKind.NO_CAPACITY,
    errno.ETIMEDOUT: ErrorKind.UNAVAILABLE,
    errno.EACCES: ErrorKind.FORBIDDEN,
    errno.EPERM: ErrorKind.FORBIDDEN,
    errno.ESHUTDOWN: ErrorKind.CONFLICT,
}
_ENDS_SESSION = (errno.ESHUTDOWN, errno.ENOTCONN, errno.EPERM, errno.EACCES)
"""It was cut off; or its key was allowed less when the session began, and the OSDs go by that."""
_WORDS = {
    errno.ETIMEDOUT: "the storage cluster does not answer; see `scloud storage-cluster show`",
    errno.EACCES: "the storage cluster does not take this node's key",
    errno.EPERM: "the storage cluster does not allow it with this node's key",
    errno.ESHUTDOWN: "this node was cut off from the storage cluster",
    errno.ENOSPC: "the pool is full",
    errno.EDQUOT: "the pool's quota is used up",
}


FORMER = 8
"""How many of an agent's former sessions are remembered."""
FULL_FORCE = 128
"""LIBRADOS_OPERATION_FULL_FORCE, which the binding has no name for: in a full pool, it is carried out all the same."""


@dataclass(frozen=True)
class ClusterAccess:
    """How a node reaches a cluster: as the cephx user `user` (without `client.`)."""

    node: str
    cluster: str
    mon_host: str
    user: str
    key: str


def code_of(error: Exception) -> int:
    """errno of a librados or librbd error; 0 if it has none."""
    code = getattr(error, "errno", None)
    return abs(code) if isinstance(code, int) else 0


def cloud_error(error: Exception, doing: str) -> CloudError:
    """Ceph's error as ours, with what it means."""
    code = code_of(error)
    return CloudError(_KINDS.get(code, ErrorKind.ENGINE), f"{doing}: {_WORDS.get(code) or error}")


@dataclass(eq=False)
class PoolUse:
    """A driver's use of a pool, for as long as the driver is open. Another pool of the same name has another one."""

    name: str
    data: str | None
    opening: threading.Lock = field(default_factory=threading.Lock)


class Session:
    """One connection to the cluster, with an I/O context for each use of a pool and thread. `others` are the addresses
    of this agent's former ones."""

    def __init__(self, access: ClusterAccess, others: Iterable[str] = ()) -> None:
        conf = {**OPTIONS, "mon host": access.mon_host, "key": access.key}
        self.rados = new_handle(f"client.{access.user}", conf)
        self.rados.connect()
        # Seconds. While they elect a leader monitors turn everybody away; with Ceph's own 3 s, and then longer, the
        # next attempt came when this node had been without an answer for the length of a short lease. Who connects for
        # the first time has those: on a busy machine that takes a while.
        self.rados.conf_set("mon_client_hunt_interval", "1")
        self.address = _address(self.rados.get_addrs())
        self._told = " ".join((self.address, *others))
        self._local = threading.local()
        self._registered: WeakSet[PoolUse] = WeakSet()

    def pool(self, access: ClusterAccess, use: PoolUse) -> Any:
        """This thread's I/O context of a pool; the pool is first told which node this session is of."""
        contexts: WeakKeyDictionary[PoolUse, Any] | None = getattr(self._local, "contexts", None)
        if contexts is None:
            contexts = self._local.contexts = WeakKeyDictionary()
        if use not in contexts or use not in self._registered:
            with use.opening:
                contexts[use] = self._open_registered(access.node, use)
        return contexts[use]

    def _open_registered(self, node: str, use: PoolUse) -> Any:
        context = self.open(use.name)
        if use not in self._registered:
            refuse_fenced(context, node)
            try:
                set_omap(context, names.SESSIONS, node, self._told)
            except rados.ObjectNotFound:
                # Only a pool that is gone has no room for an object: by its name was found one that was there before,
                # and now this session knows better.
                context = self.open(use.name)
                refuse_fenced(context, node)
                set_omap(context, names.SESSIONS, node, self._told)
            self._registered.add(use)
        return context

    @property
    def registered(self) -> bool:
        """Whether some pool knows which node it is of: it was let in, and will be found if that node is cut off."""
        return bool(self._registered)

    def open(self, pool: str) -> Any:
        """An I/O context of a pool.

        While the pool is full, what frees room is carried out and what needs some fails; else both would wait for room.
        """
        context = self.rados.open_ioctx(pool)
        context.set_osdmap_full_try()
        return context

    def end(self) -> None:
        with suppress(rados.Error):
            self.rados.shutdown()


class Cluster:
    """`run` carries out blocking work. Pools that have a driver are those that a node is fenced off from."""

    def __init__(self, access: ClusterAccess) -> None:
        self.access = access
        self._uses: set[PoolUse] = set()
        self._threads = ThreadPoolExecutor(THREADS, f"rbd-{access.cluster}")
        self._long_threads = ThreadPoolExecutor(LONG_THREADS, f"rbd-long-{access.cluster}")
        self._connecting = threading.Lock()
        self._session: Session | None = None
        self._former: deque[str] = deque(maxlen=FORMER)
        """Addresses of sessions that are asked nothing new, and may have work under way: those, too, can be cut off."""
        self.closed = False

    def pools(self) -> list[str]:
        """Those with images."""
        return sorted({use.name for use in self._uses})

    def data_pools(self) -> list[str]:
        """Those where erasure-coded pools have their data."""
        return sorted({use.data for use in self._uses if use.data is not None})

    def join(self, pool: str, data: str | None) -> PoolUse:
        """A session can do what its key was allowed when it began: a pool more is for the next one."""
        use = PoolUse(pool, data)
        self._uses.add(use)
        with self._connecting:
            self._retire(self._session)
        return use

    async def leave(self, use: PoolUse) -> bool:
        """True if that was the last one, and the connection is closed."""
        self._uses.discard(use)
        if self._uses or self.closed:
            return False
        self.closed = True
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._threads, self._end)
        self._threads.shutdown(wait=False)
        self._long_threads.shutdown(wait=False)
        return True

    async def run(
        self,
        doing: str,
        work: Callable[[Session], Result],
        *,
        stop: threading.Event | None = None,
        long: bool = False,
    ) -> Result:
        """In a thread. Cancelled, it sets `stop` and waits for the thread: nothing goes on unseen.

        What is `long` does not keep questions waiting.

        That takes as long as the library's time limits at most.
        """
        threads = self._long_threads if long else self._threads
        thread = asyncio.get_running_loop().run_in_executor(threads, self._do, doing, work)
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            if stop is not None:
                stop.set()
            while not thread.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([thread])
            thread.cancelled() or thread.exception()
            raise

    def _do(self, doing: str, work: Callable[[Session], Result]) -> Result:
        with explained(doing):
            session = self._connected()
            try:
                return work(session)
            except (rados.Error, rbd.Error) as error:
                if code_of(error) in _ENDS_SESSION:
                    with self._connecting:
                        self._retire(session)
                raise

    def _connected(self) -> Session:
        with self._connecting:
            if self.closed:
                raise CloudError(ErrorKind.UNAVAILABLE, "the connection to the storage cluster is closed")
            if self._session is None:
                self._session = Session(self.access, self._former)
            return self._session

    def _retire(self, session: Session | None) -> None:
        """Others may be in the middle of a call of it, or have an image open: it is left to them, and to whoever
        collects it."""
        if session is not None and self._session is session:
            self._session = None
            self._former.append(session.address)
            self._threads.submit(_let_go, session)

    def _end(self) -> None:
        with self._connecting:
            session, self._session = self._session, None
        if session is not None:
            session.end()


def _let_go(session: Session) -> None:
    """The last who holds it closes its connections, which takes a moment: that is to be a thread."""


@contextmanager
def explained(doing: str) -> Iterator[None]:
    try:
        yield
    except (rados.Error, rbd.Error) as error:
        raise cloud_error(error, doing) from error


def command(session: Session, asked: Mapping[str, Any]) -> Any:
    """The monitors' answer. `CloudError` if they refuse."""
    code, answer, words = session.rados.mon_command(json.dumps({**asked, "format": "json"}), b"")
    if code != 0:
        raise cloud_error(rados.Error(words, abs(code)), asked["prefix"])
    text = answer.decode().strip()
    # Pacific's monitors answer `osd blocklist ls` with a second, empty list behind the first.
    return json.JSONDecoder().raw_decode(text)[0] if text else None


def omap(context: Any, name: str) -> dict[str, str]:
    """All of an object's omap; nothing of one that is not there."""
    return {key: value.decode() for key, value in omap_bytes(context, name).items()}


def omap_bytes(context: Any, name: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    after = ""
    while True:
        with rados.ReadOpCtx() as operation:
            rows, _ = context.get_omap_vals(operation, after, "", 1000)
            try:
                context.operate_read_op(operation, name)
            except rados.ObjectNotFound:
                return found
            page = {str(key): bytes(value or b"") for key, value in rows}
        if not page:
            return found
        found |= page
        after = max(page)


def set_omap(context: Any, name: str, key: str, value: str) -> None:
    """Also in a pool that is full: who has what is to be known there above all."""
    with rados.WriteOpCtx() as operation:
        context.set_omap(operation, (key,), (value.encode(),))
        context.operate_write_op(operation, name, flags=FULL_FORCE)


def remove_omap(context: Any, name: str, key: str) -> None:
    with rados.WriteOpCtx() as operation:
        context.remove_omap_keys(operation, (key,))
        with suppress(rados.ObjectNotFound):
            context.operate_write_op(operation, name)


def refuse_fenced(context: Any, node: str) -> None:
    """`CloudError(CONFLICT)` if this node is to keep away."""
    with rados.ReadOpCtx() as operation:
        rows, _ = context.get_omap_vals_by_keys(operation, (node,))
        try:
            context.operate_read_op(operation, names.FENCED)
        except rados.ObjectNotFound:
            return
        if dict(rows):
            raise CloudError(
                ErrorKind.CONFLICT, f"node {node} is cut off from this storage cluster until it is let back in"
            )


def _address(text: str) -> str:
    """`v2:127.0.0.1:0/123` as the blocklist has it: without the protocol."""
    first = text.strip("[]").split(",")[0]
    return first.split(":", 1)[1] if first.startswith(("v1:", "v2:")) else first
