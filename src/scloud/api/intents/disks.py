"""Data disks."""

from __future__ import annotations

from typing import Any

from scloud.api.context import accepted, begin, begin_and_end
from scloud.api.intents.common import refuse_while_leaving, resolve
from scloud.api.intents.networks import refuse_attached
from scloud.controllers import finishing, placement
from scloud.model.errors import CloudError, ErrorKind, invalid
from scloud.model.kinds import Kind, State
from scloud.model.specs import DiskSpec, VmSpec
from scloud.model.statuses import DiskStatus, VmStatus
from scloud.store import nodes, operations
from scloud.store.database import Tx
from scloud.store.resources import Resource, create, find, find_many, get, refer, save, sources_of, unrefer

MAX_DISKS = 17


def create_disk(tx: Tx, account: str, name: str, size_mib: int) -> dict[str, Any]:
    """A disk of the local pool gets its place when it is first attached."""
    spec = DiskSpec(size_mib=size_mib)
    row = create(tx, Kind.DISK, account, name, spec, DiskStatus(state=State.READY))
    return accepted(begin_and_end(tx, "disk.create", row, "done; it gets its place with its first VM"), row)


def attach(tx: Tx, account: str, ref: str, vm_ref: str) -> dict[str, Any]:
    disk = get(tx, Kind.DISK, ref, account)
    vm = resolve(tx, "vm", Kind.VM, vm_ref, account)
    refuse_while_leaving(disk)
    refuse_while_leaving(vm)
    if disk.state == State.ERROR and disk.node is None:
        # An empty disk in its place would pass for the old one.
        reason = disk.status_as(DiskStatus).reason
        raise CloudError(ErrorKind.CONFLICT, f"disk '{disk.name}' is in error: {reason}; delete it and make another")
    spec = disk.spec_as(DiskSpec)
    if spec.vm == vm.id:
        return accepted(begin_and_end(tx, "disk.attach", disk, "it is attached to this VM already"), disk)
    refuse_attached(tx, disk, spec.vm)
    if disk.node is not None and vm.node is not None and disk.node != vm.node:
        raise CloudError(
            ErrorKind.CONFLICT,
            f"disk '{disk.name}' is on node {disk.status_as(DiskStatus).node} and vm '{vm.name}' on "
            f"{vm.status_as(VmStatus).node}: a disk of the local pool can be attached on its own node only",
        )
    mine = [row for row in find_many(tx, sources_of(tx, vm.id, "vm")).values() if row.kind == Kind.DISK]
    if len(mine) >= MAX_DISKS:
        raise CloudError(ErrorKind.NO_CAPACITY, f"a VM has at most {MAX_DISKS - 1} data disks")
    if vm.node is not None and disk.node is None:
        placement.check_room(tx, vm.node, disk_mib=spec.size_mib)
        nodes.promise(tx, vm.node, disk_mib=spec.size_mib)
    refer(tx, disk.id, vm.id, "vm")
    status = disk.status_as(DiskStatus)
    if vm.node is not None:
        status = status.model_copy(update={"state": State.UPDATING, "node": vm.status_as(VmStatus).node})
    disk = save(
        tx,
        disk,
        spec=spec.model_copy(update={"vm": vm.id}),
        status=status,
        node=vm.node or disk.node,
        parent=vm.id,
    )
    return _on_vm(tx, "disk.attach", disk, vm)


def detach(tx: Tx, account: str, ref: str) -> dict[str, Any]:
    disk = get(tx, Kind.DISK, ref, account)
    refuse_while_leaving(disk)
    spec = disk.spec_as(DiskSpec)
    if spec.system:
        raise CloudError(ErrorKind.CONFLICT, f"disk '{disk.name}' is a system disk; it goes with its VM")
    vm = find(tx, spec.vm) if spec.vm else None
    if vm is None:
        return accepted(begin_and_end(tx, "disk.detach", disk, "it is attached to no VM"), disk)
    unrefer(tx, disk.id, vm.id, "vm")
    disk = save(tx, disk, spec=spec.model_copy(update={"vm": None}), parent=None)
    return _on_vm(tx, "disk.detach", disk, vm)


def _on_vm(tx: Tx, action: str, disk: Resource, vm: Resource) -> dict[str, Any]:
    """Attaching and detaching are done when the VM has followed: the operation is the VM's."""
    row = save(tx, vm, spec=vm.spec_as(VmSpec))
    if vm.node is None:
        return accepted(begin_and_end(tx, action, disk), disk)
    return accepted(begin(tx, action, row), disk)


def resize(tx: Tx, account: str, ref: str, size_mib: int) -> dict[str, Any]:
    disk = get(tx, Kind.DISK, ref, account)
    refuse_while_leaving(disk)
    spec = disk.spec_as(DiskSpec)
    if size_mib < spec.size_mib:
        raise invalid("size_mib", f"must be at least the present {spec.size_mib} MiB: disks only grow")
    more = size_mib - spec.size_mib
    new = spec.model_copy(update={"size_mib": size_mib})
    if disk.node is None:
        row = save(tx, disk, spec=new)
        return accepted(begin_and_end(tx, "disk.resize", row), row)
    placement.check_room(tx, disk.node, disk_mib=more)
    nodes.promise(tx, disk.node, disk_mib=more)
    status = disk.status_as(DiskStatus).model_copy(update={"state": State.UPDATING, "reason": "being grown"})
    row = save(tx, disk, spec=new, status=status)
    return accepted(begin(tx, "disk.resize", row), row)


def delete(tx: Tx, account: str, ref: str) -> dict[str, Any]:
    disk = get(tx, Kind.DISK, ref, account)
    spec = disk.spec_as(DiskSpec)
    if disk.state != State.DELETING:
        refuse_attached(tx, disk, spec.vm)
    op = begin(tx, "disk.delete", disk)
    finishing.leave(tx, disk, "being deleted")
    return accepted(operations.get(tx, op.id, None) or op, find(tx, disk.id) or disk)
