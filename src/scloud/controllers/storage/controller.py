"""Storage clusters: each is looked at and looked after by a task of its own, so that one that hangs harms only itself.

All that is wanted is in the database; what is kept here (reports of nodes, the pace of recovery, answers that seldom
change) comes again by itself after a restart.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from scloud.controllers.sessions import Sessions
from scloud.controllers.storage import leaving, rows
from scloud.controllers.storage.conclude import Round, conclude, not_answering
from scloud.controllers.storage.line import Line
from scloud.controllers.storage.load import Load, load
from scloud.controllers.storage.look import Look, look
from scloud.controllers.storage.planning import plan, requests, taken
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import Kind, State
from scloud.model.observed import Observed
from scloud.reconcile.ceph import auth, laggy
from scloud.reconcile.ceph.commands import Command, waves
from scloud.reconcile.ceph.figures import Track, track
from scloud.reconcile.ceph.view import Slow
from scloud.store.database import Store
from scloud.store.resources import all_of

log = logging.getLogger(__name__)

SOON_S, MOVING_S, CALM_S = 0.5, 1.5, 5.0
"""Between two looks: while something is being made, while data moves, and else."""
AWAY_S = 2.0
"""While the cluster does not answer."""
SLOW_S = 60.0
"""How long what seldom changes is believed without asking."""
FRESH_S = 3.0
"""How long somebody who asks for a look of this moment is kept waiting for it at most."""
REPAIR_S = 60.0
"""After so long a repair that shows no effect is asked for again."""


class StorageController:
    def __init__(self, store: Store, sessions: Sessions) -> None:
        self._store = store
        self._sessions = sessions
        self._keepers: dict[str, Keeper] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._reports: dict[str, Observed] = {}

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self._changed.clear()
                for row in await self._store.read(lambda tx: all_of(tx, Kind.STORAGE_CLUSTER, gone=True)):
                    if row.id not in self._tasks:
                        self._begin(row.id)
                await self._changed.wait()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _begin(self, id: str) -> None:
        keeper = Keeper(id, self._store, Line(self._sessions), self._reports)
        self._keepers[id] = keeper
        task = asyncio.get_running_loop().create_task(keeper.run())
        self._tasks[id] = task
        task.add_done_callback(lambda done: self._ended(id))

    def _ended(self, id: str) -> None:
        self._tasks.pop(id, None)
        self._keepers.pop(id, None)

    def touched(self, kind: str, id: str) -> None:
        """A row has changed: a cluster, a pool, or a node."""
        if kind == Kind.STORAGE_CLUSTER:
            self._wake(id)
            self._changed.set()
        elif kind in (Kind.POOL, Kind.NODE):
            for cluster in self._keepers:
                self._wake(cluster)

    def _wake(self, cluster: str) -> None:
        keeper = self._keepers.get(cluster)
        if keeper is not None:
            keeper.wake()

    async def look_now(self, id: str) -> None:
        """Return once a look that began after this call has been written down, at most some seconds later."""
        keeper = self._keepers.get(id)
        if keeper is not None:
            await keeper.look_now()

    def reported(self, node: str, items: Iterable[Observed]) -> None:
        """What a node says of its part in clusters."""
        for item in items:
            cluster, _, own = item.key.removeprefix("store/").rpartition(".")
            if item.key.startswith("store/") and own == node and self._reports.get(item.key) != item:
                self._reports[item.key] = item
                self._wake(cluster)


class Keeper:
    """One cluster's."""

    def __init__(self, id: str, store: Store, line: Line, reports: dict[str, Observed]) -> None:
        self._id = id
        self._store = store
        self._line = line
        self._reports = reports
        self._woken = asyncio.Event()
        self._slow: Slow | None = None
        self._slow_at = 0.0
        self._generation = 0
        self._track: Track | None = None
        self._repairs: dict[str, float] = {}
        self._laggy: dict[str, float] = {}
        """Placement groups that wait for a lease, since when."""
        self._askers: list[asyncio.Future[None]] = []
        """Who waits for the end of a look that has not begun yet."""

    def wake(self) -> None:
        self._woken.set()

    async def look_now(self) -> None:
        looked = asyncio.get_running_loop().create_future()
        self._askers.append(looked)
        self.wake()
        await asyncio.wait({looked}, timeout=FRESH_S)

    async def run(self) -> None:
        """Until the cluster is forgotten."""
        while True:
            self._woken.clear()
            askers, self._askers = self._askers, []
            try:
                pause = await self._round(told=bool(askers))
            except Exception:
                log.exception("looking after storage cluster %s failed; it is tried again", self._id)
                pause = CALM_S
            for asker in askers:
                if not asker.done():
                    asker.set_result(None)
            if pause is None:
                return
            try:
                async with asyncio.timeout(pause):
                    await self._woken.wait()
            except TimeoutError:
                pass

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def _round(self, told: bool) -> float | None:
        """Look, act, conclude. Seconds until the next one, None if there is nothing left. `told`: somebody reads it."""
        found = await self._store.read(lambda tx: load(tx, self._id))
        if found is None:
            return None
        if found.leaving:
            return await self._leave(found)
        try:
            again, seen = await self._see(found)
        except CloudError as error:
            failure = error
            connected = self._line.connected(found) > 0
            await self._store.write(lambda tx: not_answering(tx, self._id, self._reports, failure, connected))
            self._slow = None
            return AWAY_S if found.status.state != State.CREATING else SOON_S
        if self._slow is not seen.slow:
            self._slow, self._slow_at = seen.slow, self._now()
        if again is None or again.leaving:
            return 0.0
        found = again
        self._generation = found.row.generation
        left = seen.view.degraded + seen.view.misplaced
        self._track = track(self._track, self._now(), left, seen.view.recovering_per_s)
        steps = [*plan(found, seen), *self._begin_anew(found, seen)]
        failures = await self._carry_out(found, steps)
        scrubbed = await self._request(found, seen)
        if steps or taken(found, seen):
            self._slow = None  # what was changed, or somebody has to change, is asked for anew
        done = Round(found.row.generation, seen, len(steps), failures, scrubbed, self._track, told)
        await self._store.write(lambda tx: conclude(tx, self._id, self._reports, done))
        if failures:
            return AWAY_S
        if steps:
            return SOON_S
        if found.status.state == State.CREATING or any(device.out for device in found.spec.devices):
            return SOON_S if found.status.state == State.CREATING else MOVING_S
        return MOVING_S if self._track is not None or not seen.view.settled else CALM_S

    async def _see(self, found: Load) -> tuple[Load | None, Look]:
        """What is wanted is read after what is there: else something that has just been asked for, and made, would be
        taken for something that nobody wants."""
        seen = await self._look(found, self._known(found))
        again = await self._store.read(lambda tx: load(tx, self._id))
        if again is None or again.deployed or again.leaving or seen.slow is not self._slow:
            return again, seen
        if any(step.args["prefix"] == "auth import" for step in plan(again, seen)):
            # What was asked a while ago does not tell of a key that another cloud has made since.
            seen = await self._look(again, None)
            again = await self._store.read(lambda tx: load(tx, self._id))
        return again, seen

    async def _look(self, found: Load, known: Slow | None) -> Look:
        """Through another node if the first one does not bring an answer: that may be the node's trouble alone."""
        try:
            return await look(self._line, found, known)
        except CloudError as error:
            if error.kind not in (ErrorKind.UNAVAILABLE, ErrorKind.TIMED_OUT) or self._line.connected(found) < 2:
                raise
        return await look(self._line, found, known)

    def _known(self, found: Load) -> Slow | None:
        """What was asked lately, unless something else is wanted since."""
        if self._generation != found.row.generation or self._now() - self._slow_at > SLOW_S:
            return None
        return self._slow

    def _begin_anew(self, found: Load, seen: Look) -> list[Command]:
        """For what has waited too long for a lease; a cluster that is not ours is left alone."""
        if seen.laggy is None:
            return []
        now = self._now()
        self._laggy = laggy.follow(self._laggy, seen.laggy, now)
        stuck = laggy.stuck(self._laggy, seen.laggy, now) if found.deployed else {}
        for group in stuck:
            self._laggy[group] = now
        return laggy.plan(stuck)

    async def _carry_out(self, found: Load, steps: Iterable[Command]) -> dict[str, str]:
        """Wave after wave. What fails keeps nothing else from being done, but for the rest of the same pool."""
        failures: dict[str, str] = {}

        async def one(step: Command) -> bool:
            """False if the cluster does not answer."""
            try:
                log.info("storage cluster %s: %s", found.row.name, step.why)
                await self._line.send(found, step)
            except CloudError as error:
                log.warning("storage cluster %s: %s failed: %s", found.row.name, step.why, error.message)
                failures[step.about] = f"{step.why}: {error.message}"
                return error.kind not in (ErrorKind.UNAVAILABLE, ErrorKind.TIMED_OUT)
            return True

        for wave in waves(steps):
            chosen = [step for step in wave if not step.about or step.about not in failures]
            if not all(await asyncio.gather(*(one(step) for step in chosen))):
                break
        return failures

    async def _request(self, found: Load, seen: Look) -> frozenset[str]:
        """What was asked for once. Names of the pools whose scrub has been asked for."""
        scrubbed = set()
        for step in requests(found, seen):
            group = str(step.args.get("pgid", ""))
            if group and self._now() - self._repairs.get(group, -REPAIR_S) < REPAIR_S:
                continue
            try:
                await self._line.send(found, step)
            except CloudError as error:
                log.warning("storage cluster %s: %s failed: %s", found.row.name, step.why, error.message)
                continue
            if group:
                self._repairs[group] = self._now()
            else:
                scrubbed.update(step.args["who"])
        return frozenset(scrubbed)

    async def _leave(self, found: Load) -> float | None:
        if not found.deployed and any(name.startswith("granted/") for name in found.secrets):
            await self._take_back_keys(found)
        if await self._store.write(lambda tx: leaving.finish(tx, self._id, self._reports)):
            return None
        return CALM_S

    async def _take_back_keys(self, found: Load) -> None:
        """Of an adopted cluster, as far as it answers: its deletion must end all the same. Only those that it gave us:
        another may be another cloud's."""
        names: dict[str, tuple[str, auth.Caps]] = {
            name: ("", {})
            for node, name in found.former_clients().items()
            if rows.granted(found.secrets, node) is not None
        }
        for step in auth.plan([], names, names):
            try:
                await self._line.send(found, step, 5.0)
            except CloudError as error:
                log.warning("storage cluster %s: %s failed: %s", found.row.name, step.why, error.message)
                return
