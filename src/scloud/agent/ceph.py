"""A node's part in storage clusters: its daemons made, kept running and taken away as `store/CLUSTER.NODE` says."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from scloud.agent.board import Board
from scloud.agent.deadlines import within
from scloud.agent.journal import Journal
from scloud.agent.work import Workers
from scloud.drivers.ceph.protocol import Access, CephDaemons, DaemonFacts
from scloud.model.desired import DesiredStore
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.observed import Observed

log = logging.getLogger(__name__)

FAILED_AFTER = 3
"""Tries in a row after which a store is reported to be in error; it is tried on all the same."""
WAIT_S = 1.0
"""How often it is looked whether those have come who are waited for."""
LOOK_S = 60.0
"""How often daemons that run are looked at, in case a death was missed, and for the size of their logs."""
HEALTHY_AFTER_S = 30.0
FIRST_DELAY_S = 0.2
LAST_DELAY_S = 10.0
"""A daemon that has lived long is started again at once; one that keeps dying waits twice as long each time."""


class NoCeph:
    """On a node that can be part of no storage cluster."""

    async def ensure(self, store: DesiredStore) -> dict[str, int]:
        raise CloudError(ErrorKind.ENGINE, f"this node cannot be part of storage clusters, such as {store.cluster}")

    async def remove(self, store: DesiredStore) -> None:
        """There is nothing."""

    async def numbers(self, store: DesiredStore) -> dict[str, int]:
        return {}

    async def died(self, cluster: str) -> str:
        return str(await asyncio.get_running_loop().create_future())

    async def daemons(self) -> list[DaemonFacts]:
        return []

    async def command(
        self, access: Access, target: str, command: dict[str, Any], data: bytes = b"", timeout_s: float = 30.0
    ) -> Any:
        raise CloudError(ErrorKind.UNAVAILABLE, f"this node cannot speak to storage clusters, such as {access.cluster}")

    async def close(self) -> None:
        """Nothing is held."""


class Ceph:
    """Handles keys `store/CLUSTER.NODE`. Stopping it leaves all daemons running."""

    def __init__(self, daemons: CephDaemons, journal: Journal, board: Board) -> None:
        self._daemons = daemons
        self._journal = journal
        self._board = board
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._deaths: dict[tuple[str, str], tuple[float, float]] = {}
        """(cluster, daemon) to when it last died and how long it was then waited."""
        self.workers = Workers(self._handle)

    def start(self) -> None:
        """Look at every store of the journal."""
        for key in self._journal.desired:
            if key.startswith("store/"):
                self.workers.wake(key)

    async def stop(self) -> None:
        watches, self._watches = list(self._watches.values()), {}
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        await self.workers.stop()

    async def _handle(self, key: str) -> float | None:
        while True:
            desired = self._journal.desired.get(key)
            self._unwatch(key)
            if not isinstance(desired, DesiredStore):
                return None
            try:
                if desired.absent:
                    await self._remove(key, desired)
                else:
                    await self._ensure(key, desired)
            except (CloudError, OSError) as error:
                waiting = isinstance(error, CloudError) and error.kind is ErrorKind.UNAVAILABLE
                await self._report(key, desired, error, waiting)
                if not waiting:
                    raise
                if self._journal.desired.get(key) is desired:
                    return self.workers.now() + WAIT_S
            if self._journal.desired.get(key) is desired:
                return None if desired.absent else self.workers.now() + LOOK_S

    async def _ensure(self, key: str, desired: DesiredStore) -> None:
        known = self._board.get(key)
        if known is None or known.generation != desired.generation:
            await self._put(key, desired, "working", "starting its daemons")
        try:
            what = f"starting the daemons of storage cluster {desired.cluster}"
            await within("daemons", what, self._daemons.ensure(desired))
        finally:
            # Even if not all of them run: those that do are to go on.
            self._watches[key] = asyncio.get_running_loop().create_task(self._watch(key, desired.cluster))
        await self._put(key, desired, "ready", "")

    async def _remove(self, key: str, desired: DesiredStore) -> None:
        await self._put(key, desired, "working", "being removed")
        what = f"removing the daemons of storage cluster {desired.cluster}"
        await within("daemons", what, self._daemons.remove(desired))
        self._board.put(Observed(key=key, generation=desired.generation, state="absent", settled=True))

    async def _report(self, key: str, desired: DesiredStore, error: Exception, waiting: bool) -> None:
        if waiting or self.workers.failures(key) + 1 < FAILED_AFTER:
            await self._put(key, desired, "working", str(error))
        else:
            await self._put(key, desired, "error", str(error))

    async def _put(self, key: str, desired: DesiredStore, state: Any, reason: str) -> None:
        numbers = await within("query", "looking at the node's OSDs", self._daemons.numbers(desired))
        self._board.put(
            Observed(
                key=key,
                generation=desired.generation,
                state=state,
                settled=state != "working",
                reason=reason,
                osds=numbers,
            )
        )

    # --- keeping them running

    def _unwatch(self, key: str) -> None:
        watch = self._watches.pop(key, None)
        if watch is not None:
            watch.cancel()

    async def _watch(self, key: str, cluster: str) -> None:
        """Wake the key when a daemon has died."""
        name = await self._daemons.died(cluster)
        now = self.workers.now()
        last, delay = self._deaths.get((cluster, name), (-HEALTHY_AFTER_S, 0.0))
        delay = 0.0 if now - last >= HEALTHY_AFTER_S else min(max(2 * delay, FIRST_DELAY_S), LAST_DELAY_S)
        self._deaths[cluster, name] = (now, delay)
        log.warning("%s of storage cluster %s died; it is started again in %.1f s", name, cluster, delay)
        await asyncio.sleep(delay)
        self.workers.wake(key, urgent=True)
