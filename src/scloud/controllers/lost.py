"""What a node that was declared lost takes with it: nothing of it is anywhere any more, and that is said at once."""

from __future__ import annotations

from scloud.controllers import finishing, serving, snapshots
from scloud.model.errors import ErrorKind
from scloud.model.kinds import Kind, State
from scloud.model.specs import DiskSpec, NicSpec
from scloud.model.statuses import DiskStatus, NicStatus, VmStatus
from scloud.store import operations
from scloud.store.database import Tx
from scloud.store.resources import Resource, save, using

DISK_LOST = "its node was removed as lost, and its bytes with it"


def with_node(tx: Tx, row: Resource) -> None:
    """A VM, disk or nic of a node that was declared lost."""
    if row.kind == Kind.VM:
        _vm(tx, row)
    elif row.kind == Kind.DISK and row.spec_as(DiskSpec).pool is not None:
        _disk_of_pool(tx, row)
    elif row.kind == Kind.DISK:
        _disk_of_node(tx, row)
    elif row.kind == Kind.NIC:
        _nic(tx, row)


def _vm(tx: Tx, row: Resource) -> None:
    vm = finishing.release_vm(tx, row)
    if vm.gone or vm.state == State.DELETING:
        finishing.finish_vm_deletion(tx, vm)
        return
    reason = f"its node was removed as lost{_without(tx, vm)}"
    status = vm.status_as(VmStatus).model_copy(update={"state": State.ERROR, "reason": reason, "node": None})
    operations.record(tx, vm, "error", reason)
    vm = save(tx, vm, status=status)
    finishing.fail(tx, vm, vm.generation, reason, ErrorKind.CONFLICT)


def _without(tx: Tx, vm: Resource) -> str:
    """What was lost with it, and what to do."""
    disks = {row.id: row for row in (*finishing.owned(tx, vm), *using(tx, vm.id, "vm")) if row.kind == Kind.DISK}
    local = [row for row in disks.values() if row.spec_as(DiskSpec).pool is None]
    if any(row.spec_as(DiskSpec).system for row in local):
        return ", and its system disk with it; rebuild it on another node, or delete it"
    if local:
        names = ", ".join(sorted(row.name for row in local))
        return f", and disk {names} with it; detach that, then start it: it runs on another node with its other disks"
    return "; start it, and it runs on another node with its disks as they are"


def _disk_of_pool(tx: Tx, row: Resource) -> None:
    """It is where it was; another node is told of it from now on."""
    spec, status = row.spec_as(DiskSpec), row.status_as(DiskStatus)
    former = tuple(id for id in status.former if id != row.node)
    told = status.model_copy(update={"held": False, "node": None, "former": former})
    disk = save(tx, row, node=None, status=told)
    if not spec.system or row.gone or row.state == State.DELETING:
        serving.serve(tx, disk, without=row.node)


def _disk_of_node(tx: Tx, row: Resource) -> None:
    if row.gone or row.state == State.DELETING:
        finishing.finish_disk_deletion(tx, save(tx, row, node=None))
        return
    update = {"state": State.ERROR, "reason": DISK_LOST, "node": None, "lost": True}
    disk = save(tx, row, node=None, status=row.status_as(DiskStatus).model_copy(update=update))
    finishing.fail(tx, disk, disk.generation, DISK_LOST, ErrorKind.CONFLICT)
    snapshots.lost_with_disk(tx, disk, DISK_LOST)


def _nic(tx: Tx, row: Resource) -> None:
    if row.gone or row.state == State.DELETING or row.spec_as(NicSpec).vm is None:
        finishing.finish_nic_removal(tx, row)
    else:
        save(tx, row, node=None, status=NicStatus(state=State.READY))
