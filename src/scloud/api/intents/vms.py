"""Virtual machines: what each verb writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scloud.api.context import accepted, begin, begin_and_end
from scloud.api.intents.common import refuse_while_leaving, resolve, resolve_image, resolve_node, side_name
from scloud.api.intents.disks import find_type, refuse_lost, size_of, usable
from scloud.api.intents.networks import groups_for, make_nic
from scloud.api.schemas import MigrateAsk, NicAsk, VmAsk, VmCreate, VmPatch
from scloud.controllers import finishing, gpus, migration, placement, serving, snapshots
from scloud.model.errors import CloudError, ErrorKind, invalid
from scloud.model.gpus import refusal
from scloud.model.kinds import PREFIX, Kind, State
from scloud.model.migrations import Then
from scloud.model.specs import DiskSpec, ImageSpec, KeypairSpec, NicSpec, NodeSpec, VmSpec
from scloud.model.statuses import DiskStatus, ImageStatus, NicStatus, VmStatus
from scloud.scheduler.snapshot import Plan
from scloud.store import nodes, operations
from scloud.store.database import Tx
from scloud.store.resources import Resource, create, find, get, refer, refer_all, save, unrefer


@dataclass(frozen=True, slots=True)
class Owner:
    """A VM that is about to be: its parts are made before it, and name it. `home` is None while it waits for a node."""

    id: str
    account: str
    name: str
    home: placement.Home | None

    @property
    def state(self) -> State:
        return State.CREATING if self.home else State.PENDING

    @property
    def node(self) -> str | None:
        return self.home.node if self.home else None

    @property
    def node_name(self) -> str | None:
        return self.home.name if self.home else None


def _spec(tx: Tx, account: str, ask: VmAsk) -> tuple[VmSpec, Resource]:
    image = resolve_image(tx, "spec.image", ask.image, account)
    keys = [resolve(tx, "spec.keypairs", Kind.KEYPAIR, ref, account) for ref in ask.keypairs]
    group = ask.placement_group
    if (wrong := refusal(ask.gpus, ask.cpus, ask.memory_mib)) is not None:
        raise invalid("spec.gpus", wrong)
    if ask.gpu_model is not None and not ask.gpus:
        raise invalid("spec.gpu_model", "goes with gpus, which says how many")
    spec = VmSpec(
        image=image.id,
        cpus=ask.cpus,
        memory_mib=ask.memory_mib,
        power=ask.power,
        node=resolve_node(tx, "spec.node", ask.node).id if ask.node else None,
        placement_group=resolve(tx, "spec.placement_group", Kind.PLACEMENT_GROUP, group, account).id if group else None,
        keypairs=tuple(row.id for row in keys),
        public_keys=tuple(row.spec_as(KeypairSpec).public_key for row in keys),
        user_data=ask.user_data,
        restart_limit=ask.restart_limit,
        gpus=ask.gpus,
        gpu_model=ask.gpu_model,
        ha=ask.ha,
        ha_priority=ask.ha_priority,
    )
    return spec, image


def dry_run(tx: Tx, account: str, ask: VmAsk, loads: placement.Loads) -> Plan:
    """Where a VM would go now; nothing is kept."""
    spec, image = _spec(tx, account, ask)
    size = size_of(image, "spec.disk_mib", ask.disk_mib)
    _type, pool = find_type(tx, "spec.disk_type", ask.disk_type)
    disks = [resolve(tx, "spec.disks", Kind.DISK, ref, account).spec_as(DiskSpec) for ref in ask.disks]
    pools = [item.pool for item in disks if item.pool is not None] + ([pool] if pool is not None else [])
    architecture = _architecture(image)
    request = placement.request_for(tx, spec, 0 if pool is not None else size, architecture=architecture, pools=pools)
    return placement.plan(tx, account, request, loads)


def create_vms(tx: Tx, account: str, ask: VmCreate, loads: placement.Loads) -> dict[str, Any]:
    """One VM, or `count` of them named NAME-1..N: all or none."""
    if ask.count == 1:
        op, row = _create(tx, account, ask.name, ask.spec, loads)
        return accepted(op, row)
    if ask.spec.disks or any(nic.nic or nic.ip for nic in ask.spec.nics):
        raise invalid("count", "must be 1 when a disk, a nic or an address is named: those can belong to one VM only")
    if len(ask.name) + 4 > 63:
        raise invalid("name", "must leave room for a number: at most 59 characters when count is more than 1")
    made = [_create(tx, account, f"{ask.name}-{number}", ask.spec, loads) for number in range(1, ask.count + 1)]
    return {"operations": [op.public() for op, _ in made], "resources": [row.public() for _, row in made]}


def _create(
    tx: Tx, account: str, name: str, ask: VmAsk, loads: placement.Loads
) -> tuple[operations.Operation, Resource]:
    """Its node is chosen at once; where none can take it, or disks may decide, the placer looks at it."""
    spec, image = _spec(tx, account, ask)
    size = size_of(image, "spec.disk_mib", ask.disk_mib)
    id = tx.new_id(PREFIX[Kind.VM])
    home: placement.Home | None = None
    _type, pool = find_type(tx, "spec.disk_type", ask.disk_type)
    if not ask.disks and pool is None:
        request = placement.request_for(tx, spec, size, architecture=_architecture(image))
        home = placement.find_home(tx, account, request, loads)
    vm = Owner(id, account, name, home)
    addresses = tuple(_take_or_make_nic(tx, vm, number, nic) for number, nic in enumerate(ask.nics))
    reason = "" if home else "waiting for a node"
    taken = gpus.take(tx, id, vm.node, spec) if vm.node is not None else ()
    status = VmStatus(state=vm.state, reason=reason, addresses=addresses, node=vm.node_name, gpus=taken)
    row = create(tx, Kind.VM, account, name, spec, status, id=id, node=vm.node)
    uses = [(id, image.id, "image")]
    if spec.placement_group:
        uses.append((id, spec.placement_group, "group"))
    uses += _make_system_disk(tx, vm, image, size, ask.disk_type)
    refer_all(tx, uses)
    for ref in ask.disks:
        _take_disk(tx, row, resolve(tx, "spec.disks", Kind.DISK, ref, account))
    if home is None:
        op = begin(tx, "vm.create", row)
        operations.enqueue(tx, row.key)
    else:
        op = begin(tx, "vm.create", row, progress=placement.PLACED, message=f"placed on {home.name}")
    return op, row


def _architecture(image: Resource) -> str:
    return image.spec_as(ImageSpec).architecture


def _make_system_disk(
    tx: Tx, vm: Owner, image: Resource, size_mib: int, disk_type: str | None
) -> list[tuple[str, str, str]]:
    """Returns what the disk uses."""
    id = tx.new_id(PREFIX[Kind.DISK])
    type_, pool = find_type(tx, "spec.disk_type", disk_type)
    spec = DiskSpec(size_mib=size_mib, image=image.id, vm=vm.id, system=True, type=type_, pool=pool)
    serving.promise(tx, spec, None, size_mib)
    name = side_name(tx, Kind.DISK, vm.account, vm.name, "system", id)
    status = DiskStatus(state=vm.state, node=vm.node_name)
    create(tx, Kind.DISK, vm.account, name, spec, status, id=id, node=vm.node, parent=vm.id)
    uses = [(id, vm.id, "vm"), (id, image.id, "image")]
    return uses if pool is None else [*uses, (id, pool, "pool")]


def _take_disk(tx: Tx, vm: Resource, disk: Resource) -> None:
    spec = disk.spec_as(DiskSpec)
    if spec.vm is not None:
        raise CloudError(ErrorKind.IN_USE, f"spec.disks: disk '{disk.name}' is attached to another VM; detach it first")
    refuse_lost(usable(disk))
    save(tx, disk, spec=spec.model_copy(update={"vm": vm.id}), parent=vm.id)
    refer(tx, disk.id, vm.id, "vm")


def _take_or_make_nic(tx: Tx, vm: Owner, number: int, ask: NicAsk) -> str:
    field = f"spec.nics.{number}"
    if ask.nic is not None:
        nic = resolve(tx, f"{field}.nic", Kind.NIC, ask.nic, vm.account)
        spec = nic.spec_as(NicSpec)
        if spec.vm is not None or nic.node is not None:
            raise CloudError(ErrorKind.IN_USE, f"{field}.nic: nic '{nic.name}' is attached elsewhere; detach it first")
        refuse_while_leaving(nic)
        status = NicStatus(state=vm.state, node=vm.node_name)
        save(tx, nic, spec=spec.model_copy(update={"vm": vm.id}), status=status, node=vm.node)
        refer(tx, nic.id, vm.id, "vm")
        return spec.ip
    if ask.subnet is None:
        raise invalid(field, "must name a subnet or a nic")
    subnet = resolve(tx, f"{field}.subnet", Kind.SUBNET, ask.subnet, vm.account)
    groups = groups_for(tx, vm.account, ask.security_groups, f"{field}.security_groups")
    id = tx.new_id(PREFIX[Kind.NIC])
    name = side_name(tx, Kind.NIC, vm.account, vm.name, f"nic{number}", id)
    node = (vm.home.node, vm.home.name) if vm.home else None
    made = make_nic(
        tx, vm.account, name, subnet, ask.ip, groups, vm=vm.id, node=node, with_vm=True, id=id, state=vm.state
    )
    return made.spec_as(NicSpec).ip


def _change(tx: Tx, vm: Resource, action: str, state: State, reason: str, **changes: Any) -> dict[str, Any]:
    """A new spec, the state that says it is on its way, and the operation."""
    spec = vm.spec_as(VmSpec).model_copy(update=changes)
    if vm.node is None:
        state, reason = State.PENDING, "waiting for a node"
    status = vm.status_as(VmStatus).model_copy(update={"state": state, "reason": reason})
    row = save(tx, vm, spec=spec, status=status)
    op = begin(tx, action, row)
    if vm.node is None:
        operations.enqueue(tx, row.key)
    return accepted(op, row)


def start(tx: Tx, account: str, ref: str) -> dict[str, Any]:
    vm = get(tx, Kind.VM, ref, account)
    refuse_while_leaving(vm)
    spec = vm.spec_as(VmSpec)
    if vm.state == State.RUNNING and spec.power == "on":
        return accepted(begin_and_end(tx, "vm.start", vm, "it is running already"), vm)
    node = find(tx, vm.node) if vm.node is not None else None
    if node is not None and node.spec_as(NodeSpec).draining:
        raise CloudError(
            ErrorKind.CONFLICT,
            f"vm '{vm.name}' cannot be started: its node {node.name} is being drained for maintenance; start it when "
            "it has another node, or the node is open again",
        )
    _refuse_lost(tx, vm, system=True)
    return _change(tx, vm, "vm.start", State.STARTING, "starting", power="on", starts=spec.starts + 1, force_stop=False)


def _refuse_lost(tx: Tx, vm: Resource, *, system: bool) -> None:
    """CONFLICT if a disk's bytes were lost with its node: the VM would find an empty one. `system`: that one, too."""
    disks, _nics = placement.attached(tx, vm)
    for disk in (disk for disk in disks if disk.status_as(DiskStatus).lost):
        if disk.spec_as(DiskSpec).system:
            do = f"begin with an empty one (`scloud vm rebuild {vm.name}`), or delete the VM"
            if not system:
                continue
        else:
            do = f"detach it first (`scloud disk detach {disk.name}`)"
        raise CloudError(
            ErrorKind.CONFLICT,
            f"vm '{vm.name}' cannot run: the bytes of disk {disk.name} were lost with its node; {do}",
        )


def stop(tx: Tx, account: str, ref: str, force: bool) -> dict[str, Any]:
    vm = get(tx, Kind.VM, ref, account)
    if force:
        vm, answer = _end_migration(tx, vm, "stop")
        if answer is not None:
            return answer
    refuse_while_leaving(vm)
    if vm.state == State.STOPPED and vm.spec_as(VmSpec).power == "off":
        return accepted(begin_and_end(tx, "vm.stop", vm, "it is stopped already"), vm)
    if vm.node is None:
        spec = vm.spec_as(VmSpec).model_copy(update={"power": "off"})
        status = vm.status_as(VmStatus).model_copy(update={"state": State.STOPPED, "reason": "it has no node yet"})
        row = save(tx, vm, spec=spec, status=status)
        placement.unplaced(tx, row)
        finishing.complete(tx, row, row.generation, "stopped before it had a node")
        return accepted(begin_and_end(tx, "vm.stop", row), row)
    return _change(tx, vm, "vm.stop", State.STOPPING, "stopping", power="off", force_stop=force)


def _end_migration(
    tx: Tx, vm: Resource, then: Then, keep_disks_until: float | None = None
) -> tuple[Resource, dict[str, Any] | None]:
    """The VM; and the answer, if what is asked for has to wait until its migration has ended, and follows by itself."""
    move = migration.of(vm)
    if move is None:
        return vm, None
    if move.then == then:
        for op in operations.open_for(tx, vm.id):
            if op.action == f"vm.{then}":
                return vm, accepted(op, vm)
    if move.then == "delete":
        migration.refuse_while_moving(vm)
    if move.phase == "preparing":
        return migration.end_then(tx, vm, then), None
    op = begin(tx, f"vm.{then}", vm, message=f"its migration to node {move.target_name} is ended first")
    vm = migration.end_then(tx, vm, then, keep_disks_until)
    return vm, accepted(operations.get(tx, op.id, None) or op, vm)


def reboot(tx: Tx, account: str, ref: str) -> dict[str, Any]:
    vm = get(tx, Kind.VM, ref, account)
    refuse_while_leaving(vm)
    if vm.state != State.RUNNING:
        raise CloudError(ErrorKind.CONFLICT, f"vm '{vm.name}' is {vm.state}; only a running VM can be rebooted")
    reboots = vm.spec_as(VmSpec).reboots + 1
    return _change(tx, vm, "vm.reboot", State.UPDATING, "rebooting", reboots=reboots)


def resize(tx: Tx, account: str, ref: str, cpus: int | None, memory_mib: int | None) -> dict[str, Any]:
    """Live where the guest allows it, else from its next start on; the operation's message says which."""
    vm = get(tx, Kind.VM, ref, account)
    refuse_while_leaving(vm)
    if cpus is None and memory_mib is None:
        raise invalid("cpus", "give cpus, memory_mib or both")
    spec = vm.spec_as(VmSpec)
    new_cpus, new_memory = cpus or spec.cpus, memory_mib or spec.memory_mib
    if (wrong := refusal(spec.gpus, new_cpus, new_memory)) is not None:
        raise invalid("cpus", f"its {spec.gpus} GPUs {wrong}")
    more_cpus, more_memory = new_cpus - spec.cpus, new_memory - spec.memory_mib
    if vm.node is None:
        row = save(tx, vm, spec=spec.model_copy(update={"cpus": new_cpus, "memory_mib": new_memory}))
        return accepted(begin_and_end(tx, "vm.resize", row, "takes effect when it is placed"), row)
    if more_cpus > 0 or more_memory > 0:
        placement.check_room(tx, vm.node, cpus=more_cpus, memory_mib=more_memory)
    nodes.promise(tx, vm.node, cpus=more_cpus, memory_mib=more_memory)
    return _change(tx, vm, "vm.resize", State.UPDATING, "being resized", cpus=new_cpus, memory_mib=new_memory)


def migrate(tx: Tx, account: str, ref: str, ask: MigrateAsk, loads: placement.Loads) -> dict[str, Any]:
    """Bring it to another node while it runs; with `cancel`, end that."""
    vm = get(tx, Kind.VM, ref, account)
    if ask.cancel:
        under_way = [op for op in operations.open_for(tx, vm.id) if op.action == migration.ACTION]
        if not under_way:
            raise CloudError(ErrorKind.CONFLICT, f"vm '{vm.name}' is not being migrated")
        migration.cancel(tx, vm)
        return accepted(operations.get(tx, under_way[0].id, None) or under_way[0], find(tx, vm.id) or vm)
    refuse_while_leaving(vm)
    target = resolve_node(tx, "node", ask.node) if ask.node else None
    op = migration.begin(
        *(tx, vm, target, loads),
        stuck=ask.stuck or "auto-converge",
        bandwidth_mib_s=ask.bandwidth_mib_s,
        downtime_ms=ask.downtime_ms,
    )
    return accepted(op, find(tx, vm.id) or vm)


def rebuild(tx: Tx, account: str, ref: str, image_ref: str | None) -> dict[str, Any]:
    """The system disk is made anew from the image; data disks, addresses and name stay."""
    vm = get(tx, Kind.VM, ref, account)
    refuse_while_leaving(vm)
    spec = vm.spec_as(VmSpec)
    disks, _nics = placement.attached(tx, vm)
    disk = next((item for item in disks if item.spec_as(DiskSpec).system), None)
    image = resolve_image(tx, "image", image_ref, account) if image_ref else find(tx, spec.image)
    if disk is None or image is None:
        raise CloudError(ErrorKind.CONFLICT, f"vm '{vm.name}' cannot be rebuilt: its image or system disk is gone")
    old = disk.spec_as(DiskSpec)
    if image.status_as(ImageStatus).size_mib > old.size_mib:
        raise invalid("image", f"needs {image.status_as(ImageStatus).size_mib} MiB, the disk has {old.size_mib}")
    _refuse_lost(tx, vm, system=False)
    kept = [row.name for row in snapshots.of_disk(tx, disk.id)]
    if kept:
        raise CloudError(
            ErrorKind.IN_USE,
            f"vm '{vm.name}' cannot be rebuilt while its system disk has snapshots: {', '.join(kept[:5])}"
            + (f" and {len(kept) - 5} more" if len(kept) > 5 else "")
            + "; roll back to one instead, or delete them first",
            users=[f"snapshot {name}" for name in kept],
        )
    for row in (disk, vm):
        unrefer(tx, row.id, role="image")
        refer(tx, row.id, image.id, "image")
    update = {"state": State.UPDATING, "reason": "being made anew", "lost": False}
    state = disk.status_as(DiskStatus).model_copy(update=update)
    anew = {"image": image.id, "rebuilds": old.rebuilds + 1, "flattened": False, "rollback_to": None}
    save(tx, disk, spec=old.model_copy(update=anew), status=state)
    return _change(
        tx, vm, "vm.rebuild", State.UPDATING, "being rebuilt", image=image.id, power="on", starts=spec.starts + 1
    )


def change(tx: Tx, account: str, ref: str, ask: VmPatch) -> dict[str, Any]:
    """Its name, and what the manager alone has to know of it: whether and when it is restarted elsewhere."""
    vm = get(tx, Kind.VM, ref, account)
    refuse_while_leaving(vm)
    update = ask.spec.model_dump(exclude_none=True) if ask.spec is not None else {}
    if ask.name is None and not update:
        raise invalid("name", "give a name or something of the spec")
    row = save(tx, vm, name=ask.name, spec=vm.spec_as(VmSpec).model_copy(update=update))
    if ask.name is None:
        return accepted(begin_and_end(tx, "vm.update", row), row)
    return accepted(begin_and_end(tx, "vm.rename", row, "done; the guest takes its new name at its next start"), row)


def delete(tx: Tx, account: str, ref: str, keep_disks_s: float | None = None) -> dict[str, Any]:
    """Works from any state. Asking again while it is under way is answered with the operation that does it.

    With `keep_disks_s` its system disk waits so many seconds in the trash, which one of a node's own storage cannot.
    """
    vm = get(tx, Kind.VM, ref, account)
    mine = [row for row in finishing.owned(tx, vm) if row.kind == Kind.DISK]
    if keep_disks_s is not None and vm.state != State.DELETING:
        for disk in mine:
            if disk.spec_as(DiskSpec).pool is None:
                raise CloudError(
                    ErrorKind.CONFLICT,
                    f"disk '{disk.name}' is in its node's own storage and goes with the VM; delete the VM without "
                    "keeping disks, or make an image of it first (`scloud image create-from`)",
                )
    elif vm.state != State.DELETING:
        for disk in mine:
            snapshots.refuse_clones(tx, disk)
    if vm.state == State.DELETING:
        for op in operations.open_for(tx, vm.id):
            if op.action == "vm.delete":
                return accepted(op, vm)
    keep_until = None if keep_disks_s is None else tx.now + keep_disks_s
    vm, answer = _end_migration(tx, vm, "delete", keep_until)
    if answer is not None:
        return answer
    op = begin(tx, "vm.delete", vm)
    finishing.begin_vm_deletion(tx, vm, keep_until)
    return accepted(operations.get(tx, op.id, None) or op, find(tx, vm.id) or vm)
