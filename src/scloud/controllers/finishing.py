"""Ending operations, and ending resources: what is left to do when a node says that something is gone."""

from __future__ import annotations

from scloud.controllers import gpus, serving
from scloud.controllers.settings import seconds_for
from scloud.model.errors import ErrorKind
from scloud.model.kinds import Kind, State
from scloud.model.registry import SPEC, status_type
from scloud.model.specs import DiskSpec, NicSpec, VmSpec
from scloud.model.statuses import DiskStatus, ImageStatus, NicStatus, VmStatus
from scloud.store import nodes, operations
from scloud.store.database import Tx
from scloud.store.operations import OperationState
from scloud.store.resources import Resource, children, find, referred_to, remove, save, unrefer, using

MIGRATION = "vm.migrate"
"""Its operation ends with the migration, whatever is observed of the VM meanwhile."""


def complete(tx: Tx, row: Resource, generation: int, message: str = "done") -> None:
    """End the open operations that asked for no more than this generation."""
    for op in operations.open_for(tx, row.id):
        if op.generation <= generation and not op.action.endswith(".delete") and op.action != MIGRATION:
            operations.end(tx, op, OperationState.DONE, message)


def fail(tx: Tx, row: Resource, generation: int, reason: str, code: ErrorKind = ErrorKind.ENGINE) -> None:
    for op in operations.open_for(tx, row.id):
        if op.generation <= generation and not op.action.endswith(".delete") and op.action != MIGRATION:
            operations.end(tx, op, OperationState.FAILED, reason, code=code)


def complete_deletion(tx: Tx, row: Resource, message: str = "deleted") -> None:
    """Whatever was still asked of a resource that is gone now has no object any more."""
    for op in operations.open_for(tx, row.id):
        if op.action.endswith(".delete"):
            operations.end(tx, op, OperationState.DONE, message)
        else:
            operations.end(tx, op, OperationState.CANCELLED, f"{row.kind} '{row.name}' was deleted")


def owned(tx: Tx, vm: Resource) -> list[Resource]:
    """What lives and dies with a VM: its system disk and the nics made with it."""
    result = []
    for row in using(tx, vm.id, "vm"):
        if (row.kind == Kind.DISK and row.spec_as(DiskSpec).system) or (
            row.kind == Kind.NIC and row.spec_as(NicSpec).delete_with_vm
        ):
            result.append(row)
    return result


def release_vm(tx: Tx, vm: Resource) -> Resource:
    """The VM has left its node: give back what it was promised there."""
    if vm.node is None:
        return vm
    spec = vm.spec_as(VmSpec)
    nodes.promise(tx, vm.node, cpus=-spec.cpus, memory_mib=-spec.memory_mib)
    if not spec.gpus:
        return save(tx, vm, node=None)
    gpus.give_back(tx, vm.id, vm.node)
    return save(tx, vm, node=None, status=vm.status_as(VmStatus).model_copy(update={"gpus": ()}))


def finish_vm_deletion(tx: Tx, vm: Resource) -> bool:
    """Forget a VM once neither it nor anything of its own is on a node."""
    if vm.node is not None or owned(tx, vm) or vm.status_as(VmStatus).leaving:
        return False
    complete_deletion(tx, vm)
    if not vm.gone:
        operations.record(tx, vm, "info", "deleted")
    remove(tx, vm)
    return True


def _after_child(tx: Tx, child: Resource, vm_id: str | None) -> None:
    if vm_id is None:
        return
    vm = find(tx, vm_id, gone=True)
    if vm is not None and (vm.gone or vm.state == State.DELETING):
        finish_vm_deletion(tx, vm)


def finish_disk_deletion(tx: Tx, disk: Resource) -> None:
    """Its bytes are gone, and those of its snapshots with them, as far as the node that served it last can tell."""
    spec = disk.spec_as(DiskSpec)
    if spec.pool is not None and _ask_former(tx, disk):
        return
    serving.promise(tx, spec, disk.node, -spec.size_mib)
    for snapshot in children(tx, Kind.SNAPSHOT, disk.id, gone=True):
        complete_deletion(tx, snapshot)
        remove(tx, snapshot)
    complete_deletion(tx, disk)
    remove(tx, disk)
    _after_child(tx, disk, spec.vm)


def _ask_former(tx: Tx, disk: Resource) -> bool:
    """Whether another node that was told of the disk has still to confirm its end; for its owner it is gone."""
    status = disk.status_as(DiskStatus)
    left = [row for id in status.former if (row := find(tx, id)) is not None]
    if not left:
        return False
    node = left[0]
    update = {"node": node.name, "held": False, "former": tuple(row.id for row in left[1:])}
    row = save(tx, disk, node=node.id, status=status.model_copy(update=update))
    if node.state != State.READY:
        bury(tx, row, f"deleted; node {node.name} will confirm it when it is back")
    return True


def finish_nic_removal(tx: Tx, nic: Resource) -> None:
    """A nic's port is gone from its node: the nic is deleted if that was asked, else free for another VM."""
    spec = nic.spec_as(NicSpec)
    if _ask_next(tx, nic):
        return
    if nic.gone or nic.state == State.DELETING:
        complete_deletion(tx, nic)
        remove(tx, nic)
        for id in (spec.subnet, spec.vpc):
            dig_up(tx, id)
        _after_child(tx, nic, spec.vm)
    elif spec.vm is None:
        status = NicStatus(state=State.READY, observed_generation=nic.generation)
        save(tx, nic, node=None, status=status, observed_generation=nic.generation)
        complete(tx, nic, nic.generation)


def _ask_next(tx: Tx, nic: Resource) -> bool:
    """Whether another node has still to confirm that it has no tap of it: the first of them stands for the rest."""
    status = nic.status_as(NicStatus)
    left = [row for id in status.former if id != nic.node and (row := find(tx, id)) is not None]
    if not left:
        return False
    update = {"node": left[0].name, "former": tuple(row.id for row in left[1:])}
    save(tx, nic, node=left[0].id, status=status.model_copy(update=update))
    return True


def begin_vm_deletion(tx: Tx, vm: Resource, keep_disks_until: float | None = None) -> None:
    """Mark a VM and what it owns as leaving, and let go of what it only uses.

    With a time (seconds since 1970) its system disk waits in the trash until then instead of going with it.
    """
    reason = "being deleted"
    if keep_disks_until is not None:
        for row in owned(tx, vm):
            if row.kind == Kind.DISK and row.state != State.DELETING:
                unrefer(tx, row.id, vm.id, "vm")
                spec = row.spec_as(DiskSpec).model_copy(update={"vm": None, "system": False})
                into_trash(tx, save(tx, row, spec=spec, parent=None), keep_disks_until)
    own = {row.id for row in owned(tx, vm)}
    for row in using(tx, vm.id, "vm"):
        if row.id in own:
            leave(tx, _as_former(tx, row, vm) if row.kind == Kind.NIC else row, reason)
        elif row.kind == Kind.DISK:
            unrefer(tx, row.id, vm.id, "vm")
            spec = row.spec_as(DiskSpec).model_copy(update={"vm": None})
            status = row.status_as(DiskStatus).model_copy(update={"state": State.READY, "reason": "", "device": None})
            save(tx, row, spec=spec, status=status, parent=None)
        elif row.kind == Kind.NIC:
            nic = detach_nic(tx, row)
            if nic.node is not None:  # on its way to be free, so it has a deadline of its own
                operations.begin(tx, "nic.detach", nic, seconds=seconds_for("nic.detach"))
    leave(tx, vm, reason)


def _as_former(tx: Tx, nic: Resource, vm: Resource) -> Resource:
    """Nodes that its VM is leaving may have a tap of it: each has to confirm that it has none."""
    left = tuple(node for node in vm.status_as(VmStatus).leaving if node != nic.node)
    return nic if not left else save(tx, nic, status=nic.status_as(NicStatus).model_copy(update={"former": left}))


def detach_nic(tx: Tx, nic: Resource) -> Resource:
    """Let a nic go; it is free again when its node has removed the port."""
    unrefer(tx, nic.id, role="vm")
    spec = nic.spec_as(NicSpec)
    vm = find(tx, spec.vm) if spec.vm is not None else None
    former = vm.status_as(VmStatus).leaving if vm is not None else ()
    spec = spec.model_copy(update={"vm": None})
    if nic.node is None:
        return save(tx, nic, spec=spec, status=NicStatus(state=State.READY))
    status = NicStatus(state=State.UPDATING, reason="being detached", node=nic.node, former=former)
    return save(tx, nic, spec=spec, status=status)


def into_trash(tx: Tx, disk: Resource, purge_at: float) -> Resource:
    """Its name is free from now on; its bytes are kept until `purge_at`, seconds since 1970."""
    spec = disk.spec_as(DiskSpec).model_copy(update={"purge_at": purge_at, "former_name": disk.name})
    update = {"state": State.TRASHED, "reason": "in the trash; `scloud disk restore` has it back", "device": None}
    status = disk.status_as(DiskStatus).model_copy(update=update)
    for op in operations.open_for(tx, disk.id):
        operations.end(tx, op, OperationState.CANCELLED, f"disk '{disk.name}' was deleted")
    operations.enqueue(tx, f"trash/{disk.id}", delay=max(purge_at - tx.now, 0.0))
    return save(tx, disk, spec=spec, status=status, name=disk.id)


def leave(tx: Tx, row: Resource, reason: str) -> None:
    """Into `deleting`; what is on no node is gone at once."""
    if row.state != State.DELETING:
        kind = Kind(row.kind)
        status = row.status_as(status_type(kind)).model_copy(update={"state": State.DELETING, "reason": reason})
        row = save(tx, row, status=status, spec=row.spec_as(SPEC[kind]))
    if row.node is None:
        if row.kind == Kind.DISK and row.status_as(DiskStatus).told:
            serving.serve(tx, row)
        elif row.kind == Kind.DISK:
            finish_disk_deletion(tx, row)
        elif row.kind == Kind.NIC:
            finish_nic_removal(tx, row)
        elif row.kind == Kind.VM:
            finish_vm_deletion(tx, row)


def bury(tx: Tx, row: Resource, reason: str) -> None:
    """A deletion whose node does not answer: gone for the owner, kept until the node returns and confirms.

    Its name is free again; its addresses are not, because the node may still be using them.
    """
    complete_deletion(tx, row, reason)
    if row.gone:
        return
    operations.record(tx, row, "warning", reason)
    _hide(tx, row)
    if row.kind == Kind.VM:
        for child in owned(tx, row):
            complete_deletion(tx, child, reason)
            _hide(tx, child)


def _hide(tx: Tx, row: Resource) -> None:
    save(tx, row, name=row.id, gone=True)
    if row.kind == Kind.DISK:
        for snapshot in children(tx, Kind.SNAPSHOT, row.id):
            complete_deletion(tx, snapshot)
            save(tx, snapshot, name=snapshot.id, gone=True)


def bury_network(tx: Tx, row: Resource) -> bool:
    """A subnet or VPC may go while a node that does not answer still has deleted nics of it: its addresses and its
    VNI stay reserved until then. False if there are none such."""
    if not referred_to(tx, row.id):
        return False
    save(tx, row, name=row.id, gone=True)
    return True


def dig_up(tx: Tx, id: str) -> None:
    """Forget a buried subnet or VPC once nothing is left in it."""
    row = find(tx, id, gone=True)
    if row is not None and row.gone and not referred_to(tx, id):
        remove(tx, row)


def leave_image(tx: Tx, image: Resource) -> Resource:
    """Into `deleting`; the importer stops if it is at it, and removes the file."""
    status = image.status_as(ImageStatus).model_copy(update={"state": State.DELETING, "reason": "being deleted"})
    row = save(tx, image, status=status)
    operations.enqueue(tx, row.key)
    return row
