"""Disks: what each verb writes."""

from __future__ import annotations

from typing import Any

from scloud.api.context import accepted, begin, begin_and_end
from scloud.api.disk_schemas import DiskAsk
from scloud.api.intents.common import refuse_while_leaving, resolve, resolve_image
from scloud.api.intents.networks import refuse_attached, rename_plain
from scloud.controllers import finishing, migration, moving, placement, serving, snapshot_schedule, snapshots, trash
from scloud.model.errors import CloudError, ErrorKind, invalid, not_found
from scloud.model.ids import is_id
from scloud.model.kinds import Kind, State
from scloud.model.snapshots import DiskLimits, SnapshotSchedule, SnapshotSpec, SnapshotStatus
from scloud.model.specs import DiskSpec, VmSpec
from scloud.model.statuses import DiskStatus, ImageStatus, VmStatus
from scloud.model.storage import DiskTypeSpec
from scloud.store import nodes
from scloud.store.database import Tx
from scloud.store.resources import (
    SYSTEM,
    Resource,
    create,
    find,
    find_many,
    get,
    in_state,
    refer,
    save,
    sources_of,
    unrefer,
)

MAX_DISKS = 17


def find_type(tx: Tx, field: str, ref: str | None) -> tuple[str | None, str | None]:
    """(the type's name, its pool) of a disk type; both None for none, which is a node's own storage."""
    if ref is None:
        return None, None
    try:
        row = get(tx, Kind.DISK_TYPE, ref, SYSTEM)
    except CloudError as error:
        raise invalid(field, f"names no disk type: '{ref}'; see `scloud disk-type list`") from error
    pool = row.spec_as(DiskTypeSpec).pool
    if pool is not None:
        serving.check_pool(tx, pool)
    return row.name, pool


def usable(disk: Resource) -> Resource:
    """CONFLICT while a disk is on its way out, in the trash, or being filled."""
    refuse_while_leaving(disk)
    if disk.state == State.TRASHED:
        former = disk.spec_as(DiskSpec).former_name
        raise CloudError(ErrorKind.CONFLICT, f"disk '{former}' is in the trash; `scloud disk restore` has it back")
    if disk.status_as(DiskStatus).importing:
        raise CloudError(
            ErrorKind.CONFLICT, f"disk '{disk.name}' is being imported; wait for its end, or import it anew"
        )
    return disk


def _get(tx: Tx, account: str, ref: str) -> Resource:
    return usable(get(tx, Kind.DISK, ref, account))


def create_disk(tx: Tx, account: str, name: str, ask: DiskAsk) -> dict[str, Any]:
    """A disk of a pool is made at once; one of a node's own storage gets its place when it is first attached."""
    if ask.snapshot is not None:
        if ask.image is not None:
            raise invalid("spec.image", "cannot be given together with a snapshot")
        return _from_snapshot(tx, account, name, ask, ask.snapshot)
    image = resolve_image(tx, "spec.image", ask.image, account) if ask.image is not None else None
    size = size_of(image, "spec.size_mib", ask.size_mib) if image is not None else ask.size_mib
    if size is None:
        raise invalid("spec.size_mib", "is required unless the disk is made from a snapshot or an image")
    type_, pool = find_type(tx, "spec.type", ask.type)
    spec = DiskSpec(size_mib=size, type=type_, pool=pool, image=image.id if image is not None else None)
    if pool is not None:
        return _make(tx, account, name, spec)
    row = create(tx, Kind.DISK, account, name, spec, DiskStatus(state=State.READY))
    _refer_source(tx, row, spec)
    return accepted(begin_and_end(tx, "disk.create", row, "done; it gets its place with its first VM"), row)


def size_of(image: Resource, field: str, wanted: int | None) -> int:
    """MiB of a disk that is made from an image."""
    least = max(image.status_as(ImageStatus).size_mib, 1)
    if wanted is not None and wanted < least:
        raise invalid(field, f"must be at least the image's {least} MiB")
    return wanted or least


def _refer_source(tx: Tx, disk: Resource, spec: DiskSpec) -> None:
    if spec.snapshot is not None:
        refer(tx, disk.id, spec.snapshot, "snapshot")
    if spec.image is not None:
        refer(tx, disk.id, spec.image, "image")


def _make(tx: Tx, account: str, name: str, spec: DiskSpec) -> dict[str, Any]:
    """A disk of a pool, made through a node that serves it."""
    row = create(tx, Kind.DISK, account, name, spec, DiskStatus(state=State.PENDING))
    _refer_source(tx, row, spec)
    if spec.pool is not None:
        refer(tx, row.id, spec.pool, "pool")
    serving.promise(tx, spec, None, spec.size_mib)
    op = begin(tx, "disk.create", row)
    return accepted(op, serving.serve(tx, row))


def _from_snapshot(tx: Tx, account: str, name: str, ask: DiskAsk, ref: str) -> dict[str, Any]:
    snapshot = resolve(tx, "spec.snapshot", Kind.SNAPSHOT, ref, account)
    origin = find(tx, snapshot.spec_as(SnapshotSpec).disk)
    if snapshot.state != State.READY or origin is None:
        raise CloudError(ErrorKind.CONFLICT, f"snapshot '{snapshot.name}' is {snapshot.state}, not ready")
    usable(origin)
    old = origin.spec_as(DiskSpec)
    least = snapshot.status_as(SnapshotStatus).size_mib
    size = ask.size_mib or least
    if size < least:
        raise invalid("spec.size_mib", f"must be at least the snapshot's {least} MiB")
    if ask.type is not None and find_type(tx, "spec.type", ask.type)[1] != old.pool:
        raise invalid("spec.type", "must be of the snapshot's pool; make the disk there, then `scloud disk move` it")
    spec = DiskSpec(size_mib=size, type=old.type, pool=old.pool, snapshot=snapshot.id)
    if old.pool is not None:
        serving.check_pool(tx, old.pool)
        return _make(tx, account, name, spec)
    if origin.node is None:
        raise CloudError(ErrorKind.CONFLICT, f"disk '{origin.name}' has lost its node, and the snapshot with it")
    placement.check_room(tx, origin.node, disk_mib=size)
    status = DiskStatus(state=State.CREATING, node=origin.status_as(DiskStatus).node)
    row = create(tx, Kind.DISK, account, name, spec, status, node=origin.node)
    refer(tx, row.id, snapshot.id, "snapshot")
    serving.promise(tx, spec, row.node, size)
    return accepted(begin(tx, "disk.create", row), row)


def attach(tx: Tx, account: str, ref: str, vm_ref: str) -> dict[str, Any]:
    disk = _get(tx, account, ref)
    vm = resolve(tx, "vm", Kind.VM, vm_ref, account)
    refuse_while_leaving(vm)
    refuse_lost(disk)
    spec = disk.spec_as(DiskSpec)
    if spec.vm == vm.id:
        return accepted(begin_and_end(tx, "disk.attach", disk, "it is attached to this VM already"), disk)
    refuse_attached(tx, disk, spec.vm)
    mine = [row for row in find_many(tx, sources_of(tx, vm.id, "vm")).values() if row.kind == Kind.DISK]
    if len(mine) >= MAX_DISKS:
        raise CloudError(ErrorKind.NO_CAPACITY, f"a VM has at most {MAX_DISKS - 1} data disks")
    if spec.pool is not None:
        refuse_unreachable(tx, disk, vm)
    else:
        _check_local(tx, disk, spec, vm)
    refer(tx, disk.id, vm.id, "vm")
    status = disk.status_as(DiskStatus)
    local_node = disk.node if spec.pool is not None else vm.node or disk.node
    if vm.node is not None:
        place = status.node if spec.pool is not None else vm.status_as(VmStatus).node
        status = status.model_copy(update={"state": State.UPDATING, "reason": "", "node": place})
    new = spec.model_copy(update={"vm": vm.id})
    disk = save(tx, disk, spec=new, status=status, node=local_node, parent=vm.id)
    if spec.pool is not None:
        disk = serving.to_vm(tx, disk, vm)
    return _on_vm(tx, "disk.attach", disk, vm)


def refuse_lost(disk: Resource) -> None:
    """An empty disk in its place would pass for the old one."""
    if disk.state == State.ERROR and disk.node is None and disk.spec_as(DiskSpec).pool is None:
        reason = disk.status_as(DiskStatus).reason
        raise CloudError(ErrorKind.CONFLICT, f"disk '{disk.name}' is in error: {reason}; delete it and make another")


def refuse_unreachable(tx: Tx, disk: Resource, vm: Resource) -> None:
    """CONFLICT if the VM is on a node that does not reach the disk's pool."""
    pool = disk.spec_as(DiskSpec).pool
    if pool is not None and vm.node is not None and vm.node not in serving.reaching(tx, pool):
        raise CloudError(
            ErrorKind.CONFLICT,
            f"vm '{vm.name}' is on node {vm.status_as(VmStatus).node}, which is not a node of the storage cluster that "
            f"has disk '{disk.name}'; an administrator can add it to the cluster",
        )


def _check_local(tx: Tx, disk: Resource, spec: DiskSpec, vm: Resource) -> None:
    if disk.node is not None and vm.node is not None and disk.node != vm.node:
        raise CloudError(
            ErrorKind.CONFLICT,
            f"disk '{disk.name}' is on node {disk.status_as(DiskStatus).node} and vm '{vm.name}' on "
            f"{vm.status_as(VmStatus).node}: a disk of the local pool can be attached on its own node only",
        )
    if vm.node is not None and disk.node is None:
        placement.check_room(tx, vm.node, disk_mib=spec.size_mib)
        nodes.promise(tx, vm.node, disk_mib=spec.size_mib)


def detach(tx: Tx, account: str, ref: str) -> dict[str, Any]:
    disk = get(tx, Kind.DISK, ref, account)
    refuse_while_leaving(disk)
    spec = disk.spec_as(DiskSpec)
    if spec.system:
        raise CloudError(ErrorKind.CONFLICT, f"disk '{disk.name}' is a system disk; it goes with its VM")
    vm = find(tx, spec.vm) if spec.vm else None
    if vm is None:
        return accepted(begin_and_end(tx, "disk.detach", disk, "it is attached to no VM"), disk)
    migration.refuse_while_moving(vm)
    unrefer(tx, disk.id, vm.id, "vm")
    disk = save(tx, disk, spec=spec.model_copy(update={"vm": None}), parent=None)
    return _on_vm(tx, "disk.detach", disk, vm)


def _on_vm(tx: Tx, action: str, disk: Resource, vm: Resource) -> dict[str, Any]:
    """Attaching and detaching are done when the VM has followed: the operation is the VM's."""
    row = save(tx, vm, spec=vm.spec_as(VmSpec))
    if vm.node is None:
        return accepted(begin_and_end(tx, action, disk), disk)
    return accepted(begin(tx, action, row), disk)


def _change(tx: Tx, disk: Resource, action: str, spec: DiskSpec, reason: str) -> dict[str, Any]:
    """A new spec; the operation ends when the node has followed, and at once where there is none."""
    if disk.node is None and not disk.status_as(DiskStatus).told:
        row = save(tx, disk, spec=spec)
        return accepted(begin_and_end(tx, action, row), row)
    status = disk.status_as(DiskStatus).model_copy(update={"state": State.UPDATING, "reason": reason})
    row = save(tx, disk, spec=spec, status=status)
    return accepted(begin(tx, action, row), row)


def resize(tx: Tx, account: str, ref: str, size_mib: int) -> dict[str, Any]:
    disk = _get(tx, account, ref)
    spec = disk.spec_as(DiskSpec)
    if size_mib < spec.size_mib:
        raise invalid("size_mib", f"must be at least the present {spec.size_mib} MiB: disks only grow")
    more = size_mib - spec.size_mib
    if spec.pool is not None:
        if more:
            serving.check_pool(tx, spec.pool)
    elif disk.node is not None:
        placement.check_room(tx, disk.node, disk_mib=more)
    serving.promise(tx, spec, disk.node, more)
    return _change(tx, disk, "disk.resize", spec.model_copy(update={"size_mib": size_mib}), "being grown")


def limit(tx: Tx, account: str, ref: str, limits: DiskLimits) -> dict[str, Any]:
    """Also of a disk that is in use: the hypervisor is told at once."""
    disk = _get(tx, account, ref)
    spec = disk.spec_as(DiskSpec)
    return _change(tx, disk, "disk.limit", spec.model_copy(update={"limits": limits}), "limits being changed")


def flatten(tx: Tx, account: str, ref: str) -> dict[str, Any]:
    """From then on neither its image nor the snapshot it was made from is needed by it."""
    disk = _get(tx, account, ref)
    spec = disk.spec_as(DiskSpec)
    if spec.flattened or (spec.snapshot is None and spec.image is None) or disk.node is None:
        return accepted(begin_and_end(tx, "disk.flatten", disk, "it depends on nothing"), disk)
    if spec.pool is not None:
        serving.check_pool(tx, spec.pool)  # what it shared until now becomes bytes of its own
    return _change(tx, disk, "disk.flatten", spec.model_copy(update={"flattened": True}), "being flattened")


def roll_back(tx: Tx, account: str, ref: str, snapshot_ref: str) -> dict[str, Any]:
    disk = _get(tx, account, ref)
    snapshot = resolve(tx, "snapshot", Kind.SNAPSHOT, snapshot_ref, account)
    if snapshot.parent != disk.id:
        raise invalid("snapshot", f"'{snapshot.name}' is not a snapshot of disk '{disk.name}'")
    if snapshot.state != State.READY:
        raise CloudError(ErrorKind.CONFLICT, f"snapshot '{snapshot.name}' is {snapshot.state}, not ready")
    refuse_while_attached(tx, disk, "roll it back")  # a node that has not let go of it yet does so first
    spec = disk.spec_as(DiskSpec)
    new = spec.model_copy(update={"rollbacks": spec.rollbacks + 1, "rollback_to": snapshot.id})
    return _change(tx, disk, "disk.rollback", new, f"being rolled back to {snapshot.name}")


def move(tx: Tx, account: str, ref: str, type_ref: str) -> dict[str, Any]:
    """To another pool, by copy. The disk that takes its place has another id; the old one waits in the trash."""
    disk = _get(tx, account, ref)
    spec = disk.spec_as(DiskSpec)
    type_, pool = find_type(tx, "type", type_ref)
    if pool is None:
        raise invalid("type", "must be of a pool: a disk cannot be moved to a node's own storage")
    if pool == spec.pool:
        raise invalid("type", f"is of the pool that disk '{disk.name}' is in already")
    refuse_while_open(tx, disk, "move it (a disk in use cannot be moved)")
    if disk.node is None:
        raise CloudError(ErrorKind.CONFLICT, f"disk '{disk.name}' has no bytes yet; make another of that type instead")
    kept = [row.name for row in snapshots.of_disk(tx, disk.id)]
    if kept:
        more = f" and {len(kept) - 5} more" if len(kept) > 5 else ""
        raise CloudError(
            ErrorKind.IN_USE,
            f"disk '{disk.name}' has snapshots, which cannot move with it: {', '.join(kept[:5])}{more}; delete them",
            users=[f"snapshot {name}" for name in kept],
        )
    vm = find(tx, spec.vm) if spec.vm else None
    if vm is not None and vm.node is not None and vm.node not in serving.reaching(tx, pool):
        raise CloudError(
            ErrorKind.CONFLICT, f"vm '{vm.name}' is on a node that does not reach the pool; detach the disk first"
        )
    op, row = moving.begin(tx, disk, type_, pool)
    return accepted(op, row)


def refuse_while_open(tx: Tx, disk: Resource, what: str) -> None:
    """CONFLICT unless the disk is detached or its VM is off, and no node may have it open."""
    status = disk.status_as(DiskStatus)
    if refuse_while_attached(tx, disk, what) is None and status.held:
        raise CloudError(
            ErrorKind.CONFLICT, f"node {status.node} has not let go of disk '{disk.name}' yet; try again in a moment"
        )


def refuse_while_attached(tx: Tx, disk: Resource, what: str) -> Resource | None:
    """CONFLICT unless the disk is detached or its VM, which is returned, is off."""
    spec = disk.spec_as(DiskSpec)
    vm = find(tx, spec.vm) if spec.vm else None
    if vm is not None:
        off = vm.state == State.STOPPED and vm.spec_as(VmSpec).power == "off"
        if vm.node is not None and not off:
            raise CloudError(
                ErrorKind.CONFLICT,
                f"disk '{disk.name}' is attached to vm '{vm.name}', which is {vm.state}: to {what}, stop the VM first"
                + ("" if spec.system else " or detach the disk"),
                users=[f"vm {vm.name}"],
            )
    return vm


def set_schedule(tx: Tx, account: str, ref: str, schedule: SnapshotSchedule | None) -> dict[str, Any]:
    disk = _get(tx, account, ref)
    spec = disk.spec_as(DiskSpec)
    row = save(tx, disk, spec=spec.model_copy(update={"schedule": schedule}))
    row = snapshot_schedule.arrange(tx, row)
    return accepted(begin_and_end(tx, "disk.schedule", row), row)


def rename(tx: Tx, account: str, ref: str, name: str) -> dict[str, Any]:
    _get(tx, account, ref)
    return rename_plain(tx, Kind.DISK, account, ref, name)


# --- the end, and back


def delete(tx: Tx, account: str, ref: str, *, now: bool = True, trash_s: float = 0.0) -> dict[str, Any]:
    """Into the trash if it is of a shared pool, unless it is to be `now`, or there are no bytes to have back."""
    disk = get(tx, Kind.DISK, ref, account)
    spec, status = disk.spec_as(DiskSpec), disk.status_as(DiskStatus)
    if disk.state != State.DELETING:
        refuse_attached(tx, disk, spec.vm)
        snapshots.refuse_clones(tx, disk)
    if status.moved_from is not None and disk.state != State.DELETING:
        given_up = moving.give_up(tx, disk, CloudError(ErrorKind.CONFLICT, "the new disk was deleted"))
        return accepted(given_up, find(tx, disk.id) or disk)
    if disk.state == State.TRASHED and not now:
        return accepted(begin_and_end(tx, "disk.trash", disk, "it is in the trash already"), disk)
    if now or spec.pool is None or disk.state == State.DELETING or not status.told or status.importing:
        return accepted(trash.purge(tx, disk), find(tx, disk.id) or disk)
    row = finishing.into_trash(tx, disk, tx.now + trash_s)
    hours = f"{trash_s / 3600:g} hours"
    return accepted(begin_and_end(tx, "disk.trash", row, f"in the trash, for {hours}"), row)


def find_trashed(tx: Tx, account: str, ref: str) -> Resource:
    """By id, or by what it was called; CONFLICT with their ids if several were called so."""
    if is_id(ref):
        row = get(tx, Kind.DISK, ref, account)
        if row.state != State.TRASHED:
            raise CloudError(ErrorKind.CONFLICT, f"disk '{row.name}' is not in the trash")
        return row
    found = trash.named(account, ref, in_state(tx, Kind.DISK, State.TRASHED))
    if len(found) > 1:
        ids = ", ".join(item.id for item in found)
        raise CloudError(
            ErrorKind.CONFLICT, f"the trash has several disks that were called '{ref}': name one by its id: {ids}"
        )
    if not found:
        raise not_found("disk in the trash", ref)
    return found[0]


def restore(tx: Tx, account: str, ref: str, name: str | None) -> dict[str, Any]:
    row = trash.restore(tx, find_trashed(tx, account, ref), name)
    return accepted(begin_and_end(tx, "disk.restore", row), row)
