"""The nodes that are connected: one session each, which tells the node its wishes and hears what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from scloud.controllers.directory import Directory
from scloud.link.channel import Channel
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.observed import NodeFacts, NodeLoad
from scloud.model.wire import Call, Desired, Reply, Report
from scloud.scheduler.load import IDLE, Load, smooth

SILENCE_S = 6.0
"""A connection that brings no heartbeat (one is due every second) for so long is given up."""
NETWORK_KINDS = ("vpc/", "port/", "group/")
MAX_MESSAGE_OBJECTS = 2000


class Session:
    """One node's control connection. Its own task sends, so that a node that does not read holds up nobody."""

    def __init__(
        self,
        node: str,
        channel: Channel,
        directory: Directory,
        epoch: int,
        facts: NodeFacts,
        revisions: Callable[[], int],
    ) -> None:
        self.node = node
        self.facts = facts
        self.load: NodeLoad | None = None
        """As of the last heartbeat."""
        self.smoothed: Load = IDLE
        self.last_heard = asyncio.get_running_loop().time()
        self._load_at = 0.0
        self.acked = 0
        """The highest revision whose network objects are in the node's switch."""
        self._channel = channel
        self._directory = directory
        self._epoch = epoch
        self._revisions = revisions
        self._sent: dict[str, str] = {}
        self._dirty: set[str] = set()
        self._full = True
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._network_revision = 0
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self.closed = False

    def start(self, have: dict[str, str]) -> None:
        """Begin with what the node says it has."""
        self._sent = dict(have)
        self._dirty = self._directory.wishes(self.node) | set(have)
        self._wake.set()

    def mark(self, key: str) -> None:
        self._dirty.add(key)
        self._wake.set()

    async def send_forever(self) -> None:
        """Tell the node what differs from what it was told, whenever something does."""
        while not self.closed:
            await self._wake.wait()
            self._wake.clear()
            while self._dirty or self._full:
                await self._send_some()

    async def _send_some(self) -> None:
        # Disks and VMs go in one message: a node that says nobody has a disk open has heard whose it was last.
        keys = sorted(self._dirty, key=lambda key: (key.startswith(NETWORK_KINDS), key))[:MAX_MESSAGE_OBJECTS]
        self._dirty.difference_update(keys)
        items, drops = [], []
        for key in keys:
            entry = self._directory.wish(self.node, key)
            if entry is not None:
                if self._sent.get(key) != entry[1]:
                    items.append(entry[0])
                    self._sent[key] = entry[1]
            elif self._sent.pop(key, None) is not None:
                drops.append(key)
        full = self._full and not self._dirty
        if full:
            self._full = False
        elif not items and not drops:
            self._changed()
            return
        revision = self._revisions()
        network = any(key.startswith(NETWORK_KINDS) for key in keys)
        if network or full:
            self._network_revision = revision
        await self._channel.send(
            Desired(epoch=self._epoch, revision=revision, full=full, set=tuple(items), drop=tuple(drops))
        )
        self._changed()

    def hear_load(self, load: NodeLoad) -> None:
        """One heartbeat's."""
        now = asyncio.get_running_loop().time()
        self.smoothed = smooth(None if self.load is None else self.smoothed, load, now - self._load_at)
        self.load, self._load_at = load, now

    def hear(self, report: Report) -> None:
        if report.network_revision > self.acked:
            self.acked = report.network_revision
            self._changed()

    def answer(self, reply: Reply) -> None:
        future = self._calls.pop(reply.call, None)
        if future is None or future.done():
            return
        if reply.error is not None:
            kind, message = reply.error
            known = kind in ErrorKind.__members__.values()
            future.set_exception(CloudError(ErrorKind(kind) if known else ErrorKind.ENGINE, message))
        else:
            future.set_result(reply.result)

    async def call(self, method: str, timeout_s: float = 10.0, /, **params: Any) -> Any:
        """Ask the node; UNAVAILABLE if it goes away meanwhile, TIMED_OUT if it does not answer in time."""
        number = next(self._numbers)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        try:
            async with asyncio.timeout(timeout_s):
                await self._channel.send(Call(epoch=self._epoch, call=number, method=method, params=params))
                return await future
        except TimeoutError as error:
            raise CloudError(
                ErrorKind.TIMED_OUT, f"the node did not answer '{method}' within {timeout_s:.0f} s; try again"
            ) from error
        except OSError as error:
            raise CloudError(ErrorKind.UNAVAILABLE, f"the node's connection broke: {error}; try again") from error
        finally:
            self._calls.pop(number, None)

    async def network_settled(self) -> None:
        """Returns once everything marked until now is in the node's switch; OSError if the connection ends first."""
        while self._dirty and not self.closed:
            await self._wait()
        target = self._network_revision
        while self.acked < target:
            if self.closed:
                raise ConnectionError("the node's connection ended")
            await self._wait()

    async def _wait(self) -> None:
        self._moved.clear()
        await self._moved.wait()

    def _changed(self) -> None:
        self._moved.set()

    def close(self) -> None:
        self.closed = True
        for future in self._calls.values():
            if not future.done():
                future.set_exception(CloudError(ErrorKind.UNAVAILABLE, "the node's connection ended; try again"))
        self._wake.set()
        self._changed()

    async def hang_up(self) -> None:
        self.close()
        with contextlib.suppress(OSError):
            await self._channel.close()


class Sessions:
    """All of them, by node id."""

    def __init__(self) -> None:
        self._by_node: dict[str, Session] = {}

    def __contains__(self, node: str) -> bool:
        return node in self._by_node

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_node.values()))

    def __len__(self) -> int:
        return len(self._by_node)

    def get(self, node: str | None) -> Session | None:
        return self._by_node.get(node) if node else None

    def need(self, node: str | None, what: str) -> Session:
        """The session of a node that something cannot be done without."""
        session = self.get(node)
        if session is None:
            raise CloudError(
                ErrorKind.UNAVAILABLE, f"{what}: its node is not connected; see `scloud node list`, then try again"
            )
        return session

    async def add(self, session: Session) -> None:
        """A node that dials anew replaces its old connection."""
        old = self._by_node.pop(session.node, None)
        self._by_node[session.node] = session
        if old is not None:
            await old.hang_up()

    def remove(self, session: Session) -> bool:
        """False if another connection of the node has taken its place already."""
        if self._by_node.get(session.node) is session:
            del self._by_node[session.node]
            return True
        return False

    def heard(self, within_s: float) -> int:
        """How many nodes have said something in the last so many seconds."""
        since = asyncio.get_running_loop().time() - within_s
        return sum(session.last_heard >= since for session in self._by_node.values())

    def silent(self, now: float) -> list[Session]:
        return [session for session in self._by_node.values() if now - session.last_heard > SILENCE_S]
