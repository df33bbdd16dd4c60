"""High availability: watches the nodes, and deals with each that is lost, from the verdict to its return.

What is being done is in the incident's row; a manager that is killed goes on with it. What was seen before the verdict
(missing heartbeats, probes under way) is in memory alone: the next manager watches anew, from its own beginning.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import replace

from scloud.controllers import migration, node_removal, node_state
from scloud.controllers.directory import Directory
from scloud.controllers.ha import recovery as moves
from scloud.controllers.ha.fencing import Fencer, Note, admit, keep_out
from scloud.controllers.ha.room import Reasons
from scloud.controllers.placement import Loads
from scloud.controllers.sessions import Session, Sessions
from scloud.model.desired import DesiredDisk
from scloud.model.errors import CloudError
from scloud.model.ha import HaSettings, Incident, IncidentState, Moment
from scloud.model.kinds import INCIDENT_PREFIX, Kind, State
from scloud.model.specs import ClusterSpec, NodeSpec
from scloud.model.statuses import NodeStatus
from scloud.model.storage import StorageClusterSpec
from scloud.reconcile.ha import detector
from scloud.reconcile.ha.detector import Answers, Death, NodeView, ProbeOrder, Round
from scloud.reconcile.ha.recovery import stale
from scloud.store import incidents, operations
from scloud.store.database import Store, Tx
from scloud.store.resources import Resource, all_of, find, find_many, save

log = logging.getLogger(__name__)

TICK_S = 0.5
AGAIN_S = 2.0
"""Until fencing that is not certain yet is tried again, and room is looked for again."""
SPARING = 20.0
"""After a look that kept the writer busy for long, so many times as long is waited: others write, too."""
CALM_S = 60.0
EVICT_S = 60.0
PROBE_MORE_S = 5.0
LAST = "last sign of life"
NEVER = "not heard since this manager leads; by now it should have connected"


class HaController:
    """`caught_up` returns once the directory knows every commit; `loads` is what the scheduler is told; `drop` gives a
    connection up."""

    def __init__(
        self,
        store: Store,
        sessions: Sessions,
        directory: Directory,
        caught_up: Callable[[], Awaitable[None]],
        loads: Callable[[], Loads],
        drop: Callable[[Session], Awaitable[None]],
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._directory = directory
        self._caught_up = caught_up
        self._loads = loads
        self._drop = drop
        self._fencer = Fencer(store, sessions)
        self._heard: dict[str, float] = {}
        self._nodes: dict[str, NodeView] = {}
        self._unspoken_s = 0.0
        """What `unspoken_s` is at least, for each of them."""
        self._stale: set[str] | None = None
        """Of these nodes the views are to be read anew; None: of all."""
        self._memory: detector.Memory | None = None
        self._results: list[Round] = []
        self._probes: set[asyncio.Task[None]] = set()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._woken: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._concerned: dict[str, str] = {}
        self._reasons: defaultdict[str, Reasons] = defaultdict(Reasons)
        self._took: dict[str, float] = {}
        """By incident: seconds that the last look kept the writer busy."""
        self.conditions: tuple[tuple[str, str], ...] = ()
        """(node id, why nothing is done although it is missing)."""

    # --- hearing

    def touched(self, kind: str, id: str) -> None:
        """A row has changed."""
        if kind in (Kind.CLUSTER, "incident"):
            self._stale = None
        if kind == Kind.NODE:
            if self._stale is not None:
                self._stale.add(id)
            for event in self._woken.values():
                event.set()
        elif id in self._concerned:
            self._woken[self._concerned[id]].set()

    def gone(self, session: Session) -> None:
        """A connection has ended."""
        self._heard[session.node] = max(session.last_heard, self._heard.get(session.node, 0.0))

    # --- watching

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        self._memory = detector.beginning(loop.time())
        try:
            for incident in await self._store.read(incidents.open_ones):
                self._deal_with(incident)
            while True:
                try:
                    await self._look()
                except Exception:
                    log.exception("looking for lost nodes failed; it is tried again")
                await asyncio.sleep(TICK_S)
        finally:
            tasks = [*self._tasks.values(), *self._probes]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._fencer.stop()

    async def _look(self) -> None:
        await self._refresh()
        assert self._memory is not None
        now = asyncio.get_running_loop().time()
        if self._all_is_well(now, self._memory):
            self._memory = replace(self._memory, looked_at=now)
            return
        views = tuple([self._heard_of(view) for view in self._nodes.values()])
        results, self._results = self._results, []
        decision = detector.detect(now, views, self._memory, results)
        self._memory = decision.memory
        await self._tell(decision.conditions)
        for order in decision.probe:
            task = asyncio.get_running_loop().create_task(self._probe(order), name=f"probe {order.node}")
            self._probes.add(task)
            task.add_done_callback(self._probes.discard)
        for death in decision.dead:
            session = self._sessions.get(death.node)
            if session is not None:
                await self._drop(session)
            incident = await self._declare(death, now)
            if incident is not None:
                self._deal_with(incident)

    def _all_is_well(self, now: float, memory: detector.Memory) -> bool:
        if self._results or self.conditions:
            return False
        of = self._sessions.get
        heard = (None if (session := of(id)) is None else session.last_heard for id in self._nodes)
        return detector.all_is_well(now, heard, self._unspoken_s, memory)

    async def _refresh(self) -> None:
        """Read anew what has changed; of thousands of nodes that come back after a takeover, not all for each."""
        stale, self._stale = self._stale, set()
        if stale is not None and not stale:
            return
        try:
            fresh = await self._store.read(lambda tx: _views(tx, stale))
            going_on = await self._store.read(incidents.open_ones) if stale is None else []
        except BaseException:
            self._stale = None
            raise
        for incident in going_on:  # one may have been begun by an administrator
            self._deal_with(incident)
        least = min((detector.unspoken_s(view.settings) for view in fresh.values()), default=math.inf)
        if stale is None:
            self._nodes, self._unspoken_s = fresh, least
            return
        self._unspoken_s = min(self._unspoken_s, least)
        for id in stale - fresh.keys():
            self._nodes.pop(id, None)
        self._nodes.update(fresh)

    def _heard_of(self, view: NodeView) -> NodeView:
        session = self._sessions.get(view.id)
        best = self._heard.get(view.id)
        if session is not None and (best is None or session.last_heard > best):
            best = session.last_heard
        return NodeView(view.id, view.name, best, view.addresses, view.settings, session is not None, view.settled)

    async def _tell(self, conditions: tuple[tuple[str, str], ...]) -> None:
        """A condition is an event when it begins."""
        before, self.conditions = dict(self.conditions), conditions
        fresh = [(node, words) for node, words in conditions if before.get(node) != words]
        if fresh:
            await self._store.write(lambda tx: _record(tx, fresh))

    async def _probe(self, order: ProbeOrder) -> None:
        async def ask(prober: str, pairs: tuple[tuple[str, str | None], ...]) -> Answers:
            session = self._sessions.get(prober)
            if session is None:
                return Answers(failed="it went away itself")
            addresses = sorted({one for pair in pairs for one in pair if one is not None})
            limit = order.count * order.interval_s + PROBE_MORE_S
            try:
                heard = await session.call(
                    "probe", limit, addresses=addresses, count=order.count, interval_s=order.interval_s
                )
                return Answers({str(address): int(count) for address, count in heard.items()})
            except CloudError as error:
                return Answers(failed=error.message)
            except Exception as error:  # the round has to end: a node that is being probed is not judged otherwise
                log.exception("probing node %s from node %s failed", order.node, prober)
                return Answers(failed=f"a prober's answer was of no use: {error!r}")

        answers = await asyncio.gather(*(ask(prober, pairs) for prober, pairs in order.asks.items()))
        self._results.append(Round(order, dict(zip(order.asks, answers, strict=True))))

    async def _declare(self, death: Death, now: float) -> Incident | None:
        """The verdict, with all that led to it."""
        wall = self._store.clock() - now

        def write(tx: Tx) -> Incident | None:
            row = find(tx, death.node)
            if row is None or incidents.open_of(tx, row.id) is not None:
                return None
            if self._sessions.get(death.node) is not None:  # it has connected anew since the verdict
                return None
            seen = death.suspicion
            order = seen.order
            assert order is not None and seen.probed_at is not None
            names = [one.name for id in order.asks if (one := find(tx, id)) is not None]
            missed = int(seen.probed_at - seen.heard_at)
            moments = (
                Moment(at=wall + seen.heard_at, what="heard", text=LAST if seen.heard else NEVER),
                Moment(at=wall + seen.noted_at, what="missed", text="heartbeats are missing"),
                Moment(
                    at=wall + seen.probed_at,
                    what="suspected",
                    text=f"nothing heard for {missed} s; {', '.join(names)} probe it on layer 2",
                ),
                Moment(at=wall + now, what="probed", text=death.words),
                Moment(at=tx.now, what="dead", text="it is taken for dead"),
            )
            incident = Incident(
                id=tx.new_id(INCIDENT_PREFIX),
                node=row.id,
                node_name=row.name,
                state=IncidentState.FENCING,
                reason="being cut off from its storage",
                began_at=wall + seen.heard_at,
                moments=moments,
            )
            operations.record(tx, row, "error", f"it is taken for dead: {death.words}")
            node_state.lost(tx, row.id, now - death.heard_at)
            return incidents.save(tx, incident)

        return await self._store.write(write)

    # --- dealing with one

    def _deal_with(self, incident: Incident) -> None:
        if incident.id not in self._tasks:
            task = asyncio.get_running_loop().create_task(self._deal(incident), name=f"incident {incident.node_name}")
            self._tasks[incident.id] = task
            task.add_done_callback(lambda _: self._tasks.pop(incident.id, None))

    async def _deal(self, incident: Incident) -> None:
        woken = self._woken[incident.id]
        try:
            while True:
                woken.clear()
                try:
                    async with self._locks[incident.node]:
                        found = await self._step(incident.id)
                except Exception:
                    log.exception("dealing with node %s failed; it is tried again", incident.node_name)
                    found = incident
                if found is None or not found.open:
                    return
                self._concerned |= {item.vm: found.id for item in found.vms}
                try:
                    async with asyncio.timeout(self._pause(found)):
                        await woken.wait()
                except TimeoutError:
                    pass
        finally:
            self._woken.pop(incident.id, None)
            self._fencer.forget(incident.id)
            self._reasons.pop(incident.id, None)
            self._took.pop(incident.id, None)
            self._concerned = {vm: id for vm, id in self._concerned.items() if id != incident.id}

    def _pause(self, incident: Incident) -> float:
        """Seconds until it is looked at again though nothing has happened."""
        if moves.unfinished(incident):
            return 0.0
        if incident.state is not IncidentState.RECOVERED:
            return max(AGAIN_S, min(self._took.get(incident.id, 0.0) * SPARING, CALM_S))
        look = self._fencer.look_in(incident)
        return CALM_S if look is None else min(max(look, AGAIN_S), CALM_S)

    async def _step(self, id: str) -> Incident | None:
        incident = await self._store.read(lambda tx: incidents.find(tx, id))
        if incident is None or not incident.open:
            return incident
        node = incident.node
        if await self._store.read(lambda tx: find(tx, node)) is None:
            return await self._store.write(lambda tx: _close(tx, id, "it was taken out of the cloud"))
        if incident.state is IncidentState.FENCING:
            if node in self._sessions:
                if not incident.attempted:
                    return await self._store.write(
                        lambda tx: _close(tx, id, "it was heard again before anything was done")
                    )
                return incident  # it is about to be let in
            if not incident.attempted:
                incident = await self._store.write(lambda tx: _attempt(tx, id))
        if incident.attempted and node not in self._sessions:
            await self._fencer.advance(incident, self._noting(id))
        found = await self._store.write(self._recovering(id, self._loads()))
        if found is None or not found.removing or moves.unfinished(found):
            return found
        found, out = await self._store.write(lambda tx: _take_out(tx, id))
        if out and (session := self._sessions.get(node)) is not None:
            await session.hang_up()  # from now on it is refused
        return found

    def _recovering(self, id: str, loads: Loads) -> Callable[[Tx], Incident | None]:
        """The transaction, which notes how long it takes."""
        reasons, clock = self._reasons[id], asyncio.get_running_loop().time

        def recover(tx: Tx) -> Incident | None:
            began = clock()
            try:
                return _recover(tx, id, loads, reasons)
            finally:
                self._took[id] = clock() - began

        return recover

    def _noting(self, id: str) -> Note:
        """What is certain by then is recovered at once; what has failed is tried again after a while."""

        async def note(what: str, text: str, key: str = "", cut: str = "", power_off: bool = False) -> None:
            at = self._store.clock()
            await self._store.write(lambda tx: _note(tx, id, at, what, text, key, cut, power_off))
            woken = self._woken.get(id)
            if woken is not None and what != "failed":
                woken.set()

        return note

    # --- a node that returns

    async def let_in(self, session: Session, have: dict[str, str]) -> dict[str, str]:
        """Before a node that has connected is told anything: it is rid of what it must not have, then let in.

        Returns what it has after that. `CloudError` if it cannot be certain; the node then dials again.
        """
        node = session.node
        async with self._locks[node]:
            await self._caught_up()
            incident = await self._store.read(lambda tx: incidents.open_of(tx, node))
            if incident is not None:
                await self._fencer.rest(incident)
            fenced = incident is not None and incident.attempted
            mine = [key.removeprefix("vm/") for key in have if key.startswith("vm/")]
            elsewhere = await self._store.read(lambda tx: _elsewhere(tx, node, mine, incident))
            evicted = stale(mine, elsewhere, self._wished(node), fenced=fenced)
            if incident is not None:
                await self._store.write(lambda tx: _moment(tx, incident.id, "back", "it has connected"))
            removed = [f"vm/{vm}" for vm in evicted]
            if evicted:
                log.warning("node %s is rid of %s before it is let in", node, ", ".join(evicted))
                removed += [str(key) for key in await session.call("evict", EVICT_S, vms=evicted)]
            if incident is not None:
                cleaned = f"stale VMs removed from it: {len(evicted)}" if evicted else "it has no stale VMs"
                await self._store.write(lambda tx: _moment(tx, incident.id, "cleaned", cleaned))
                if fenced:
                    await self._fencer.unfence(node)
                await self._store.write(lambda tx: _admit(tx, incident.id))
        # What was removed is told anew if it is to be there, and forgotten if not.
        return have | dict.fromkeys(removed, "")

    def _wished(self, node: str) -> dict[str, bool]:
        """The VMs that a node is to have, with whether they have disks in a pool.

        One that was coming with disks of its own storage does not count: whether its copies are whole is seen by what
        is left of it.
        """
        found = {}
        for vm in self._directory.vms_of(node):
            wishes = [self._directory.wish(node, f"disk/{disk.id}") for disk in vm.disks]
            disks = [wish[0] if wish is not None else None for wish in wishes]
            copied = vm.move_in is not None and any(
                isinstance(disk, DesiredDisk) and disk.pool is None for disk in disks
            )
            found[vm.id] = not copied and any(
                disk is None or (isinstance(disk, DesiredDisk) and disk.pool is not None) for disk in disks
            )
        return found


# --- transactions


def _views(tx: Tx, nodes: set[str] | None) -> dict[str, NodeView]:
    """Of these nodes, or of all; without those that are not to be watched."""
    settings = {row.id: row.spec_as(ClusterSpec).ha for row in all_of(tx, Kind.CLUSTER)}
    settled = {incident.node for incident in incidents.open_ones(tx)}
    views = {}
    for row in all_of(tx, Kind.NODE) if nodes is None else find_many(tx, nodes, gone=False).values():
        status = row.status_as(NodeStatus)
        if status.state not in (State.READY, State.DOWN):
            continue
        addresses = tuple(dict.fromkeys(one for one in (status.tunnel_ip, status.storage_ip) if one))
        ha = settings.get(row.spec_as(NodeSpec).cluster, HaSettings())
        views[row.id] = NodeView(row.id, row.name, None, addresses, ha, settled=row.id in settled)
    return views


def _elsewhere(tx: Tx, node: str, vms: list[str], incident: Incident | None) -> set[str]:
    """Those that were moved; what was deleted since then has no row any more, but is in the incident.

    One that is on its way here may run here already: the manager that had let it may be no more.
    """
    rows = find_many(tx, vms)
    moved = {item.vm for item in incident.vms if item.vm not in rows} if incident is not None else set()
    vms_there = [row for row in rows.values() if row.kind == Kind.VM and row.node != node]
    return moved | {row.id for row in vms_there if (move := migration.of(row)) is None or move.target != node}


def _record(tx: Tx, conditions: list[tuple[str, str]]) -> None:
    for node, words in conditions:
        row = find(tx, node)
        if row is not None:
            operations.record(tx, row, "warning", words)


def _moment(tx: Tx, id: str, what: str, text: str) -> None:
    _note(tx, id, tx.now, what, text, "", "", False)


def _note(tx: Tx, id: str, at: float, what: str, text: str, key: str, cut: str, power_off: bool) -> None:
    incident = incidents.find(tx, id)
    if incident is None:
        return
    last = [one for one in incident.moments if one.what == what][-1:]
    moments = incident.moments
    if not last or last[0].text != text:  # what fails again in the same way is one line
        moments = (*moments, Moment.model_validate({"at": at, "what": what, "text": text}))
    update = {
        "moments": moments,
        "keys": tuple(dict.fromkeys((*incident.keys, *([key] if key else [])))),
        "cut": tuple(dict.fromkeys((*incident.cut, *([cut] if cut else [])))),
        "power_off": incident.power_off or power_off,
    }
    incidents.save(tx, incident.model_copy(update=update))


def _attempt(tx: Tx, id: str) -> Incident:
    incident = incidents.find(tx, id)
    assert incident is not None
    keep_out(tx, incident.node)
    moment = Moment(at=tx.now, what="fencing", text="it is being cut off from its storage")
    return incidents.save(tx, incident.model_copy(update={"attempted": True, "moments": (*incident.moments, moment)}))


def _recover(tx: Tx, id: str, loads: Loads, reasons: Reasons) -> Incident | None:
    incident = incidents.find(tx, id)
    if incident is None or not incident.open:
        return incident
    clusters = frozenset(row.id for row in all_of(tx, Kind.STORAGE_CLUSTER) if _reaches(row, incident.node))
    certain = moves.fences(incident).certain(clusters)
    if certain and not incident.fenced:
        moves.unheld(tx, incident.node)
        incident = incidents.save(tx, incident.model_copy(update={"fenced": True}))
    if incident.removing and not _enabled(tx, incident.node):
        return incident
    found = moves.recover(tx, id, loads, reasons)
    if found is not None and found.state is IncidentState.RECOVERED and incident.state is not IncidentState.RECOVERED:
        row = find(tx, incident.node)
        if row is not None:
            reason = "lost, and kept out until it is back and clean: `scloud ha log` tells what became of its VMs"
            save(tx, row, status=row.status_as(NodeStatus).model_copy(update={"state": State.DOWN, "reason": reason}))
    return found


def _enabled(tx: Tx, node: str) -> bool:
    row = find(tx, node)
    cluster = find(tx, row.spec_as(NodeSpec).cluster) if row is not None else None
    return cluster is None or cluster.spec_as(ClusterSpec).ha.enabled


def _take_out(tx: Tx, id: str) -> tuple[Incident | None, bool]:
    """(the incident, whether the node is out of the cloud by it)."""
    incident = incidents.find(tx, id)
    node = find(tx, incident.node) if incident is not None and incident.open else None
    if incident is None or node is None or not node_removal.proceed(tx, incident, node):
        return incident, False
    return _close(tx, id, "it was taken out of the cloud"), True


def _reaches(row: Resource, node: str) -> bool:
    return node in row.spec_as(StorageClusterSpec).nodes


def _admit(tx: Tx, id: str) -> None:
    incident = incidents.find(tx, id)
    if incident is None:
        return
    admit(tx, incident.node)
    _moment(tx, id, "let in", "it is a node as any other again")
    _close(tx, id, "the node is back")


def _close(tx: Tx, id: str, words: str) -> Incident | None:
    incident = incidents.find(tx, id)
    if incident is None or not incident.open:
        return incident
    if incident.removing:
        node_removal.given_up(tx, incident, words)
    update = {
        "state": IncidentState.CLOSED,
        "reason": words,
        "ended_at": tx.now,
        "moments": (*incident.moments, Moment(at=tx.now, what="closed", text=words)),
    }
    return incidents.save(tx, incident.model_copy(update=update))
