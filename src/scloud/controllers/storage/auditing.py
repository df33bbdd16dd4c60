"""Storage daemons that run without an owner, and those that should be there and are not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from scloud.controllers.storage.render import stores
from scloud.model.desired import OsdDaemon
from scloud.model.kinds import Kind, State
from scloud.model.observed import Inventory
from scloud.model.storage import StorageClusterStatus
from scloud.store.database import Tx
from scloud.store.resources import Resource, all_of


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
