"""Cutting a lost node off from its storage clusters, and letting it in again.

The node's key is taken away first, by the manager as the cluster's administrator, so that no new session begins; then
the agent of another node puts the sessions that there are on the blocklist (`drivers.storage.rbd_fence`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

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

FENCE_S = 65.0
KEY_S = 20.0
POWER_S = 70.0
BMC_PASSWORD = "bmc.password"
Note = Callable[..., None]
"""note(what, text, **fields of the incident)."""


@dataclass(frozen=True)
class Target:
    """One storage cluster of the lost node."""

    load: Load
    pools: tuple[str, ...]
    entity: str
    osds: tuple[str, ...] = ()
    """Numbers of the OSDs that the node has, as the cluster was last seen."""


def targets(tx: Tx, node: str) -> list[Target]:
    """The storage clusters that the node reaches, with all their pools."""
    found = []
    for row in all_of(tx, Kind.STORAGE_CLUSTER):
        if node not in row.spec_as(StorageClusterSpec).nodes:
            continue
        seen = load(tx, row.id)
        client = rows.client_of(seen.secrets, node) if seen is not None else None
        if seen is not None and client is not None:
            pools = tuple(sorted(pool.row.id for pool in seen.pools if pool.made))
            site = seen.sites.get(node)
            osds = tuple(str(osd.osd) for osd in seen.status.osds if site is not None and osd.node == site.name)
            found.append(Target(seen, pools, f"client.{client[0]}", osds))
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


class Fencer:
    def __init__(self, store: Store, sessions: Sessions) -> None:
        self._store = store
        self._sessions = sessions
        self._turn = 0
        self._downed: set[tuple[str, str]] = set()
        """(incident, storage cluster): an OSD that is called dead too often takes its own life."""

    async def fence(self, incident: Incident, note: Note) -> None:
        """Everything that can be done, side by side; `note` hears of each step. Failures are noted, not raised."""
        found = await self._store.read(lambda tx: targets(tx, incident.node))
        todo = [self._cut(incident, target, note) for target in found]
        await asyncio.gather(*todo, self._power(incident, note))

    async def _cut(self, incident: Incident, target: Target, note: Note) -> None:
        cluster, name = target.load.row.id, target.load.row.name
        if cluster not in incident.keys:
            line = Line(self._sessions)
            line.avoid = incident.node
            try:
                if target.osds and (incident.id, cluster) not in self._downed:
                    # What they have to say nobody waits for: those that live after all come up again by themselves.
                    await line.send(target.load, mon("its OSDs are dead", "osd down", ids=list(target.osds)), KEY_S)
                    self._downed.add((incident.id, cluster))
                await line.send(target.load, mon("take the key away", "auth del", entity=target.entity), KEY_S)
            except CloudError as error:
                if error.kind != ErrorKind.NOT_FOUND:
                    note("failed", f"{name} keeps the node's key: {error.message}")
                    return
            note("key", f"{name} takes the node's key no more", key=cluster)
        if cluster in incident.cut:
            return
        if not target.pools:
            note("fenced", f"{name} has no pools", cut=cluster)
            return
        try:
            session = self._other(target, incident.node)
            await session.call("fence", FENCE_S, node=incident.node, pools=target.pools)
        except CloudError as error:
            note("failed", f"its sessions of {name} are not cut off: {error.message}")
            return
        note("fenced", f"every session of {name} is cut off (by {await self._name(session.node)})", cut=cluster)

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
        self._turn += 1
        return there[self._turn % len(there)]

    async def _name(self, node: str) -> str:
        row = await self._store.read(lambda tx: find(tx, node))
        return row.name if row is not None else node

    async def _power(self, incident: Incident, note: Note) -> None:
        """By its BMC, if it has one: asked by any other agent."""
        if incident.power_off:
            return
        row = await self._store.read(lambda tx: find(tx, incident.node))
        bmc = row.spec_as(NodeSpec).bmc if row is not None else None
        if bmc is None:
            return
        password = (await self._store.read(lambda tx: secrets.secrets_of(tx, incident.node))).get(BMC_PASSWORD, "")
        session = next((one for one in self._sessions if one.node != incident.node and not one.closed), None)
        if session is None:
            note("failed", "no other node is connected to ask its BMC")
            return
        try:
            await session.call("power", POWER_S, **bmc.model_dump(), password=password)
        except CloudError as error:
            note("failed", f"its power is not known to be off: {error.message}")
            return
        note("power", "its BMC says that it is off", power_off=True)

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
