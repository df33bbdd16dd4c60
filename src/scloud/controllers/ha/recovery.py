"""Giving the VMs of a lost node to others. Each function runs in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from scloud.controllers import finishing, migration, placement, serving
from scloud.controllers.ha.room import Reasons, Shape, shape
from scloud.controllers.settings import seconds_for
from scloud.model.ha import Incident, IncidentState, Moment, VmRecovery
from scloud.model.kinds import Kind, State
from scloud.model.specs import DiskSpec, VmSpec
from scloud.model.statuses import DiskStatus, VmStatus
from scloud.model.storage import PoolSpec
from scloud.reconcile.ha.recovery import Fences, LostVm, left_behind, order
from scloud.scheduler.snapshot import Request
from scloud.store import incidents, operations
from scloud.store.database import Tx
from scloud.store.resources import Resource, find, find_many, on_node, save

ACTION = "vm.recover"
AT_ONCE = 32
"""VMs that one transaction gives to others."""
NEXT = "is placed next"


def fences(incident: Incident) -> Fences:
    return Fences(frozenset(incident.cut), frozenset(incident.keys), incident.power_off)


def lost_vms(tx: Tx, node: str) -> dict[str, tuple[Resource, LostVm]]:
    """What the database says is on the node."""
    return {row.id: (row, _lost(tx, row)) for row in on_node(tx, Kind.VM, node)}


def _lost(tx: Tx, row: Resource) -> LostVm:
    spec = row.spec_as(VmSpec)
    disks, _nics = placement.attached(tx, row)
    specs = [(disk, disk.spec_as(DiskSpec)) for disk in disks]
    pools = find_many(tx, {one.pool for _, one in specs if one.pool is not None})
    return LostVm(
        id=row.id,
        name=row.name,
        on=spec.power == "on",
        ha=spec.ha,
        priority=spec.ha_priority,
        leaving=row.gone or row.state == State.DELETING,
        local=tuple(sorted(disk.name for disk, one in specs if one.pool is None)),
        pinned=spec.node is not None,
        clusters=frozenset(pool.spec_as(PoolSpec).cluster for pool in pools.values()),
    )


def end_moves(tx: Tx, incident: Incident) -> set[str]:
    """Migrations from and to the lost node end, and what VMs have left there counts as gone. Returns the VMs of which
    the other node has still to say whether they have come to it."""
    certain = fences(incident)
    dead = {other.node for other in incidents.open_ones(tx) if other.fenced}
    return {
        row.id
        for row in migration.concerning(tx, incident.node)
        if certain.certain(_lost(tx, row).clusters) and not migration.node_lost(tx, row, incident.node, dead)
    }


def recover(tx: Tx, id: str, loads: placement.Loads, reasons: Reasons) -> Incident | None:
    """One more look at an incident: place what can be placed, note what has come to run."""
    incident = incidents.find(tx, id)
    if incident is None or not incident.open:
        return incident
    moving = end_moves(tx, incident)
    lost = lost_vms(tx, incident.node)
    known = {item.vm: item for item in incident.vms}
    moments: list[Moment] = []
    for vm, words in left_behind(item for _, item in lost.values()).items():
        known[vm] = _left(known.get(vm), vm, lost[vm][0].name, words)
        if lost[vm][0].state == State.UNKNOWN:  # else it has been heard of since
            _say_why(tx, lost[vm][0], f"node {incident.node_name} was lost; {words}")
    certain = fences(incident)
    ready = []
    for item in order(item for _, item in lost.values()):
        if not certain.certain(item.clusters):
            known[item.id] = VmRecovery(vm=item.id, name=item.name, state="pending", reason="its node is not cut off")
        elif item.id in moving:
            words = "it was being migrated: the other node is asked whether it has come"
            known[item.id] = VmRecovery(vm=item.id, name=item.name, state="pending", reason=words)
        else:
            ready.append(lost[item.id][0])
    known |= _place(tx, ready, incident.node_name, loads, reasons, moments, known)
    rows = find_many(tx, [vm for vm, item in known.items() if item.state == "placed" or vm not in lost])
    for vm, before in known.items():
        if vm in lost:
            continue
        known[vm] = seen = _seen(tx, before, rows.get(vm))
        if seen.state != before.state and seen.state == "running":
            moments.append(Moment(at=seen.running_at or tx.now, what="running", text=f"{seen.name} on {seen.node}"))
    after = _concluded(tx, incident, known.values(), moments)
    return incident if after == incident else incidents.save(tx, after)


def _left(before: VmRecovery | None, vm: str, name: str, words: str) -> VmRecovery:
    return (
        before
        if before is not None and before.reason == words
        else VmRecovery(vm=vm, name=name, state="left", reason=words)
    )


def _seen(tx: Tx, item: VmRecovery, row: Resource | None) -> VmRecovery:
    """A VM that is not on the lost node any more."""
    if row is None or row.gone or row.state == State.DELETING:
        return item.model_copy(update={"state": "gone", "reason": "it was deleted"})
    if item.state not in ("placed", "pending", "waiting", "left"):
        return item
    node = find(tx, row.node) if row.node else None
    update: dict[str, object] = {"node": node.name if node is not None else None}
    if row.state == State.RUNNING:
        update |= {"state": "running", "running_at": row.updated_at, "reason": ""}
    elif row.state == State.STOPPED:
        update |= {"state": "stopped", "reason": ""}
    else:
        update |= {"state": "placed", "reason": row.status_as(VmStatus).reason}
    return item.model_copy(update=update)


def _say_why(tx: Tx, vm: Resource, reason: str) -> None:
    """Why it does not run, to who looks at the VM and not at the incident."""
    status = vm.status_as(VmStatus)
    if status.reason != reason:
        save(tx, vm, status=status.model_copy(update={"state": State.UNKNOWN, "reason": reason}))


def _place(
    tx: Tx,
    vms: list[Resource],
    lost: str,
    loads: placement.Loads,
    reasons: Reasons,
    moments: list[Moment],
    before: Mapping[str, VmRecovery],
) -> dict[str, VmRecovery]:
    """What has become of VMs that may run elsewhere, in their order. A look places so many and no more: others have to
    write, too."""
    found: dict[str, VmRecovery] = {}
    reach: dict[frozenset[str], frozenset[str] | None] = {}
    waiting: list[tuple[Resource, Request]] = []
    full: set[Shape] = set()
    placed = 0
    for vm in vms:
        if placed >= AT_ONCE:
            found[vm.id] = VmRecovery(vm=vm.id, name=vm.name, state="pending", reason=NEXT)
            continue
        disks, nics = placement.attached(tx, vm)
        request = _request(tx, vm, disks, reach)
        home = placement.find_home(tx, vm.account, request, loads) if shape(request) not in full else None
        if home is None:
            full.add(shape(request))
            waiting.append((vm, request))
            continue
        _give(tx, vm, home, lost, disks, nics)
        placed += 1
        found[vm.id] = VmRecovery(vm=vm.id, name=vm.name, state="placed", node=home.name, placed_at=tx.now)
        moments.append(Moment(at=tx.now, what="placed", text=f"{vm.name} on {home.name}"))
    said = reasons.of(tx, [request for _, request in waiting], loads)
    for vm, request in waiting:
        words = f"waits for room: {said[shape(request)]}"
        _say_why(tx, vm, words)
        found[vm.id] = VmRecovery(vm=vm.id, name=vm.name, state="waiting", reason=words)
        if vm.id not in before or before[vm.id].state != "waiting":  # its reason changes with every VM elsewhere
            moments.append(Moment(at=tx.now, what="waiting", text=f"{vm.name}: {words}"))
    return found


def _request(
    tx: Tx, vm: Resource, disks: Iterable[Resource], reach: dict[frozenset[str], frozenset[str] | None]
) -> Request:
    """What placement is asked for it. `reach` remembers which nodes reach which pools."""
    pools = frozenset(pool for disk in disks if (pool := disk.spec_as(DiskSpec).pool) is not None)
    if pools not in reach:
        reach[pools] = placement.reachable_from(tx, pools)
    away = vm.status_as(VmStatus).leaving
    request = placement.request_for(tx, vm.spec_as(VmSpec), 0, exclude=vm.id, away=away)
    return replace(request, reachable_from=reach[pools])


def _give(
    tx: Tx, vm: Resource, home: placement.Home, lost: str, disks: Iterable[Resource], nics: list[Resource]
) -> None:
    """Its node was cut off for certain: it is another's from now on."""
    was_on = vm.node
    vm = finishing.release_vm(tx, vm)
    freed = []
    for disk in disks:
        if disk.node == was_on:  # else it was still to come: the VM that it leaves may have it open on another node
            disk = save(tx, disk, status=disk.status_as(DiskStatus).model_copy(update={"held": False}))
        freed.append(disk)
    placement.settle(tx, vm, home, freed, nics)
    words = f"node {lost} was lost; it is started on {home.name}"
    vm = find(tx, vm.id) or vm
    if vm.spec_as(VmSpec).power == "on":
        moved = vm.status_as(VmStatus).model_copy(update={"state": State.STARTING, "reason": words})
        vm = save(tx, vm, status=moved)
        if not any(op.action == ACTION for op in operations.open_for(tx, vm.id)):
            operations.begin(tx, ACTION, vm, seconds=seconds_for(ACTION), message=words)
    operations.record(tx, vm, "warning", words)


def unfinished(incident: Incident) -> bool:
    """Whether the last look has left some that can be placed at once."""
    return any(item.reason == NEXT for item in incident.vms)


def _concluded(tx: Tx, incident: Incident, vms: Iterable[VmRecovery], moments: list[Moment]) -> Incident:
    """What is left to do decides the state."""
    items = tuple(sorted(vms, key=lambda item: item.vm))
    states = {item.state for item in items}
    if not incident.fenced and incident.state == IncidentState.FENCING:
        state, reason = IncidentState.FENCING, incident.reason
    elif states & {"placed", "pending"}:
        state, reason = IncidentState.RECOVERING, ""
    elif "waiting" in states:
        waiting = [item.name for item in items if item.state == "waiting"]
        state = IncidentState.WAITING
        reason = f"no room for {', '.join(waiting[:5])}; tried again as soon as there is some"
    else:
        state, reason = IncidentState.RECOVERED, "the node is kept out until it is back and clean"
    if state is IncidentState.RECOVERED and incident.state is not state:
        ran = sum(item.state == "running" for item in items)
        stay = sum(item.state == "left" for item in items)
        words = f"VMs that run elsewhere: {ran}; that stay with the node: {stay}"
        moments.append(Moment(at=tx.now, what="recovered", text=words))
    update = {"state": state, "reason": reason, "vms": items, "moments": (*incident.moments, *moments)}
    return incident.model_copy(update=update)


def unheld(tx: Tx, node: str) -> None:
    """Disks that only the node served: it is cut off, so others serve them."""
    for disk in on_node(tx, Kind.DISK, node):
        if disk.spec_as(DiskSpec).pool is not None and not disk.status_as(DiskStatus).held:
            serving.serve(tx, disk, without=node)
