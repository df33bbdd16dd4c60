"""What has become of desired objects, as last reported, and which of it the manager has not heard yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from scloud.model.observed import Observed


class Board:
    """`changed` is set whenever there is something new to tell."""

    def __init__(self) -> None:
        self._items: dict[str, Observed] = {}
        self._unsent: set[str] = set()
        self._network_revision = 0
        self._watched: dict[str, list[tuple[Callable[[Observed], bool], asyncio.Future[None]]]] = {}
        self.changed = asyncio.Event()

    def put(self, item: Observed) -> None:
        if self._items.get(item.key) != item:
            self._items[item.key] = item
            self._unsent.add(item.key)
            self.changed.set()
        for check, future in self._watched.get(item.key, ()):
            if not future.done() and check(item):
                future.set_result(None)

    async def until(self, key: str, check: Callable[[Observed], bool]) -> None:
        """Return when something is put for the key that passes; what was put before does not count."""
        entry = (check, asyncio.get_running_loop().create_future())
        self._watched.setdefault(key, []).append(entry)
        try:
            await entry[1]
        finally:
            self._watched[key].remove(entry)
            if not self._watched[key]:
                del self._watched[key]

    def get(self, key: str) -> Observed | None:
        return self._items.get(key)

    def forget(self, key: str) -> None:
        self._items.pop(key, None)
        self._unsent.discard(key)

    @property
    def network_revision(self) -> int:
        """Of the desired state whose network objects are all in the switch, in the numbering of this connection."""
        return self._network_revision

    @network_revision.setter
    def network_revision(self, revision: int) -> None:
        if revision != self._network_revision:
            self._network_revision = revision
            self.changed.set()

    def everything(self) -> tuple[Observed, ...]:
        """All items, for the first report of a connection; nothing is unsent then."""
        self._unsent.clear()
        self.changed.clear()
        return tuple(self._items.values())

    def news(self) -> tuple[Observed, ...]:
        """What was put since it was last asked."""
        keys, self._unsent = self._unsent, set()
        self.changed.clear()
        return tuple(self._items[key] for key in sorted(keys) if key in self._items)
