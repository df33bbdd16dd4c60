"""Carrying a rebalance out: the proposal of its beginning, each move judged again at the moment it would begin."""

from __future__ import annotations

from scloud.controllers import migration, placement
from scloud.controllers.placement import Loads
from scloud.controllers.rebalancing import Rebalancing
from scloud.controllers.relocation import moves
from scloud.controllers.settings import seconds_for
from scloud.model.kinds import Kind
from scloud.model.relocations import Relocation, RelocationSettings, VmMove
from scloud.model.specs import ClusterSpec, DiskSpec, NodeSpec, VmSpec
from scloud.scheduler.rebalance import MIN_GAIN, gain
from scloud.scheduler.snapshot import counted
from scloud.scheduler.timetable import due, opening
from scloud.store import operations, relocations
from scloud.store.database import Tx
from scloud.store.operations import Operation, OperationState
from scloud.store.resources import Resource, find, save

ACTION = "cluster.rebalance"
SCHEDULE = "schedule"
"""Who has asked for one that begins by itself."""


def begin(tx: Tx, cluster: Resource, found: Rebalancing, by: str) -> Operation | None:
    """One is under way at most: asked again, it is that one. Without moves it is over at once.

    None if there is nothing to move and nobody has asked.
    """
    going = relocations.open_of(tx, "rebalance", cluster.id)
    if going is not None:
        op = operations.get(tx, going.operation or "", None)
        if op is not None and op.open:
            return op
    names = {node.id: node.name for node in found.nodes}
    made = tuple(
        VmMove(
            vm=move.vm.id,
            name=move.vm.name,
            state="waiting",
            node=names[move.vm.node],
            target=names[move.target],
            target_id=move.target,
            gain=round(move.gain, 3),
        )
        for move in found.proposal.moves
    )
    op = None
    if made or by != SCHEDULE:
        op = operations.begin(tx, ACTION, cluster, seconds=seconds_for(ACTION))
    run = Relocation(
        id=tx.new_id(relocations.PREFIX),
        kind="rebalance",
        subject=cluster.id,
        subject_name=cluster.name,
        by=by,
        operation=op.id if op is not None else None,
        began_at=tx.now,
        moves=made,
    )
    if made:
        operations.record(tx, cluster, "info", f"is being rebalanced, {len(made)} moves; {by} has asked for it")
    run = _concluded(tx, run)
    relocations.save(tx, run)
    operations.enqueue(tx, f"rebalance/{cluster.id}")
    return operations.get(tx, op.id, None) if op is not None else None


def stop(tx: Tx, cluster: Resource) -> Relocation | None:
    """No more moves begin; those under way go on."""
    run = relocations.open_of(tx, "rebalance", cluster.id)
    if run is None:
        return None
    run = _give_up(run, "it was stopped before")
    moves.end(tx, run, OperationState.CANCELLED, f"stopped: {moves.words(tx, run)}")
    return relocations.save(tx, _concluded(tx, run))


def carry_on(tx: Tx, id: str, loads: Loads) -> Relocation | None:
    """One more look at the one that is under way."""
    cluster, run = find(tx, id), relocations.open_of(tx, "rebalance", id)
    if cluster is None or run is None:
        return None
    settings = cluster.spec_as(ClusterSpec).relocation
    after = run.model_copy(update={"moves": tuple(_once(moves.follow(tx, move)) for move in run.moves)})
    if run.by == SCHEDULE and opening(settings.rebalance_window, tx.now) != tx.now:
        after = _give_up(after, f"the window {settings.rebalance_window} UTC has closed")
    after = _concluded(tx, _begin_more(tx, after, settings, loads))
    if after != run:
        relocations.save(tx, after)
    moves.progress(tx, after)
    return after


def _once(move: VmMove) -> VmMove:
    """A move that failed is not tried again: the next rebalance judges anew."""
    return move if move.state != "waiting" or not move.tries else move.model_copy(update={"state": "stays"})


def _give_up(run: Relocation, reason: str) -> Relocation:
    left = tuple(
        move.model_copy(update={"state": "stays", "reason": reason}) if move.state == "waiting" else move
        for move in run.moves
    )
    return run.model_copy(update={"moves": left})


def _begin_more(tx: Tx, run: Relocation, settings: RelocationSettings, loads: Loads) -> Relocation:
    mine = moves.nodes_of(tx, run.subject)
    known = list(run.moves)
    for number, move in enumerate(known):
        if move.state != "waiting":
            continue
        vm = find(tx, move.vm)
        if vm is None or moves.away(vm):
            known[number] = move.model_copy(update={"state": "gone", "reason": "it is deleted"})
            continue
        if not moves.has_turn(tx, mine, settings, vm.node or "", move.target_id):
            continue
        known[number] = _once(_judged(tx, move, vm, loads))
    return run.model_copy(update={"moves": tuple(known)})


def _judged(tx: Tx, move: VmMove, vm: Resource, loads: Loads) -> VmMove:
    """Begun, if it still gains what a move has to."""

    def stays(reason: str) -> VmMove:
        return move.model_copy(update={"state": "stays", "reason": reason})

    source, target = find(tx, vm.node or ""), find(tx, move.target_id)
    if source is None or source.name != move.node or migration.of(vm) is not None:
        return stays("it is on another node now, or on its way")
    if target is None:
        return stays(f"node {move.target} is gone")
    if source.spec_as(NodeSpec).draining:
        return stays(f"node {source.name} is being drained: it leaves with that")
    fleet = placement.view_of(tx, loads).fleet
    if source.id not in fleet or target.id not in fleet:
        return stays("its node or the target is gone")
    spec = vm.spec_as(VmSpec)
    disks, _nics = placement.attached(tx, vm)
    pools = {pool for disk in disks if (pool := disk.spec_as(DiskSpec).pool) is not None}
    request = placement.request_for(tx, spec, 0, exclude=vm.id, pools=pools)
    request = counted((fleet[node.id] for node in placement.read_nodes(tx)), request)
    now = gain(fleet[source.id], fleet[target.id], placement.counting_account(tx, vm, request))
    if now < MIN_GAIN:
        return stays(f"it would gain {now:.2f} now: not worth it any more")
    return moves.begin(tx, move.model_copy(update={"gain": round(now, 3)}), vm, target, loads)


def _concluded(tx: Tx, run: Relocation) -> Relocation:
    if run.count("waiting") + run.count("moving"):
        return run
    reason = (
        f"{run.count('moved')} of {len(run.moves)} moved, gain {run.gained:.2f}"
        if run.moves
        else "nothing is worth moving"
    )
    moves.end(tx, run, OperationState.DONE, reason)
    cluster = find(tx, run.subject)
    if cluster is not None and run.moves:
        operations.record(tx, cluster, "info", f"rebalanced: {reason}")
    return run.model_copy(update={"state": "done", "reason": reason, "ended_at": tx.now})


def next_due(tx: Tx, id: str) -> float | None:
    """When one begins by itself, seconds since 1970; None if none does."""
    cluster = find(tx, id)
    if cluster is None or cluster.kind != Kind.CLUSTER:
        return None
    settings = cluster.spec_as(ClusterSpec).relocation
    if not settings.rebalance_every_s:
        return None
    last = next(iter(relocations.newest(tx, "rebalance", id)), None)
    began = last.began_at if last is not None else None
    return due(settings.rebalance_every_s, settings.rebalance_window, began, tx.now)


def set_settings(tx: Tx, cluster: Resource, settings: RelocationSettings) -> Resource:
    operations.enqueue(tx, f"rebalance/{cluster.id}")
    return save(tx, cluster, spec=cluster.spec_as(ClusterSpec).model_copy(update={"relocation": settings}))
