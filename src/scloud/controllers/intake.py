"""Nodes' reports on their way into the database: those that arrive while one is written go together, as the next."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from scloud.controllers import reports
from scloud.model.observed import Observed
from scloud.store.database import Store


class Intake:
    """`take` of several nodes may run at the same time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, list[Observed]] = {}
        self._failed: dict[str, Exception] = {}
        self._turn = asyncio.Lock()

    async def take(self, node: str, items: Iterable[Observed]) -> None:
        """Returns when a node's observations are in the database; raises what kept this node's from getting there."""
        self._waiting.setdefault(node, []).extend(items)
        async with self._turn:
            if self._waiting.get(node):
                taken, self._waiting = self._waiting, {}
                # Others' observations are among them: it goes on if this caller is cancelled.
                await asyncio.shield(asyncio.get_running_loop().create_task(self._write(taken)))
        if (error := self._failed.pop(node, None)) is not None:
            raise error

    async def _write(self, taken: dict[str, list[Observed]]) -> None:
        """All nodes' at once; if that fails, each by itself, so that what is wrong with one is its own."""
        taken = {node: items for node, items in taken.items() if items}
        if len(taken) > 1:
            try:
                await self._store.write(lambda tx: reports.take_in(tx, taken))
                return
            except Exception:
                pass  # found again below, with the node it comes from
        for node, items in taken.items():
            try:
                await self._store.write(lambda tx, node=node, items=items: reports.take_in(tx, {node: items}))  # type: ignore[misc]
            except Exception as error:
                self._failed[node] = error
