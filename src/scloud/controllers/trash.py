"""Deleted disks that can still be had back, and their end. Each function runs in a transaction."""

from __future__ import annotations

from scloud.controllers import finishing, snapshots
from scloud.controllers.settings import seconds_for
from scloud.model.errors import CloudError
from scloud.model.kinds import State
from scloud.model.specs import DiskSpec
from scloud.model.statuses import DiskStatus
from scloud.store import operations
from scloud.store.database import Tx
from scloud.store.resources import Resource, find, save

AGAIN_S = 3600.0
"""How often it is looked whether disks still depend on the snapshots of one whose time is up."""


def work(tx: Tx, id: str) -> None:
    """Purge a disk whose time is up; one that was had back is left alone."""
    disk = find(tx, id)
    if disk is None or disk.state != State.TRASHED:
        return
    purge_at = disk.spec_as(DiskSpec).purge_at or 0.0
    if tx.now < purge_at:
        operations.enqueue(tx, f"trash/{id}", delay=purge_at - tx.now)
        return
    try:
        snapshots.refuse_clones(tx, disk)
    except CloudError as error:
        status = disk.status_as(DiskStatus).model_copy(update={"reason": f"kept in the trash: {error.message}"})
        save(tx, disk, status=status)
        operations.enqueue(tx, f"trash/{id}", delay=AGAIN_S)
        return
    purge(tx, disk)


def purge(tx: Tx, disk: Resource) -> operations.Operation:
    """Delete it for good; the operation that ends when its bytes are gone."""
    op = operations.begin(tx, "disk.delete", disk, seconds=seconds_for("disk.delete"))
    finishing.leave(tx, disk, "being deleted")
    return operations.get(tx, op.id, None) or op


def restore(tx: Tx, disk: Resource, name: str | None) -> Resource:
    """Out of the trash, under its former name or another. CONFLICT if that is taken."""
    spec = disk.spec_as(DiskSpec)
    wanted = name or spec.former_name or disk.id
    status = disk.status_as(DiskStatus).model_copy(update={"state": State.READY, "reason": ""})
    new = spec.model_copy(update={"purge_at": None, "former_name": None})
    row = save(tx, disk, spec=new, status=status, name=wanted)
    if new.schedule is not None:
        operations.enqueue(tx, f"schedule/{row.id}")
    return row


def named(account: str, name: str, rows: list[Resource]) -> list[Resource]:
    """Those of the trashed disks that were called so, oldest first."""
    mine = [row for row in rows if row.account == account]
    return [row for row in mine if row.spec_as(DiskSpec).former_name == name]
