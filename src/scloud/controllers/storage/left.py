"""What processes that died, and nodes that are gone, have left in pools and in storage clusters. Reads rows only."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime

from scloud.controllers.storage import rows
from scloud.model.kinds import Kind, State
from scloud.model.observed import Inventory, PoolLeft
from scloud.model.specs import DiskSpec
from scloud.model.storage import PoolSpec, StorageClusterSpec
from scloud.store import incidents
from scloud.store.database import Tx
from scloud.store.resources import Resource, all_of

LONG_S = 90 * 86400.0
"""An entry of the OSDs' blocklist that goes on for longer was made by cutting a node off, which makes it for ten years.
Ceph's own are short: an hour for whose lock was broken, a day for a manager or a metadata server that was replaced."""
Told = tuple[str, str, str, str]
"""(severity, node, key, message)."""


def in_pools(tx: Tx, inventories: Mapping[str, Inventory]) -> Iterator[Told]:
    """Each told of once, although every node of a cluster sees it."""
    nodes = {row.id for row in all_of(tx, Kind.NODE)}
    disks = {f"disk/{row.id}": row for row in all_of(tx, Kind.DISK, gone=True)}
    pools = {row.id: row for row in all_of(tx, Kind.POOL)}
    told: set[str] = set()
    for node, inventory in inventories.items():
        for left in inventory.pool_left:
            if left.pool not in pools:
                continue
            for severity, key, message in _in_pool(left, pools[left.pool], nodes, disks):
                if key not in told:
                    told.add(key)
                    yield severity, node, key, message


def _in_pool(
    left: PoolLeft, pool: Resource, nodes: Collection[str], disks: Mapping[str, Resource]
) -> Iterator[tuple[str, str, str]]:
    where, name = f"in pool '{pool.name}'", pool.spec_as(PoolSpec).rados_name
    for maker, image in left.partials:
        if maker not in nodes:
            message = f"image '{image}' {where} was never finished by a node that is no longer part of the cloud: once "
            message += f"that machine is off, remove it with `rbd rm {name}/{image}`"
            yield "error", f"partial/{pool.id}/{image}", message
    for key in left.half_removed:
        row = disks.get(key)
        if row is None:
            message = (
                f"what is left {where} of a disk without an owner, whose removal was broken off: a node ends that "
            )
            yield "error", key, message + "by itself within ten minutes of whoever began it being gone for 30 s"
        elif row.state == State.READY:
            message = f"disk '{row.name}' has something left {where} of what it was before: its node removes it within "
            yield "warning", key, message + "a minute of whoever had it open being gone for 30 s"
    for image in left.trash:
        message = (
            f"image '{image}' is in Ceph's own trash {where}, where the cloud puts nothing: it is left alone; see "
        )
        yield "warning", f"trash/{pool.id}/{image}", message + f"`rbd trash ls --all {name}`"
    for key, address in left.locks:
        row = disks.get(key)
        # One that a VM has is opened by it again, and the lock taken over.
        if row is not None and row.state == State.READY and row.spec_as(DiskSpec).vm is None:
            message = (
                f"disk '{row.name}' {where} is locked by {address}, which is gone: its node breaks the lock within "
            )
            yield "warning", key, message + "a minute"


def cut_off(
    tx: Tx, inventories: Mapping[str, Inventory], blocklists: Mapping[str, Mapping[str, str]], now: float
) -> Iterator[Told]:
    """Who is cut off from a cluster although no lost node is. `blocklists` has each cluster's entries (address -> end),
    and `now` is a Unix time."""
    nodes = {row.id for row in all_of(tx, Kind.NODE)}
    lost = {incident.node for incident in incidents.open_ones(tx)}
    seen = {left.pool: left for inventory in inventories.values() for left in inventory.pool_left}
    for row in all_of(tx, Kind.STORAGE_CLUSTER):
        pools = [pool for pool in rows.pools_of(tx, row.id) if pool.made and not pool.leaving]
        entries = _long(blocklists.get(row.id, {}), now)
        # Only who knows of every pool who is cut off there knows whose an entry is.
        if row.id not in blocklists or not all(pool.row.id in seen for pool in pools):
            continue
        owned: set[str] = set()
        for node, addresses in sorted(_fenced([seen[pool.row.id] for pool in pools]).items()):
            owned |= addresses
            if node not in nodes:
                names = [pool.spec.rados_name for pool in pools if node in dict(seen[pool.row.id].fenced)]
                yield "warning", "", f"{row.id}/fenced/{node}", _of_gone(row, node, sorted(addresses & entries), names)
        if lost & {*row.spec_as(StorageClusterSpec).nodes}:
            continue  # what it is being cut off by is written down only after it is done
        for address in sorted(entries - owned):
            message = f"storage cluster '{row.name}' has {address} on its blocklist for years, and no node that is cut "
            message += f"off is known to have had it: `ceph osd blocklist rm {address}` once nothing runs there"
            yield "warning", "", f"{row.id}/blocklist/{address}", message


def _of_gone(row: Resource, node: str, entries: list[str], pools: list[str]) -> str:
    """Their address may write again once they are off the list: whether its machine is off, only people know."""
    todo = [f"`ceph osd blocklist rm {address}`" for address in entries]
    todo += [f"`rados -p {pool} rmomapkey scloud.fenced {node}`" for pool in pools]
    message = f"storage cluster '{row.name}' keeps node {node} out, which is no longer part of the cloud; once its "
    return f"{message}machine is off for certain: {', '.join(todo)}"


def _fenced(left: list[PoolLeft]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for one in left:
        for node, addresses in one.fenced:
            found.setdefault(node, set()).update(addresses)
    return found


def _long(entries: Mapping[str, str], now: float) -> set[str]:
    """Addresses of the entries that were not made to end soon."""
    ends = {address: datetime.strptime(end, "%Y-%m-%dT%H:%M:%S.%f%z").timestamp() for address, end in entries.items()}
    return {address for address, end in ends.items() if end - now > LONG_S}
