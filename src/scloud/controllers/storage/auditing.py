"""Storage daemons that run without an owner, and those that should be there and are not; keys that belong to nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from scloud.controllers.sessions import Sessions
from scloud.controllers.storage.line import Line
from scloud.controllers.storage.load import Load, load
from scloud.controllers.storage.render import stores
from scloud.model.desired import OsdDaemon
from scloud.model.errors import CloudError
from scloud.model.kinds import Kind, State
from scloud.model.observed import Inventory
from scloud.model.storage import StorageClusterStatus
from scloud.reconcile.ceph import auth
from scloud.reconcile.ceph.commands import Command
from scloud.reconcile.ceph.view import MON_QUESTIONS, SLOW_QUESTIONS, read, read_slow
from scloud.store.database import Store, Tx
from scloud.store.resources import Resource, all_of

ASK_S = 10.0


Told = tuple[str, str, str]
"""(severity, key, message)."""


async def ask(store: Store, sessions: Sessions) -> tuple[list[Told], dict[str, dict[str, str]]]:
    """What is amiss with the keys of clusters that can be asked; and by cluster, who is on its OSDs' blocklist until
    when."""

    def settled(tx: Tx) -> list[Load]:
        rows = (row for row in all_of(tx, Kind.STORAGE_CLUSTER) if row.state == State.READY)
        return [found for row in rows if (found := load(tx, row.id)) is not None]

    clusters = await store.read(settled)
    asked = await asyncio.gather(*(_ask(store, Line(sessions), one) for one in clusters))
    blocked = {one.row.id: found for one, (_, found) in zip(clusters, asked, strict=True) if found is not None}
    return [finding for findings, _ in asked for finding in findings], blocked


async def _ask(store: Store, line: Line, seen: Load) -> tuple[list[Told], dict[str, str] | None]:
    if not line.connected(seen):
        return [], None  # the audit says of each node that it did not answer
    asked = []
    try:
        # The map before and after: an OSD that comes or goes at this moment is in one of both.
        for questions in (MON_QUESTIONS["osds"], SLOW_QUESTIONS["auth"], MON_QUESTIONS["osds"]):
            asked.append(await line.send(seen, Command(questions, "audit"), ASK_S))
    except CloudError as error:
        message = f"storage cluster '{seen.row.name}' did not say whose keys it takes: {error.message}"
        return [("warning", seen.row.id, message)], None
    before, auths, later = asked
    # Who is wanted is read after what is there: what was made known meanwhile is nobody's for no moment.
    after = await store.read(lambda tx: load(tx, seen.row.id))
    if after is None or after.row.gone:
        return [], None
    known = {entity.name for entity in after.entities()} | set(after.former_clients().values())
    numbers = {osd.number for dump in (before, later) for osd in read({"osds": dump}).osds}
    found = auth.strangers(known, read_slow({"auth": auths}).auth, numbers, after.deployed)
    strange = [
        (
            "error" if after.deployed and auth.is_ours(name) else "warning",
            f"{seen.row.id}/{name}",
            f"storage cluster '{seen.row.name}' knows {name}: {message}",
        )
        for name, message in found.items()
    ]
    # In the first one already: who is being cut off at this moment may not be written down anywhere yet.
    blocked = (dict(dump.get("blocklist") or {}) for dump in (before, later))
    return strange, dict(next(blocked).items() & next(blocked).items())


def compare(tx: Tx, inventories: Mapping[str, Inventory]) -> Iterator[tuple[str, str, str]]:
    """(node, key, message) of each difference, for the nodes that told what they have."""
    clusters = all_of(tx, Kind.STORAGE_CLUSTER, gone=True)
    wanted: dict[str, dict[str, str]] = {}
    for row in clusters:
        for node, names in _wanted(tx, row).items():
            wanted.setdefault(node, {}).update({f"{row.id}/{name}": row.name for name in names})
    settled = {row.id for row in clusters if row.state == State.READY and not row.gone}
    known = {row.id for row in clusters}
    for node, inventory in inventories.items():
        mine = wanted.get(node, {})
        for key in inventory.daemons:
            cluster = key.partition("/")[0]
            if cluster not in known:
                yield node, key, "a storage daemon of a cluster that does not exist"
            elif cluster in settled and key not in mine:
                yield node, key, "a storage daemon that its cluster does not have here"
        for key, name in mine.items():
            if key not in inventory.daemons and key.partition("/")[0] in settled:
                yield node, key, f"storage cluster '{name}' should have this daemon here"


def _wanted(tx: Tx, row: Resource) -> dict[str, set[str]]:
    """By node: the daemons it is told, those that are on their way aside."""
    numbers = {osd.uuid: osd.osd for osd in row.status_as(StorageClusterStatus).osds}
    found = {}
    for node, store in stores(tx, row).items():
        names = set()
        for daemon in store.daemons:
            if not isinstance(daemon, OsdDaemon):
                names.add(f"{daemon.type}.{daemon.name}")
            elif daemon.uuid in numbers and not daemon.absent:
                names.add(f"osd.{numbers[daemon.uuid]}")
        found[node] = names if not store.absent else set()
    return found
