"""Snapshots: what each verb writes."""

from __future__ import annotations

from typing import Any

from scloud.api.context import accepted, begin
from scloud.api.intents.common import refuse_while_leaving, resolve
from scloud.api.intents.disks import usable
from scloud.controllers import snapshots
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import Kind, State
from scloud.model.specs import DiskSpec
from scloud.store import operations
from scloud.store.database import Tx
from scloud.store.resources import Resource, find, get, refuse_if_used, save

MAX_SNAPSHOTS = 400
"""Of one disk: those of a full schedule, and some by hand."""


def create(tx: Tx, account: str, name: str, disk_ref: str) -> dict[str, Any]:
    """The bytes as they are now, as after a power cut: flush in the guest what must be in it."""
    disk = usable(resolve(tx, "spec.disk", Kind.DISK, disk_ref, account))
    if disk.node is None:
        raise CloudError(ErrorKind.CONFLICT, f"disk '{disk.name}' has no bytes yet; attach it to a VM first")
    if len(snapshots.of_disk(tx, disk.id)) >= MAX_SNAPSHOTS:
        raise CloudError(ErrorKind.NO_CAPACITY, f"a disk has at most {MAX_SNAPSHOTS} snapshots; delete some")
    op, row = snapshots.take(tx, disk, name)
    return accepted(op, row)


def delete(tx: Tx, account: str, ref: str) -> dict[str, Any]:
    """Refused, with the list, while disks were made from it and still depend on it."""
    row = get(tx, Kind.SNAPSHOT, ref, account)
    if row.state == State.DELETING:
        for op in operations.open_for(tx, row.id):
            if op.action == "snapshot.delete":
                return accepted(op, row)
    refuse_if_used(tx, row)
    _let_go(tx, row)
    op = begin(tx, "snapshot.delete", row)
    snapshots.leave(tx, row)
    return accepted(operations.get(tx, op.id, None) or op, find(tx, row.id) or row)


def _let_go(tx: Tx, snapshot: Resource) -> None:
    """A roll back to it that is under way is waited for; one that cannot be done is given up."""
    disk = find(tx, snapshot.parent or "")
    if disk is None:
        return
    spec = disk.spec_as(DiskSpec)
    if spec.rollback_to != snapshot.id or disk.observed_generation >= disk.generation:
        return
    if any(op.action == "disk.rollback" for op in operations.open_for(tx, disk.id)):
        raise CloudError(
            ErrorKind.CONFLICT, f"disk '{disk.name}' is being rolled back to snapshot '{snapshot.name}'; wait for it"
        )
    if disk.state == State.ERROR:
        save(tx, disk, spec=spec.model_copy(update={"rollbacks": spec.rollbacks - 1, "rollback_to": None}))


def rename(tx: Tx, account: str, ref: str, name: str) -> Resource:
    row = get(tx, Kind.SNAPSHOT, ref, account)
    refuse_while_leaving(row)
    return save(tx, row, name=name)
