"""Commands to clusters through librados: connections that are kept, answers as JSON.

librados blocks, so each connection has threads of its own, and one cluster that hangs holds up no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import rados

from scloud.drivers.ceph.handle import new_handle
from scloud.drivers.ceph.protocol import Access
from scloud.drivers.ceph.target import check_target
from scloud.model.errors import CloudError, ErrorKind, invalid

CONNECT_S = 5.0
"""How long a connection may take: one to monitors that answer takes 0.02 s."""
OPERATION_S = 30
"""After so long librados itself gives up, and a thread is free again."""
THREADS = 4

_KINDS = {
    errno.EPERM: ErrorKind.FORBIDDEN,
    errno.EACCES: ErrorKind.FORBIDDEN,
    errno.ENOENT: ErrorKind.NOT_FOUND,
    errno.EEXIST: ErrorKind.CONFLICT,
    errno.EBUSY: ErrorKind.IN_USE,
    errno.EINVAL: ErrorKind.INVALID,
    errno.ENOSPC: ErrorKind.NO_CAPACITY,
    errno.EAGAIN: ErrorKind.UNAVAILABLE,
    errno.ETIMEDOUT: ErrorKind.UNAVAILABLE,
    errno.EINTR: ErrorKind.UNAVAILABLE,
    errno.ENOTCONN: ErrorKind.UNAVAILABLE,
    errno.ESHUTDOWN: ErrorKind.UNAVAILABLE,
}
_LOST = (errno.ENOTCONN, errno.ESHUTDOWN)


def refuse(code: int, words: str, what: str) -> NoReturn:
    """Raise for a command that was answered with an errno."""
    kind = _KINDS.get(abs(code), ErrorKind.ENGINE)
    name = errno.errorcode.get(abs(code), str(code))
    raise CloudError(kind, f"{what}: {words.strip() or name}")


class Connection:
    """To one cluster as one entity, such as `client.admin` or `mgr.n1`."""

    def __init__(self, access: Access, entity: str) -> None:
        self.access = access
        self._entity = entity
        self._threads = ThreadPoolExecutor(THREADS, f"ceph-{access.cluster}")
        self._handle: rados.Rados | None = None

    async def open(self) -> None:
        """`CloudError`: UNAVAILABLE if no quorum of monitors answers, FORBIDDEN if they do not take the key."""
        await self._in_thread(self._open, CONNECT_S * 2, "connecting")

    def _open(self) -> None:
        access = self.access
        options = {
            "fsid": access.fsid,
            "mon host": access.mon_host,
            "key": access.key,
            "keyring": "",
            "auth client required": "cephx",
            "client mount timeout": str(int(CONNECT_S)),
            "rados mon op timeout": str(OPERATION_S),
            "rados osd op timeout": str(OPERATION_S),
        }
        if not access.mon_host:
            raise invalid("mon_host", f"storage cluster {access.cluster} has no monitors yet")
        handle = new_handle(self._entity, options)
        try:
            handle.connect()
            found = handle.get_fsid()
            if access.fsid and found != access.fsid:
                raise CloudError(
                    ErrorKind.CONFLICT,
                    f"the monitors at {access.mon_host} are of another cluster: {found}, not {access.fsid}",
                )
        except (rados.Error, OSError) as error:
            handle.shutdown()
            code = abs(getattr(error, "errno", 0) or 0)
            if code in (errno.EPERM, errno.EACCES):
                raise CloudError(
                    ErrorKind.FORBIDDEN, f"storage cluster {access.cluster} does not take the key of {self._entity}"
                ) from error
            if code in (errno.EINVAL, errno.ENOENT):
                raise CloudError(
                    ErrorKind.INVALID, f"storage cluster {access.cluster} cannot be reached so: {error}"
                ) from error
            raise CloudError(
                ErrorKind.UNAVAILABLE,
                f"no quorum of the monitors of storage cluster {access.cluster} answers at {access.mon_host}",
            ) from error
        except CloudError:
            handle.shutdown()
            raise
        self._handle = handle

    async def command(self, target: str, command: dict[str, Any], data: bytes, timeout_s: float) -> Any:
        what = str(command.get("prefix", "?"))
        code, out, words = await self._in_thread(lambda: self._send(target, command, data), timeout_s, what)
        if code < 0:
            refuse(code, words, what)
        return answer_of(out, words)

    def _send(self, target: str, command: dict[str, Any], data: bytes) -> tuple[int, bytes, str]:
        handle = self._handle
        if handle is None:
            raise CloudError(ErrorKind.UNAVAILABLE, "the connection is closed")
        text = json.dumps({"format": "json", **command})
        kind, _, name = target.partition(".")
        try:
            match kind:
                case "mon" if not name:
                    code, out, words = handle.mon_command(text, data)
                case "mon":
                    code, out, words = handle.mon_command(text, data, target=name)
                case "mgr":
                    code, out, words = handle.mgr_command(text, data)
                case "osd":
                    code, out, words = handle.osd_command(int(name), text, data)
                case _:
                    code, out, words = handle.pg_command(name, text, data)
        except (rados.Error, OSError) as error:
            return -abs(getattr(error, "errno", 0) or errno.EIO), b"", str(error)
        return code, bytes(out), words if isinstance(words, str) else bytes(words).decode(errors="replace")

    async def _in_thread(self, work: Any, timeout_s: float, what: str) -> Any:
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(future)
        except TimeoutError as error:
            # The thread is freed by librados' own limit; its late answer interests nobody.
            future.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise CloudError(
                ErrorKind.UNAVAILABLE,
                f"storage cluster {self.access.cluster} did not answer '{what}' within {timeout_s:g} s",
            ) from error

    async def close(self) -> None:
        """At most as long as librados needs to say goodbye."""
        handle, self._handle = self._handle, None
        if handle is not None:
            with contextlib.suppress(CloudError, RuntimeError):
                await self._in_thread(handle.shutdown, CONNECT_S, "closing")
        self._threads.shutdown(wait=False, cancel_futures=True)


def answer_of(out: bytes, words: str) -> Any:
    """What a command has said: its JSON, or else its text, which some commands give beside the answer."""
    text = out.decode(errors="replace").strip()
    if not text:
        return words.strip()
    try:
        return json.loads(text)
    except ValueError:
        return text


class RadosControl:
    """`CephControl` of real clusters. One connection for each (cluster, user); a new key makes a new one."""

    def __init__(self) -> None:
        self._connections: dict[tuple[str, str], Connection] = {}
        self._locks: defaultdict[tuple[str, str], asyncio.Lock] = defaultdict(asyncio.Lock)

    async def command(
        self, access: Access, target: str, command: dict[str, Any], data: bytes = b"", timeout_s: float = 30.0
    ) -> Any:
        check_target(target)
        connection = await self._connection(access)
        try:
            return await connection.command(target, command, data, timeout_s)
        except CloudError as error:
            if error.kind in (ErrorKind.UNAVAILABLE, ErrorKind.FORBIDDEN):
                # Cut off, or its key taken away: the next one begins anew.
                await self._forget(access, connection)
            raise

    async def _connection(self, access: Access) -> Connection:
        key = (access.cluster, access.user)
        async with self._locks[key]:
            known = self._connections.get(key)
            if known is not None:
                if (known.access.fsid, known.access.key) == (access.fsid, access.key):
                    return known
                del self._connections[key]
                await known.close()
            fresh = Connection(access, f"client.{access.user}")
            try:
                await fresh.open()
            except BaseException:
                await fresh.close()
                raise
            self._connections[key] = fresh
            return fresh

    async def _forget(self, access: Access, connection: Connection) -> None:
        key = (access.cluster, access.user)
        if self._connections.get(key) is connection:
            del self._connections[key]
            await connection.close()

    async def close(self) -> None:
        connections, self._connections = list(self._connections.values()), {}
        await asyncio.gather(*(connection.close() for connection in connections))
