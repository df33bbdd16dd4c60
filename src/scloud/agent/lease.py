"""Self-fencing: VMs whose disks others may open run here only as long as that is certainly right.

A node asks each storage cluster again and again whether it was cut off: while it hears that it was not, the VMs with
disks there may run. Without an answer for as long as its lease, and without the manager as well, it switches them off:
it is cut off from everything, and others may be about to start them. While only the manager is away, they go on.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Literal, Protocol

from scloud.agent.journal import Journal
from scloud.agent.stores import Stores
from scloud.model.desired import DesiredDisk, DesiredStore
from scloud.model.errors import CloudError, ErrorKind

log = logging.getLogger(__name__)

ASKED, MANAGER = ("disks", "monitors"), "manager"
ASKS = 4
"""How often a lease is renewed in its own time."""
MANAGER_S = 2.0
"""A manager that does not answer within so many seconds is away."""
LEAST_S = 0.01
"""Between two looks at who has answered."""
IDLE_S = 5.0
"""How soon a storage cluster that this node is newly told of has a lease."""
Answer = Literal["kept", "cut off", "silent"]


class Guests(Protocol):
    async def switch_off(self, disks: Iterable[str], why: str) -> list[str]:
        """Every running VM that has one of these disks; `CloudError` if that is not certain."""
        ...


class Leases:
    """`run` until cancelled. `manager_answers` asks it anew, over a connection of its own."""

    def __init__(
        self,
        stores: Stores,
        journal: Journal,
        guests: Guests,
        manager_answers: Callable[[], Awaitable[bool]],
    ) -> None:
        self._stores = stores
        self._journal = journal
        self._guests = guests
        self._manager_answers = manager_answers
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                for key, item in self._journal.desired.items():
                    if isinstance(item, DesiredStore) and item.lease_s > 0 and key not in self._tasks:
                        self._tasks[key] = task = loop.create_task(self._keep(key), name=f"lease {key}")
                        task.add_done_callback(partial(self._ended, key))
                await asyncio.sleep(IDLE_S)
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, key: str, task: asyncio.Task[None]) -> None:
        self._tasks.pop(key, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("lease %s: it is begun anew after an error", key, exc_info=error)

    async def _keep(self, key: str) -> None:
        """One storage cluster's lease, until it has none here any more. Its disks and its monitors are asked, and the
        manager when they have been silent, each once at a time and whatever the others do: while a node's OSDs have
        just died, or monitors elect a leader, only some answer."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        asking: dict[str, tuple[float, asyncio.Task[Answer]]] = {}
        asked: dict[str, float] = {}
        manager_failed = given_up = -math.inf
        """When the manager was asked last and has not kept the lease; when VMs were given up."""
        try:
            while (store := self._store(key)) is not None:
                step = store.lease_s / ASKS
                now, doubt, end = loop.time(), renewed + store.lease_s - MANAGER_S, renewed + store.lease_s
                wanted = [what for what in (*ASKED, *([MANAGER] if now >= doubt else [])) if what not in asking]
                for what in [what for what in wanted if now - asked.get(what, -math.inf) >= step]:
                    asked[what] = now
                    asking[what] = now, loop.create_task(self._ask(store, what), name=f"lease {key}: {what}")
                turns = [asked[what] + step for what in wanted if what not in asking]
                until = min([now + step, *turns, *(at for at in (doubt, end) if at > now)])
                await _first([task for _, task in asking.values()], until - now)
                renewed = max(renewed, await self._heard(store, asking))
                if MANAGER in asked and MANAGER not in asking:
                    manager_failed = asked[MANAGER]
                silent = loop.time() - renewed
                # Whoever did not run for a while itself, and has asked nobody, knows nothing.
                certain = manager_failed >= renewed + store.lease_s - MANAGER_S
                if certain and silent >= store.lease_s and loop.time() - given_up >= step:
                    given_up = loop.time()
                    await self._give_up(
                        store, f"neither their storage cluster nor the manager has answered for {silent:.1f} s"
                    )
        finally:
            for _, task in asking.values():
                task.cancel()

    async def _heard(self, store: DesiredStore, asking: dict[str, tuple[float, asyncio.Task[Answer]]]) -> float:
        """When the last question was asked that has an answer by now, and this node was not cut off; 0 if none has."""
        kept = 0.0
        for what, (asked_at, task) in list(asking.items()):
            if not task.done():
                continue
            del asking[what]
            answer = task.result()
            if answer == "kept":
                kept = max(kept, asked_at)
            elif answer == "cut off":
                await self._give_up(store, "this node was cut off from their storage cluster")
        return kept

    def _store(self, key: str) -> DesiredStore | None:
        item = self._journal.desired.get(key)
        return item if isinstance(item, DesiredStore) and item.lease_s > 0 and not item.absent else None

    async def _ask(self, store: DesiredStore, what: str) -> Answer:
        """A thread inside may hang for longer than a lease: nobody waits for it."""
        if not self._disks(store):
            return "kept"
        if what == MANAGER:
            return "kept" if await self._manager_answers() else "silent"
        try:
            for pool in store.pools[:1]:
                storage = self._stores.of(pool.id)
                if await (storage.is_cut_off() if what == "monitors" else storage.is_refused()):
                    return "cut off"
        except CloudError as error:
            return "cut off" if error.kind == ErrorKind.CONFLICT else "silent"
        except OSError:
            return "silent"
        return "kept"

    def _disks(self, store: DesiredStore) -> list[str]:
        pools = {pool.id for pool in store.pools}
        items = self._journal.desired.values()
        return [item.id for item in items if isinstance(item, DesiredDisk) and item.pool in pools]

    async def _give_up(self, store: DesiredStore, why: str) -> None:
        try:
            await self._guests.switch_off(self._disks(store), why)
        except (CloudError, OSError) as error:
            log.warning("VMs could not be switched off although %s: %s", why, error)


async def _first(tasks: list[asyncio.Task[Answer]], seconds: float) -> None:
    """Returns when one of them has ended, or after so long, and a moment at least."""
    if tasks:
        await asyncio.wait(tasks, timeout=max(seconds, LEAST_S), return_when=asyncio.FIRST_COMPLETED)
    else:
        await asyncio.sleep(max(seconds, LEAST_S))
