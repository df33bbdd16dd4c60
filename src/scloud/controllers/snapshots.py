"""Snapshots in the database: taken and removed with what their disk's node is told, and seen in its reports."""

from __future__ import annotations

from scloud.controllers import finishing
from scloud.controllers.settings import seconds_for
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import PREFIX, Kind, State
from scloud.model.observed import Observed
from scloud.model.snapshots import SnapshotSpec, SnapshotStatus
from scloud.model.specs import DiskSpec
from scloud.model.statuses import VmStatus
from scloud.store import operations
from scloud.store.database import Tx
from scloud.store.operations import Operation
from scloud.store.resources import Resource, children, create, find, remove, save, users_of


def of_disk(tx: Tx, disk: str) -> list[Resource]:
    """In the order they were taken; those that are leaving too, tombstones not."""
    return children(tx, Kind.SNAPSHOT, disk)


def being_copied(tx: Tx, disk: Resource) -> bool:
    """It is in its node's own storage and goes to another node with its VM: a snapshot would stay behind."""
    spec = disk.spec_as(DiskSpec)
    vm = find(tx, spec.vm) if spec.vm and spec.pool is None else None
    return vm is not None and vm.status_as(VmStatus).migration is not None


def take(
    tx: Tx, disk: Resource, name: str, *, scheduled: bool = False, id: str | None = None
) -> tuple[Operation, Resource]:
    """A new snapshot, and the disk's node told of it. `CloudError(CONFLICT)` while it is on its way to another node."""
    if being_copied(tx, disk):
        raise CloudError(
            ErrorKind.CONFLICT, f"disk '{disk.name}' is on its way to another node with its VM; wait until it is there"
        )
    spec = SnapshotSpec(disk=disk.id, scheduled=scheduled)
    status = SnapshotStatus(state=State.CREATING, size_mib=disk.spec_as(DiskSpec).size_mib)
    id = id or tx.new_id(PREFIX[Kind.SNAPSHOT])
    row = create(tx, Kind.SNAPSHOT, disk.account, name, spec, status, id=id, parent=disk.id)
    tell(tx, disk)
    return operations.begin(tx, "snapshot.create", row, seconds=seconds_for("snapshot.create")), row


def tell(tx: Tx, disk: Resource) -> Resource:
    """The disk's node looks at it again: what it then says of this generation is news."""
    return save(tx, disk, spec=disk.spec_as(DiskSpec))


def leave(tx: Tx, snapshot: Resource) -> None:
    """Into `deleting`; gone at once where there are no bytes."""
    disk = find(tx, snapshot.parent or "", gone=True)
    if disk is None or disk.node is None:
        finish(tx, snapshot)
        return
    status = snapshot.status_as(SnapshotStatus).model_copy(update={"state": State.DELETING, "reason": "being deleted"})
    save(tx, snapshot, status=status)
    tell(tx, disk)


def finish(tx: Tx, snapshot: Resource) -> None:
    finishing.complete_deletion(tx, snapshot)
    remove(tx, snapshot)
    if snapshot.parent:
        tx.touch(f"disk/{snapshot.parent}")  # its node need not be told of it any more


def observe(tx: Tx, disk: Resource, item: Observed) -> None:
    """What a node says of a disk's snapshots."""
    failed = item.settled and item.state == "error"
    if item.snapshots is None and not failed:
        return
    here = dict(item.snapshots or ())
    current = item.generation >= disk.generation
    for row in children(tx, Kind.SNAPSHOT, disk.id, gone=True):
        if row.gone or row.state == State.DELETING:
            if current and row.id not in here and item.snapshots is not None:
                finish(tx, row)
            continue
        old = row.status_as(SnapshotStatus)
        if row.id in here:
            new = old.model_copy(update={"state": State.READY, "reason": "", "size_mib": here[row.id]})
        elif current and failed and old.state != State.READY:
            new = old.model_copy(update={"state": State.ERROR, "reason": item.reason})
        elif current and item.settled and item.state == "ready":
            new = old.model_copy(update={"state": State.ERROR, "reason": "its bytes are gone; delete it"})
        else:
            continue
        if new == old:
            continue
        row = save(tx, row, status=new, observed_generation=row.generation)
        if new.state == State.READY:
            finishing.complete(tx, row, row.generation)
            if row.spec_as(SnapshotSpec).scheduled:
                operations.enqueue(tx, f"schedule/{disk.id}")  # an older one may be too many from now on
        else:
            operations.record(tx, row, "error", new.reason)
            finishing.fail(tx, row, row.generation, new.reason)
        wake_users(tx, row)


def lost_with_disk(tx: Tx, disk: Resource, reason: str) -> None:
    """The disk's bytes are gone for good: those of its snapshots too, whatever was known or asked of them."""
    for row in children(tx, Kind.SNAPSHOT, disk.id, gone=True):
        if row.gone or row.state == State.DELETING:
            finish(tx, row)
            continue
        status = row.status_as(SnapshotStatus).model_copy(update={"state": State.ERROR, "reason": reason})
        row = save(tx, row, status=status)
        finishing.fail(tx, row, row.generation, reason, ErrorKind.CONFLICT)
        wake_users(tx, row)


def wake_users(tx: Tx, snapshot: Resource) -> None:
    """Images that wait for it are looked at again."""
    for user in users_of(tx, snapshot.id):
        if user.kind == Kind.IMAGE:
            operations.enqueue(tx, user.key)


def refuse_clones(tx: Tx, disk: Resource) -> None:
    """IN_USE with the list, if disks were made from the disk's snapshots and still depend on them."""
    users = {
        f"{user.kind} {user.name}": snapshot.name
        for snapshot in of_disk(tx, disk.id)
        for user in users_of(tx, snapshot.id)
    }
    if users:
        made = ", ".join(f"{user} (from {snapshot})" for user, snapshot in list(users.items())[:5])
        more = f" and {len(users) - 5} more" if len(users) > 5 else ""
        raise CloudError(
            ErrorKind.IN_USE,
            f"disk '{disk.name}' has snapshots that disks were made from: {made}{more}; delete those or "
            "`scloud disk flatten` them first",
            users=list(users),
        )
