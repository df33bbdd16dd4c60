"""Cutting a lost node off from its storage clusters, and letting it in again.

The node's key is taken away first, by the manager as the cluster's administrator, so that no new session begins; then
the agent of another node puts the sessions that there are on the blocklist (`drivers.storage.rbd_fence`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from scloud.controllers.sessions import Session, Sessions
from scloud.controllers.storage import rows
from scloud.controllers.storage.line import Line
from scloud.controllers.storage.load import Load, load
from scloud.controllers.storage.render import administered
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.ha import Incident
from scloud.model.kinds import Kind
from scloud.model.specs import NodeSpec
from scloud.model.storage import StorageClusterSpec
from scloud.reconcile.ceph.commands import mon
from scloud.store import secrets
from scloud.store.database import Store, Tx
from scloud.store.resources import all_of, find, save

log = logging.getLogger(__name__)

FENCE_S = 65.0
KEY_S = 20.0
POWER_S = 70.0
BMC_PASSWORD = "bmc.password"
POWER = "power"
LOOK_S, OFTEN_S = 5.0, 60.0
"""Sessions are looked at again every `LOOK_S` seconds for the first `OFTEN_S` after they were cut off,"""
SELDOM_S, LAST_S = 60.0, 3600.0
"""then every `SELDOM_S`, until `LAST_S` after."""
Note = Callable[..., Awaitable[None]]
"""note(what, text, **fields of the incident); returns when it is written down."""


@dataclass(frozen=True)
class Target:
    """One storage cluster of the lost node."""

    load: Load
    pools: tuple[str, ...]
    entity: str
    key: str
    osds: tuple[str, ...] = ()
    """Numbers of the OSDs that the node has, as the cluster was last seen."""


@dataclass(slots=True)
class Looks:
    """When the sessions of one storage cluster were cut off, and last looked at, in seconds of the loop's clock."""

    cut_at: float
    last: float = 0.0

    def wait(self, now: float) -> float | None:
        """Seconds until the next look, None if there is none."""
        if now - self.cut_at >= LAST_S:
            return None
        last = max(self.last, self.cut_at)
        every = LOOK_S if last - self.cut_at < OFTEN_S else SELDOM_S
        return max(last + every - now, 0.0)

    def due(self, now: float) -> bool:
        return self.wait(now) == 0.0

    def looked(self, now: float) -> None:
        self.last = now


async def _logged(incident: Incident, work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        log.exception("cutting node %s off failed; it is tried again", incident.node_name)


def targets(tx: Tx, node: str) -> list[Target]:
    """The storage clusters that the node reaches, with the pools that it may have disks in.

    One that is being deleted has none, and nodes are not told it any more: who is asked about it refuses.
    """
    found = []
    for row in all_of(tx, Kind.STORAGE_CLUSTER):
        if node not in row.spec_as(StorageClusterSpec).nodes:
            continue
        seen = load(tx, row.id)
        client = rows.client_of(seen.secrets, node) if seen is not None else None
        if seen is not None and client is not None:
            pools = tuple(sorted(pool.row.id for pool in seen.pools if pool.made and not pool.leaving))
            site = seen.sites.get(node)
            osds = tuple(str(osd.osd) for osd in seen.status.osds if site is not None and osd.node == site.name)
            found.append(Target(seen, pools, f"client.{client[0]}", client[1], osds))
    return found


def keep_out(tx: Tx, node: str) -> None:
    """From now on its storage clusters are not to know its key."""
    for target in targets(tx, node):
        row = target.load.row
        secrets.put(tx, row.id, rows.fenced_secret(node), "1")
        secrets.forget(tx, row.id, rows.granted_secret(node))
        save(tx, row, spec=target.load.spec)  # a new generation: what is known of the cluster is asked anew


def admit(tx: Tx, node: str) -> None:
    """Its key is given back by whoever looks after the cluster."""
    for row in all_of(tx, Kind.STORAGE_CLUSTER):
        if rows.fenced_secret(node) in secrets.secrets_of(tx, row.id):
            secrets.forget(tx, row.id, rows.fenced_secret(node))
            save(tx, row, spec=row.spec_as(StorageClusterSpec))


async def _take_key(line: Line, target: Target) -> str:
    """What is so afterwards, in words. A key of that name that is not the node's is another cloud's, which uses the
    same cluster: it is left alone."""
    if not target.load.deployed:
        try:
            known = await line.send(target.load, mon("whose key", "auth get-key", entity=target.entity), KEY_S)
        except CloudError as error:
            if error.kind != ErrorKind.NOT_FOUND:
                raise
            return "does not have the node's key"
        if known["key"] != target.key:
            return f"does not have the node's key: {target.entity} there is another cloud's, and stays"
    try:
        await line.send(target.load, mon("take the key away", "auth del", entity=target.entity), KEY_S)
    except CloudError as error:
        if error.kind != ErrorKind.NOT_FOUND:
            raise
    return "takes the node's key no more"


class Fencer:
    """Cuts nodes off, each storage cluster and the BMC by a task of its own: none waits for another that hangs."""

    def __init__(self, store: Store, sessions: Sessions) -> None:
        self._store = store
        self._sessions = sessions
        self._turns: Counter[str] = Counter()
        """How often other nodes were asked about a storage cluster, or for power."""
        self._downed: set[tuple[str, str]] = set()
        """(incident, storage cluster): an OSD that is called dead too often takes its own life."""
        self._lines: dict[tuple[str, str], Line] = {}
        """By incident and storage cluster: a node that did not answer is not asked first again."""
        self._looks: dict[tuple[str, str], Looks] = {}
        self._running: dict[tuple[str, str], asyncio.Task[None]] = {}
        """By incident and part of it: a storage cluster, or its power."""

    async def advance(self, incident: Incident, note: Note) -> None:
        """Begin what is neither done nor under way, and return; `note` hears of each step. Failures are noted."""
        for target in await self._store.read(lambda tx: targets(tx, incident.node)):
            cluster = target.load.row.id
            if cluster not in incident.keys or (cluster not in incident.cut and not incident.fenced):
                self._begin(incident, cluster, partial(self._cut, incident, target, note))
            elif cluster in incident.cut and self._looks_of(incident, cluster).due(self._now()):
                self._begin(incident, cluster, partial(self._look_again, incident, target))
        if not incident.power_off and not incident.fenced:
            self._begin(incident, POWER, partial(self._power, incident, note))

    async def rest(self, incident: Incident) -> None:
        """Returns when no part is under way: what another node was asked to do comes to its end there."""
        if tasks := [task for (of, _), task in self._running.items() if of == incident.id]:
            await asyncio.wait(tasks)

    def forget(self, incident: str) -> None:
        """It is over."""
        self._downed = {key for key in self._downed if key[0] != incident}
        for kept in (self._lines, self._looks):
            for key in [key for key in kept if key[0] == incident]:
                del kept[key]

    async def stop(self) -> None:
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def look_in(self, incident: Incident) -> float | None:
        """Seconds until sessions are looked at again; None if they are not."""
        waits = [self._looks_of(incident, cluster).wait(self._now()) for cluster in incident.cut]
        return min((wait for wait in waits if wait is not None), default=None)

    def _begin(self, incident: Incident, part: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        key = (incident.id, part)
        if key in self._running:
            return
        task = asyncio.get_running_loop().create_task(_logged(incident, work()), name=f"cut {incident.node_name} off")
        self._running[key] = task
        task.add_done_callback(lambda _: self._running.pop(key, None))

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _looks_of(self, incident: Incident, cluster: str) -> Looks:
        return self._looks.setdefault((incident.id, cluster), Looks(self._now()))

    def _line(self, incident: Incident, cluster: str) -> Line:
        line = self._lines.setdefault((incident.id, cluster), Line(self._sessions))
        line.avoid = incident.node
        return line

    async def _cut(self, incident: Incident, target: Target, note: Note) -> None:
        cluster, name = target.load.row.id, target.load.row.name
        if cluster not in incident.keys:
            line = self._line(incident, cluster)
            try:
                if target.osds and (incident.id, cluster) not in self._downed:
                    # What they have to say nobody waits for: those that live after all come up again by themselves.
                    await line.send(target.load, mon("its OSDs are dead", "osd down", ids=list(target.osds)), KEY_S)
                    self._downed.add((incident.id, cluster))
                words = f"{name} {await _take_key(line, target)}"
            except CloudError as error:
                await note("failed", f"{name} keeps the node's key: {error.message}")
                return
            await note("key", words, key=cluster)
        if cluster in incident.cut:
            return
        if not target.pools:
            await note("fenced", f"{name} has no pools", cut=cluster)
            return
        try:
            by = await self._cut_sessions(target, incident.node)
        except CloudError as error:
            await note("failed", f"its sessions of {name} are not cut off: {error.message}")
            return
        self._looks[incident.id, cluster] = Looks(self._now())
        await note("fenced", f"every session of {name} is cut off (by {await self._name(by)})", cut=cluster)

    async def _look_again(self, incident: Incident, target: Target) -> None:
        """A QEMU that had connected may open a disk after its node was cut off: until then no session showed it."""
        self._looks_of(incident, target.load.row.id).looked(self._now())
        try:
            if target.pools:
                await self._cut_sessions(target, incident.node)
        except CloudError as error:
            log.info("no second look at the sessions of %s: %s", incident.node_name, error.message)

    async def _cut_sessions(self, target: Target, node: str) -> str:
        """The node that has done it."""
        session = self._other(target, node)
        await session.call("fence", FENCE_S, node=node, pools=target.pools)
        return session.node

    def _other(self, target: Target, node: str) -> Session:
        """The agent of another node that reaches the cluster, in turn: one that hangs is not asked for ever."""
        there = [
            session
            for id in target.load.admitted
            if id != node and (session := self._sessions.get(id)) is not None and not session.closed
        ]
        if not there:
            raise CloudError(
                ErrorKind.UNAVAILABLE, f"no other node of storage cluster {target.load.row.name} is connected"
            )
        return self._next(target.load.row.id, there)

    def _next(self, part: str, there: list[Session]) -> Session:
        """Each part has turns of its own: one that is asked for by turns with another would always ask the same."""
        self._turns[part] += 1
        return there[self._turns[part] % len(there)]

    async def _name(self, node: str) -> str:
        row = await self._store.read(lambda tx: find(tx, node))
        return row.name if row is not None else node

    async def _power(self, incident: Incident, note: Note) -> None:
        """By its BMC, if it has one: asked by another agent, in turn."""
        row = await self._store.read(lambda tx: find(tx, incident.node))
        bmc = row.spec_as(NodeSpec).bmc if row is not None else None
        if bmc is None:
            return
        password = (await self._store.read(lambda tx: secrets.secrets_of(tx, incident.node))).get(BMC_PASSWORD, "")
        there = [one for one in self._sessions if one.node != incident.node and not one.closed]
        if not there:
            await note("failed", "no other node is connected to ask its BMC")
            return
        try:
            await self._next(POWER, there).call("power", POWER_S, **bmc.model_dump(), password=password)
        except CloudError as error:
            await note("failed", f"its power is not known to be off: {error.message}")
            return
        await note("power", "its BMC says that it is off", power_off=True)

    async def unfence(self, node: str) -> None:
        """`CloudError` if it is not in again everywhere."""
        for target in await self._store.read(lambda tx: targets(tx, node)):
            if rows.fenced_secret(node) in target.load.secrets and target.pools:
                await self._unfence(target, node)

    async def _unfence(self, target: Target, node: str) -> None:
        """By another node if there is one, else by itself: when all were lost, one has to be the first."""
        store = administered(target.load)
        problem = CloudError(ErrorKind.UNAVAILABLE, f"no node of {target.load.row.name} is connected")
        for id in sorted(target.load.sites, key=lambda id: (id == node, id not in target.load.admitted)):
            session = self._sessions.get(id)
            if session is None or session.closed:
                continue
            try:
                await session.call("unfence", FENCE_S, node=node, store=store.model_dump(mode="json"))
                return
            except CloudError as error:
                problem = error
        raise problem
