"""Draining a node: the rows. What is wanted is in the node's spec, what has become of each VM in the relocation.

A drain goes on until the node is opened again: its operation ends when nothing that runs is left, or only what cannot
leave; the node is looked at all the same, and a VM that could not leave leaves when it can.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scloud.controllers import migration, placement, snapshots
from scloud.controllers.placement import Loads
from scloud.controllers.relocation import moves
from scloud.controllers.settings import seconds_for
from scloud.model.kinds import TRANSITIONAL, Kind, State
from scloud.model.relocations import Relocation, RelocationSettings, VmMove
from scloud.model.specs import ClusterSpec, DiskSpec, NodeSpec, VmSpec
from scloud.model.statuses import VmStatus
from scloud.scheduler.drain import TURN, Leaver, Limits, Plan, drain
from scloud.store import operations, relocations
from scloud.store.database import Tx
from scloud.store.operations import Operation, OperationState
from scloud.store.resources import Resource, find, on_node, save

ACTION = "node.drain"
COMING = "it is on its way to this node; it leaves when it has come"


def begin(tx: Tx, node: Resource, by: str) -> Operation:
    """Asked again while it is under way, it is the same operation; else another that ends when it has been looked."""
    spec = node.spec_as(NodeSpec)
    going = relocations.open_of(tx, "drain", node.id)
    if going is not None and going.operation is not None:
        op = operations.get(tx, going.operation, None)
        if op is not None and op.open:
            return op
    if not (spec.draining and spec.cordoned):
        node = save(tx, node, spec=spec.model_copy(update={"draining": True, "cordoned": True}))
        operations.record(tx, node, "info", f"is being drained; account {by} has asked for it")
    op = operations.begin(tx, ACTION, node, seconds=seconds_for(ACTION))
    if going is None:
        id = tx.new_id(relocations.PREFIX)
        going = Relocation(id=id, kind="drain", subject=node.id, subject_name=node.name, by=by, began_at=tx.now)
    relocations.save(tx, going.model_copy(update={"state": "moving", "operation": op.id}))
    operations.enqueue(tx, f"drain/{node.id}")
    return op


def undo(tx: Tx, node: Resource, by: str, cancel: bool) -> Resource:
    """The node is open again. What is on its way goes on, or with `cancel` comes to nothing; what has left stays."""
    spec = node.spec_as(NodeSpec)
    going = relocations.open_of(tx, "drain", node.id)
    node = save(tx, node, spec=spec.model_copy(update={"draining": False, "cordoned": False}))
    if going is None:
        operations.record(tx, node, "info", "uncordoned")
        return node
    going = going.model_copy(update={"moves": tuple(moves.follow(tx, move) for move in going.moves)})
    for move in going.moves:
        vm = find(tx, move.vm)
        if move.state == "moving" and cancel and vm is not None:
            migration.cancel(tx, vm, f"the drain of node {node.name} was undone")
    goes_on = "are cancelled" if cancel else "go on"
    words = f"undone: the node is open; {_have_left(going)}, {going.count('moving')} under way {goes_on}"
    moves.end(tx, going, OperationState.CANCELLED, words)
    left = tuple(
        move.model_copy(update={"state": "stays", "reason": "the drain was undone"})
        if move.state == "waiting"
        else move
        for move in going.moves
    )
    relocations.save(
        tx, going.model_copy(update={"state": "ended", "reason": words, "ended_at": tx.now, "moves": left})
    )
    operations.record(tx, node, "info", f"is open again; account {by} has asked for it: {words}")
    return node


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen, and what follows from it. `names` are those of all its VMs by id, also of those that migrate."""

    plan: Plan
    names: Mapping[str, str]


def look(tx: Tx, id: str, loads: Loads) -> Look | None:
    """None if the node does not drain. Nothing is written: in a large cloud this takes long."""
    node = find(tx, id)
    if node is None or not node.spec_as(NodeSpec).draining:
        return None
    spec = node.spec_as(NodeSpec)
    settings = _settings(tx, spec)
    going = relocations.open_of(tx, "drain", id)
    known = {move.vm: move for move in going.moves} if going is not None else {}
    vms = [vm for vm in on_node(tx, Kind.VM, id) if not vm.gone]
    leavers = [_leaver(tx, vm, known.get(vm.id)) for vm in vms if migration.of(vm) is None]
    mine = moves.nodes_of(tx, spec.cluster)
    nodes = [one for one in placement.snapshot(tx, loads) if one.id in mine]
    plan = drain(nodes, leavers, moves.under_way(tx, mine), Limits(settings.per_node, settings.at_once))
    return Look(plan, {vm.id: vm.name for vm in vms})


def _settings(tx: Tx, spec: NodeSpec) -> RelocationSettings:
    cluster = find(tx, spec.cluster)
    return (cluster.spec_as(ClusterSpec) if cluster is not None else ClusterSpec()).relocation


def _leaver(tx: Tx, vm: Resource, before: VmMove | None) -> Leaver:
    spec, status = vm.spec_as(VmSpec), vm.status_as(VmStatus)
    disks, _nics = placement.attached(tx, vm)
    pools = {pool for disk in disks if (pool := disk.spec_as(DiskSpec).pool) is not None}
    copied = sum(disk.size_mib for disk in (row.spec_as(DiskSpec) for row in disks) if disk.pool is None)
    request = placement.request_for(tx, spec, copied, exclude=vm.id, pools=pools, away=status.leaving)
    stays, later = _obstacle(tx, vm, spec), ""
    if not stays:
        later = _not_yet(tx, vm)
    if not stays and not later and before is not None and before.again_at is not None and tx.now < before.again_at:
        words = f"{before.failure}; it is tried again"
        stays, later = (words, "") if before.tries >= moves.TRIES else ("", words)
    return Leaver(
        id=vm.id,
        name=vm.name,
        account=vm.account or "",
        node=vm.node or "",
        request=placement.counting_account(tx, vm, request),
        live=not moves.cold(vm),
        group=spec.placement_group,
        stays=stays,
        later=later,
    )


def _obstacle(tx: Tx, vm: Resource, spec: VmSpec) -> str:
    """What keeps it on its node, with what to do."""
    off = moves.cold(vm)
    do = "" if off else f"; stop it for the time being (`scloud vm stop {vm.name}`)"
    if spec.gpus:
        return f"it has GPUs of this node{do}"
    local = moves.local_disks(tx, vm)
    where = f"disk {', '.join(disk.name for disk in local)} is in this node's own storage"
    if local and off:
        return f"{where}; it is copied only with a VM that runs"
    if any(snapshots.of_disk(tx, disk.id) for disk in local):
        return f"{where} and has snapshots, which cannot go with it: delete them, or stop the VM"
    if spec.node is not None:
        there = "" if off else f", or bring it away by hand (`scloud vm migrate {vm.name} --to NODE`)"
        return f"it was asked onto this node alone{do}{there}"
    if vm.state == State.ERROR:
        return f"it is in error; start it or delete it: {vm.status_as(VmStatus).reason}"
    if vm.state == State.UNKNOWN:
        return "its node does not answer: what it does is unknown"
    return ""


def _not_yet(tx: Tx, vm: Resource) -> str:
    if vm.state in TRANSITIONAL:
        return f"it is {vm.state}"
    open_ones = operations.open_for(tx, vm.id)
    return f"{open_ones[0].action} is under way" if open_ones else ""


def carry_out(tx: Tx, id: str, seen: Look, loads: Loads) -> Relocation | None:
    """Begin what is to begin, note what has become of the rest. None if it drains no more."""
    node, going = find(tx, id), relocations.open_of(tx, "drain", id)
    if node is None or not node.spec_as(NodeSpec).draining or going is None:
        return None
    spec = node.spec_as(NodeSpec)
    settings, mine = _settings(tx, spec), moves.nodes_of(tx, spec.cluster)
    known = {move.vm: moves.follow(tx, move) for move in going.moves}
    for vm, name in seen.names.items():
        known.setdefault(vm, VmMove(vm=vm, name=name, state="waiting", node=node.name))
    for leave in seen.plan.begin:
        move, row, target = known[leave.vm.id], find(tx, leave.vm.id), find(tx, leave.target)
        if move.state == "moving" or row is None or row.node != id or moves.away(row):
            continue
        if move.again_at is not None and tx.now < move.again_at:
            continue  # it has failed since it was looked at
        known[row.id] = move = _said(move, "waiting", TURN)
        if target is None or target.spec_as(NodeSpec).cordoned:
            continue
        # Other drains have looked at the same time.
        if moves.cold(row) or moves.has_turn(tx, mine, settings, id, leave.target):
            known[row.id] = moves.begin(tx, move, row, target, loads)
    for vm, reason in seen.plan.waits.items():
        known[vm] = _said(known[vm], "waiting", reason)
    for vm, reason in seen.plan.stays.items():
        known[vm] = _said(known[vm], "stays", reason)
    _coming(tx, node, known)
    _elsewhere(tx, id, known)
    after = _concluded(tx, going.model_copy(update={"moves": tuple(sorted(known.values(), key=lambda one: one.vm))}))
    if after != going:
        relocations.save(tx, after)
    moves.progress(tx, after)
    return after


def _said(move: VmMove, state: str, reason: str) -> VmMove:
    return move if move.state == "moving" else move.model_copy(update={"state": state, "reason": reason})


def _coming(tx: Tx, node: Resource, known: dict[str, VmMove]) -> None:
    """Those that were on their way here when the drain was asked for: they leave once they have come, if they come."""
    coming = moves.coming(tx, node.id)
    for vm, name in coming.items():
        known[vm] = VmMove(vm=vm, name=name, state="waiting", node=node.name, reason=COMING)
    for vm in [vm for vm, move in known.items() if move.reason == COMING and vm not in coming]:
        row = find(tx, vm)
        if row is None or row.node != node.id:
            del known[vm]


def _elsewhere(tx: Tx, node: str, known: dict[str, VmMove]) -> None:
    """Those that have left by themselves: deleted, or moved by hand; or have come by hand, by a migration."""
    for vm, move in known.items():
        if move.state == "moving" or move.reason == COMING:
            continue
        row = find(tx, vm)
        if row is None or moves.away(row):
            if move.state != "gone":
                known[vm] = move.model_copy(update={"state": "gone", "reason": "it is deleted", "ended_at": tx.now})
        elif row.node != node and move.state != "moved":
            home = find(tx, row.node) if row.node else None
            target = home.name if home is not None else ""
            known[vm] = move.model_copy(update={"state": "moved", "reason": "", "target": target, "ended_at": tx.now})
        elif row.node == node and (way := migration.of(row)) is not None:
            ops = [op.id for op in operations.open_for(tx, vm) if op.action == migration.ACTION]
            update: dict[str, object] = {
                "state": "moving",
                "reason": "",
                "target": way.target_name,
                "target_id": way.target,
            }
            update |= {"operation": ops[0] if ops else None, "began_at": way.began_at}
            known[vm] = move.model_copy(update=update)


def _concluded(tx: Tx, going: Relocation) -> Relocation:
    """What is left decides the state. A VM that is switched off does not stand in the way of maintenance."""
    left = [move for move in going.moves if move.state in ("waiting", "moving")]
    if left:
        return going.model_copy(update={"state": "moving", "reason": ""})
    staying = [move for move in going.moves if move.state == "stays"]
    rows = {move.vm: find(tx, move.vm) for move in staying}
    held = [move for move in staying if (row := rows[move.vm]) is not None and not moves.cold(row)]
    moved = _have_left(going)
    if held:
        shown = "; ".join(f"{move.name}: {move.reason}" for move in held[:5])
        more = f"; and {len(held) - 5} more" if len(held) > 5 else ""
        reason = f"{moved}, {len(held)} cannot: {shown}{more}"
        moves.end(tx, going, OperationState.FAILED, reason)
        state = "blocked"
    else:
        off = [move.name for move in staying]
        more = (
            f"; {len(off)} that cannot leave {'is' if len(off) == 1 else 'are'} off: {', '.join(off[:5])}"
            if off
            else ""
        )
        reason, state = f"{moved}, nothing runs on it any more{more}", "done"
        moves.end(tx, going, OperationState.DONE, reason)
    if going.state != state:
        row = find(tx, going.subject)
        if row is not None:
            operations.record(tx, row, "warning" if held else "info", f"drained as far as it goes: {reason}")
    return going.model_copy(update={"state": state, "reason": reason})


def _have_left(going: Relocation) -> str:
    number = going.count("moved")
    return "1 VM has left" if number == 1 else f"{number} VMs have left"
