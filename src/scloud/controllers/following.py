"""Carries every commit into the directory, and from there to the nodes concerned."""

from __future__ import annotations

import asyncio

from scloud.controllers.directory import Directory
from scloud.controllers.sessions import Sessions
from scloud.store.database import Store


class _Batch:
    """Keys that are taken in together; `done` once what they change has been marked at its nodes."""

    __slots__ = ("done", "keys")

    def __init__(self) -> None:
        self.keys: dict[str, None] = {}
        self.done = asyncio.Event()


class Following:
    """`run` for ever; `touched` with what a commit has changed."""

    def __init__(self, store: Store, directory: Directory, sessions: Sessions) -> None:
        self._store = store
        self._directory = directory
        self._sessions = sessions
        self._next = _Batch()
        self._now: _Batch | None = None
        """What is being taken in."""
        self._wake = asyncio.Event()

    def touched(self, key: str) -> None:
        """`kind/id`."""
        self._next.keys[key] = None
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._now, self._next = self._next, _Batch()
            keys = list(self._now.keys)
            await self._store.read(lambda tx, keys=keys: self._directory.refresh(tx, keys))  # type: ignore[misc]
            self._publish()
            self._now.done.set()
            self._now = None

    def _publish(self) -> None:
        changed, self._directory.changed = self._directory.changed, set()
        for node, key in changed:
            session = self._sessions.get(node)
            if session is not None:
                session.mark(key)

    async def caught_up(self) -> None:
        """Returns once every commit until now has been marked at its nodes.

        Later ones are not waited for: while thousands of nodes arrive there is always a later one, and each that waits
        is woken once.
        """
        last = self._next if self._next.keys else self._now
        if last is not None:
            await last.done.wait()
