"""Which node is told of a disk of a shared pool: its VM's, or one that serves it while it is on none.

A disk is told to one node at a time. `held` in its status says that a VM on that node may have it open; until the node
has confirmed that none has, no other node is told of it, whatever is asked. Each function runs in a transaction.
"""

from __future__ import annotations

from sqlalchemy import func, select

from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import Kind, State
from scloud.model.specs import DiskSpec, NodeSpec
from scloud.model.statuses import DiskStatus
from scloud.model.storage import PoolSpec, PoolStatus, StorageClusterSpec
from scloud.store import nodes as usage
from scloud.store import operations
from scloud.store.database import Tx
from scloud.store.resources import Resource, find, find_many, on_node, save
from scloud.store.tables import resource

NOWHERE = "no node of its storage cluster is ready; it is gone on with as soon as one is"
RETRY_S = 10.0


def reaching(tx: Tx, pool: str) -> frozenset[str]:
    """Ids of the nodes that reach a pool, ready or not."""
    row = find(tx, pool)
    cluster = find(tx, row.spec_as(PoolSpec).cluster) if row is not None and row.kind == Kind.POOL else None
    if cluster is None or cluster.kind != Kind.STORAGE_CLUSTER:
        return frozenset()
    spec = cluster.spec_as(StorageClusterSpec)
    return frozenset(spec.nodes) - frozenset(spec.leaving)


def choose(tx: Tx, pool: str, without: str | None = None) -> Resource | None:
    """The ready node of the pool's cluster with the fewest disks; one that is cordoned only if there is no other."""
    ids = reaching(tx, pool) - {without}
    ready = [row for row in find_many(tx, ids, gone=False).values() if row.state == State.READY]
    if not ready:
        return None
    query = (
        select(resource.c.node, func.count())
        .where(resource.c.kind == Kind.DISK, resource.c.node.in_([row.id for row in ready]))
        .group_by(resource.c.node)
    )
    counts = {row[0]: row[1] for row in tx.conn.execute(query)}
    return min(ready, key=lambda row: (row.spec_as(NodeSpec).cordoned, counts.get(row.id, 0), row.id))


# --- capacity


def check_pool(tx: Tx, pool: str) -> Resource:
    """The pool, if it takes more. NO_CAPACITY with its own words while it does not."""
    row = find(tx, pool)
    if row is None or row.kind != Kind.POOL:
        raise CloudError(ErrorKind.CONFLICT, "the disk type's pool is gone; choose another disk type")
    status = row.status_as(PoolStatus)
    if not status.accepts_new:
        reasons = [item.message for item in status.conditions if item.level != "info"]
        why = "; ".join(reasons) or status.reason or "its cluster has not said that there is room"
        raise CloudError(ErrorKind.NO_CAPACITY, f"the pool takes no new data now: {why}")
    return row


def promise(tx: Tx, spec: DiskSpec, node: str | None, mib: int) -> None:
    """Count MiB more (or fewer) against the pool, or against the node of a local disk."""
    holder = spec.pool or node
    if holder is not None:
        usage.promise(tx, holder, disk_mib=mib)


# --- where


def serve(tx: Tx, disk: Resource, without: str | None = None) -> Resource:
    """Give a disk that no VM can have open a node to be told to, if there is one; else it waits for one.

    `without` is a node that is leaving the cloud.
    """
    spec, status = disk.spec_as(DiskSpec), disk.status_as(DiskStatus)
    if spec.pool is None or status.held:
        return disk
    node = choose(tx, spec.pool, without)
    if node is None:
        operations.enqueue(tx, disk.key, delay=RETRY_S)
        if disk.node is None and status.reason == NOWHERE:
            return disk
        former = tuple(dict.fromkeys([*status.former, *([disk.node] if disk.node else [])]))
        update = {"reason": NOWHERE, "node": None, "former": former}
        return save(tx, disk, node=None, status=status.model_copy(update=update))
    if node.id == disk.node:
        return disk
    return _tell(tx, disk, status, node, held=False)


def to_vm(tx: Tx, disk: Resource, vm: Resource) -> Resource:
    """Tell the node of the VM that it is attached to, now or when the node that may have it open lets go."""
    status = disk.status_as(DiskStatus)
    if vm.node is None:
        return disk
    if disk.node != vm.node and status.held and disk.node is not None:
        old = find(tx, disk.node)
        reason = f"waiting for node {old.name if old else disk.node} to let go of it"
        return save(tx, disk, status=status.model_copy(update={"state": State.UPDATING, "reason": reason}))
    node = find(tx, vm.node)
    if node is None:
        return disk
    return _tell(tx, disk, status, node, held=True)


def hand_over(tx: Tx, disk: Resource, node: Resource) -> Resource:
    """Its VM has moved to a node with the disk open: nobody has it open where it was."""
    return _tell(tx, disk, disk.status_as(DiskStatus), node, held=True)


def _tell(tx: Tx, disk: Resource, status: DiskStatus, node: Resource, *, held: bool) -> Resource:
    former = tuple(dict.fromkeys([*status.former, *([disk.node] if disk.node else [])]))
    update: dict[str, object] = {
        "node": node.name,
        "held": held,
        "told": True,
        "imported": None if held else status.imported,
        "former": tuple(id for id in former if id != node.id),
    }
    if status.reason == NOWHERE:
        update["reason"] = ""
    if status.state == State.PENDING:
        update |= {"state": State.CREATING, "reason": ""}
    return save(tx, disk, node=node.id, status=status.model_copy(update=update))


def released(tx: Tx, disk: Resource) -> Resource:
    """Its node is settled with what is asked now: unless a VM there is to have it, none has it open."""
    spec, status = disk.spec_as(DiskSpec), disk.status_as(DiskStatus)
    vm = find(tx, spec.vm) if spec.vm else None
    if vm is not None and vm.node == disk.node:
        return disk
    if status.held:
        disk = save(tx, disk, status=status.model_copy(update={"held": False}))
    if vm is not None and vm.node is not None and vm.state != State.DELETING:
        return to_vm(tx, disk, vm)
    return disk


def work(tx: Tx, id: str) -> None:
    """Look after one disk that waits for a node, or whose node has gone away."""
    disk = find(tx, id, gone=True)
    if disk is None or disk.kind != Kind.DISK:
        return
    spec, status = disk.spec_as(DiskSpec), disk.status_as(DiskStatus)
    if spec.pool is None or status.held or _waits_for_vm(tx, disk, spec):
        return
    node = find(tx, disk.node) if disk.node else None
    if node is not None and node.state == State.READY:
        return
    serve(tx, disk)


def _waits_for_vm(tx: Tx, disk: Resource, spec: DiskSpec) -> bool:
    """A disk that was never made gets its node with its VM."""
    vm = find(tx, spec.vm) if spec.vm else None
    return vm is not None and (vm.node is not None or (spec.system and disk.node is None))


def node_back(tx: Tx) -> None:
    """A node is ready again: disks that wait for one need not wait until they are looked at anyway."""
    query = select(resource.c.id).where(resource.c.kind == Kind.DISK, resource.c.node.is_(None))
    for disk in find_many(tx, [row.id for row in tx.conn.execute(query)]).values():
        if disk.spec_as(DiskSpec).pool is not None:
            operations.enqueue(tx, disk.key)


def leave_node(tx: Tx, node: str) -> None:
    """A node leaves the cloud: what it only serves is served by others from now on."""
    for disk in on_node(tx, Kind.DISK, node):
        if disk.spec_as(DiskSpec).pool is not None and not disk.status_as(DiskStatus).held:
            serve(tx, disk, without=node)


def node_gone(tx: Tx, node: str) -> None:
    """A node is silent: the disks that it only served are served by others."""
    for disk in on_node(tx, Kind.DISK, node):
        if disk.spec_as(DiskSpec).pool is not None and not disk.status_as(DiskStatus).held:
            operations.enqueue(tx, disk.key)
