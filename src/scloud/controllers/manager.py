"""The manager's controllers, put together: they hear of changes, act on due work, and watch the nodes.

Nothing here is remembered that the database does not know: a manager killed at any line is replaced by its next start.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from scloud.controllers import deadlines, imports, node_state, placement, serving, snapshot_schedule, trash
from scloud.controllers.bases import Bases
from scloud.controllers.directory import Directory
from scloud.controllers.following import Following
from scloud.controllers.ha.controller import HaController
from scloud.controllers.image_import import ImageImporter, ImageStore
from scloud.controllers.intake import Intake
from scloud.controllers.migration import Migrator
from scloud.controllers.moving import Mover
from scloud.controllers.network_wait import NetworkWait
from scloud.controllers.relocation.controller import Relocator
from scloud.controllers.sessions import Session, Sessions
from scloud.controllers.settings import Settings
from scloud.controllers.storage.controller import StorageController
from scloud.controllers.waiters import Waiters
from scloud.model.errors import CloudError
from scloud.model.kinds import Kind, State
from scloud.model.observed import Observed
from scloud.store import incidents, operations, relocations, tokens
from scloud.store.database import Store, Tx
from scloud.store.operations import WorkItem
from scloud.store.resources import find

log = logging.getLogger(__name__)
IN_DATABASE = {str(Kind.DISK): serving.work, "trash": trash.work, "schedule": snapshot_schedule.work}
"""Work that is a transaction and nothing else."""
LOADS_S = 1.0
"""Nodes tell their load with each heartbeat, once a second."""


class Manager:
    """Start with `await run()`; it ends when cancelled. All state is in `store`; `images` holds the image files."""

    def __init__(self, store: Store, images: ImageStore, *, epoch: int, settings: Settings | None = None) -> None:
        self.store = store
        self.images = images
        self.epoch = epoch
        self.settings = settings or Settings()
        self.directory = Directory()
        self.sessions = Sessions()
        self.following = Following(store, self.directory, self.sessions)
        self.waiters = Waiters()
        self.revisions = itertools.count(1).__next__
        self.importer = ImageImporter(store, images)
        self._intake = Intake(store)
        self.bases = Bases(store, self.sessions)
        self.mover = Mover(store, self.settings.trash_hours * 3600)
        self.network = NetworkWait(store, self.sessions, self.directory, self.settings.network_settle_s)
        self.migrator = Migrator(store, self.directory, self.network)
        self.relocator = Relocator(store, self.loads, self.settings.relocation_look_s)
        self.storage = StorageController(store, self.sessions)
        caught_up = self.following.caught_up
        self.ha = HaController(store, self.sessions, self.directory, caught_up, self.loads, self._give_up)
        self._loads: placement.Loads | None = None
        self._loads_at = 0.0
        self._work_event = asyncio.Event()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._started_at = 0.0
        self._arrived_at = -math.inf
        self._missing_since: dict[str, float] = {}
        self.ready = asyncio.Event()

    # --- life

    async def run(self) -> None:
        """Load, then work until cancelled."""
        self.store.listeners.append(self._on_commit)
        try:
            await self.store.write(imports.recover)
            await self.store.read(self.directory.load)
            self.directory.changed.clear()
            self._started_at = asyncio.get_running_loop().time()
            self.ready.set()
            async with asyncio.TaskGroup() as group:
                group.create_task(self.following.run())
                group.create_task(self._work_forever())
                group.create_task(self._tick_forever())
                group.create_task(self.storage.run())
                group.create_task(self.ha.run())
        finally:
            self.store.listeners.remove(self._on_commit)
            for task in list(self._running.values()):
                task.cancel()

    def _on_commit(self, keys: Iterable[str]) -> None:
        for key in keys:
            kind, _, id = key.partition("/")
            self.ha.touched(kind, id)
            if kind in (Kind.STORAGE_CLUSTER, Kind.POOL, Kind.NODE):
                self.storage.touched(kind, id)
            if kind == "work":
                self._work_event.set()
            elif kind == "operation":
                self.waiters.wake(key)
            elif kind == "event":
                self.waiters.wake("events")
            elif kind == "status":
                continue
            else:
                self.following.touched(key)
                self.waiters.wake(key)

    # --- work

    async def _work_forever(self) -> None:
        while True:
            try:
                await self._work_once()
            except Exception:
                log.exception("looking for work failed; it is tried again")
                await asyncio.sleep(self.settings.tick_s)

    async def _work_once(self) -> None:
        self._work_event.clear()
        items = [item for item in await self.store.read(operations.due) if item.key not in self._running]
        vms = [item for item in items if item.key.startswith("vm/")]
        if vms:
            await self._place_all(vms)
        for item in items:
            if not item.key.startswith("vm/"):
                self._begin(item)
        if not items:
            await self._wait_for_work()

    async def _place_all(self, items: list[WorkItem]) -> None:
        """In one transaction; if that fails, one by one, so that what is wrong with one VM is its own."""
        loads = self.loads()
        try:
            await self.store.write(lambda tx: _place(tx, items, loads))
            return
        except CloudError as error:
            log.warning("placement of %d VMs failed: %s", len(items), error)
        except Exception:
            log.exception("placement of %d VMs failed", len(items))
        for item in items:
            try:
                await self.store.write(lambda tx, item=item: _place(tx, [item], loads))  # type: ignore[misc]
            except Exception:
                log.exception("placement of %s failed; it is tried again", item.key)
                delay = min(60.0, 0.5 * 2 ** min(item.attempts, 8))
                await self.store.write(lambda tx, item=item, d=delay: operations.retry(tx, item, delay=d))  # type: ignore[misc]

    async def _wait_for_work(self) -> None:
        due = await self.store.read(operations.next_due)
        wait = 3600.0 if due is None else max(due - self.store.clock(), 0.01)
        if due is not None and due <= self.store.clock():
            wait = 0.2  # only items that are being worked on
        try:
            async with asyncio.timeout(wait):
                await self._work_event.wait()
        except TimeoutError:
            pass

    def loads(self) -> placement.Loads:
        """How busy each connected node is, smoothed; looked at anew once a second, and kept nowhere else."""
        now = asyncio.get_running_loop().time()
        if self._loads is None or now - self._loads_at > LOADS_S:
            self._loads = {session.node: session.smoothed for session in self.sessions}
            self._loads_at = now
        return self._loads

    def _begin(self, item: WorkItem) -> None:
        task = asyncio.get_running_loop().create_task(self._handle(item))
        self._running[item.key] = task
        task.add_done_callback(lambda done: self._ended(item.key))

    def _ended(self, key: str) -> None:
        self._running.pop(key, None)
        self._work_event.set()

    async def _handle(self, item: WorkItem) -> None:
        """One item of any other kind, in its own task: a slow one holds up none."""
        kind, _, id = item.key.partition("/")
        try:
            done = True
            if kind in IN_DATABASE:
                await self.store.write(lambda tx: self._in_database(tx, item, IN_DATABASE[kind]))
                return
            if kind == Kind.IMAGE:
                await self.importer.work(id)
            elif kind == "base":
                await self.bases.work(id)
            elif kind == "move":
                done = await self.mover.work(id)
            elif kind == "drain":
                await self.relocator.drain(id)
            elif kind == "rebalance":
                await self.relocator.rebalance(id)
            elif kind == "migrate":
                await self.following.caught_up()
                done = await self.migrator.work(id)
            elif kind in (Kind.NIC, Kind.SECURITY_GROUP, Kind.VPC, Kind.SUBNET):
                await self.following.caught_up()
                done = await self.network.work(Kind(kind), id)
            if done:
                await self.store.write(lambda tx: operations.finish(tx, item))
            else:
                await self.store.write(lambda tx: operations.retry(tx, item, delay=0.2))
        except Exception:
            log.exception("work on %s failed; it is tried again", item.key)
            delay = min(60.0, 0.5 * 2 ** min(item.attempts, 8))
            await self.store.write(lambda tx: operations.retry(tx, item, delay=delay))

    @staticmethod
    def _in_database(tx: Tx, item: WorkItem, work: Callable[[Tx, str], None]) -> None:
        work(tx, item.key.partition("/")[2])
        operations.finish(tx, item)

    # --- nodes

    async def connected(self, session: Session, have: dict[str, str]) -> None:
        """A node is there: when it is rid of what it must not have, it is told its wishes."""
        await self.sessions.add(session)
        self._missing_since.pop(session.node, None)
        self._arrived_at = asyncio.get_running_loop().time()
        have = await self.ha.let_in(session, have)
        await self.store.write(lambda tx: node_state.arrived(tx, session.node, session.facts))
        await self.following.caught_up()
        session.start(have)

    def disconnected(self, session: Session) -> None:
        session.close()
        self.ha.gone(session)
        if self.sessions.remove(session):
            self._missing_since[session.node] = asyncio.get_running_loop().time()

    async def report(self, node: str, items: Iterable[Observed]) -> None:
        """Take a node's observations into the database; returns when they are in it."""
        items = tuple(items)
        self.storage.reported(node, items)
        await self._intake.take(node, items)

    async def _tick_forever(self) -> None:
        last_swept = 0.0
        while True:
            await asyncio.sleep(self.settings.tick_s)
            try:
                await self._tick()
                if self.store.clock() - last_swept > 3600:
                    last_swept = self.store.clock()
                    await self.store.write(self._sweep)
            except Exception:
                log.exception("the periodic check failed; it is tried again")

    async def _tick(self) -> None:
        now = asyncio.get_running_loop().time()
        for session in self.sessions.silent(now):
            log.warning(
                "node %s has been silent for %.0f s; its connection is given up", session.node, now - session.last_heard
            )
            await self._give_up(session)
        lost = await self.store.read(lambda tx: self._lost_nodes(tx, now))
        for node in lost:
            since = now - self._missing_since.get(node, self._started_at)
            await self.store.write(partial(self._lost, node, since))
        overdue = await self.store.read(lambda tx: operations.overdue(tx, tx.now))
        if overdue:
            connected = {session.node for session in self.sessions}
            await self.store.write(lambda tx: deadlines.expire(tx, overdue, connected))

    def _lost(self, node: str, since_s: float, tx: Tx) -> None:
        """Unless it has connected since it was looked for: what `connected` has written then would be written over."""
        if node not in self.sessions:
            node_state.lost(tx, node, since_s)

    async def _give_up(self, session: Session) -> None:
        self.disconnected(session)
        await session.hang_up()

    def _lost_nodes(self, tx: Tx, now: float) -> list[str]:
        grace = self.settings.node_grace_s
        if self._gathers(now):
            return []
        return [
            node
            for node in node_state.ready_nodes(tx)
            if node not in self.sessions and now - self._missing_since.get(node, self._started_at) > grace
        ]

    def _gathers(self, now: float) -> bool:
        """A manager that has just begun to lead, and whom nodes still dial one after the other: thousands take longer
        than the grace, and to call each lost, and found again, would take it longer still."""
        arriving = now - self._arrived_at < self.settings.node_grace_s
        return arriving and now - self._started_at < self.settings.gathering_s

    def _sweep(self, tx: Tx) -> None:
        day = 86400.0
        operations.forget_old(
            tx,
            events_before=tx.now - self.settings.event_days * day,
            operations_before=tx.now - self.settings.operation_days * day,
        )
        relocations.forget_old(tx, tx.now - self.settings.relocation_days * day)
        incidents.forget_old(tx, tx.now - self.settings.incident_days * day)
        tokens.forget_requests(tx, tx.now - self.settings.idempotency_hours * 3600)

    async def call(self, node: str | None, what: str, method: str, timeout_s: float = 10.0, **params: Any) -> Any:
        """Ask the node that has something; UNAVAILABLE if it is not connected."""
        return await self.sessions.need(node, what).call(method, timeout_s, **params)


def _place(tx: Tx, items: list[WorkItem], loads: placement.Loads) -> None:
    placer = placement.Placer(tx, loads)
    for item in items:
        row = find(tx, item.key.partition("/")[2])
        if row is not None and row.node is None and row.state == State.PENDING:
            placer.place(row)
        operations.finish(tx, item)
