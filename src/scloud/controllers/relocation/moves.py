"""One VM's move as a part of a drain or a rebalance: begun, followed, tried again. Functions run in one transaction."""

from __future__ import annotations

from collections.abc import Iterable

from scloud.controllers import migration, placement
from scloud.controllers.placement import Loads
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import Kind, State
from scloud.model.migrations import Migration
from scloud.model.relocations import Relocation, RelocationSettings, VmMove
from scloud.model.specs import DiskSpec, NodeSpec, VmSpec
from scloud.store import operations
from scloud.store.database import Tx
from scloud.store.operations import OperationState
from scloud.store.resources import Resource, all_of, find, find_many

TRIES = 3
"""A VM that could not be moved so often is said to stay; it is tried again all the same."""
AGAIN_S = 15.0
"""Until the second try; twice as long until each one after that."""
AGAIN_MOST_S = 600.0


def under_way(tx: Tx, nodes: set[str]) -> list[tuple[str, str]]:
    """The migrations from these nodes, whoever has asked for them, as (source, target)."""
    moving = [move for _vm, move in _migrations(tx)]
    return sorted((move.source, move.target) for move in moving if move.source in nodes)


def coming(tx: Tx, node: str) -> dict[str, str]:
    """The VMs that are on their way to the node: name by id."""
    return {vm.id: vm.name for vm, move in _migrations(tx) if move.target == node and vm.node != node}


def _migrations(tx: Tx) -> list[tuple[Resource, Migration]]:
    ids = [op.resource_id for op in operations.open_with(tx, migration.ACTION)]
    vms = [row for row in find_many(tx, ids).values() if row.kind == Kind.VM]
    return [(vm, move) for vm in vms if (move := migration.of(vm)) is not None]


def has_turn(tx: Tx, nodes: set[str], settings: RelocationSettings, source: str, target: str) -> bool:
    """Whether one more may be on its way, at this moment, between these two of a cluster's nodes."""
    pairs = under_way(tx, nodes)
    ends = [node for pair in pairs for node in pair]
    return len(pairs) < settings.at_once and all(ends.count(node) < settings.per_node for node in (source, target))


def nodes_of(tx: Tx, cluster: str) -> set[str]:
    return {row.id for row in all_of(tx, Kind.NODE) if row.spec_as(NodeSpec).cluster == cluster}


def local_disks(tx: Tx, vm: Resource) -> list[Resource]:
    disks, _nics = placement.attached(tx, vm)
    return [disk for disk in disks if disk.spec_as(DiskSpec).pool is None]


def cold(vm: Resource) -> bool:
    """It is switched off, so that it can be given another node without copying anything."""
    return vm.state == State.STOPPED and vm.spec_as(VmSpec).power == "off"


def begin(tx: Tx, move: VmMove, vm: Resource, target: Resource, loads: Loads) -> VmMove:
    """Live if it runs, else by writing it down. A refusal is a try that failed."""
    begun = {"state": "moving", "target": target.name, "target_id": target.id, "began_at": tx.now, "reason": ""}
    try:
        if cold(vm):
            migration.carry(tx, vm, target, loads)
            return move.model_copy(update=begun | {"state": "moved", "ended_at": tx.now, "operation": None})
        op = migration.begin(tx, vm, target, loads)
    except CloudError as error:
        if error.kind not in (ErrorKind.CONFLICT, ErrorKind.NO_CAPACITY):
            raise
        return failed(tx, move, error.message)
    return move.model_copy(update=begun | {"operation": op.id})


def failed(tx: Tx, move: VmMove, reason: str) -> VmMove:
    tries = move.tries + 1
    again_at = tx.now + min(AGAIN_MOST_S, AGAIN_S * 2.0 ** (tries - 1))
    update = {
        "state": "waiting",
        "reason": reason,
        "failure": reason,
        "tries": tries,
        "again_at": again_at,
        "operation": None,
    }
    return move.model_copy(update=update)


def follow(tx: Tx, move: VmMove) -> VmMove:
    """What has become of one that was begun."""
    if move.state != "moving":
        return move
    vm = find(tx, move.vm)
    if vm is None or vm.gone or vm.state == State.DELETING:
        return move.model_copy(update={"state": "gone", "reason": "it is deleted", "ended_at": tx.now})
    op = operations.get(tx, move.operation or "", None)
    if op is not None and op.open:
        return move
    if vm.node == move.target_id:
        return move.model_copy(update={"state": "moved", "reason": op.message if op else "", "ended_at": tx.now})
    return failed(tx, move, op.message if op is not None else "its migration ended")


def told(tx: Tx, relocation: Relocation) -> Relocation:
    """With what each of those that are on their way says of itself now."""
    moves = tuple(
        move.model_copy(update={"reason": op.message})
        if move.state == "moving" and (op := operations.get(tx, move.operation or "", None)) is not None
        else move
        for move in relocation.moves
    )
    return relocation.model_copy(update={"moves": moves})


def words(tx: Tx, relocation: Relocation) -> str:
    """How far it is, in a line."""
    moving = [move for move in told(tx, relocation).moves if move.state == "moving"]
    parts = [f"{relocation.count('moved')} moved"]
    parts += [f"{left} left"] if (left := relocation.count("waiting") + len(moving)) else []
    parts += [f"{number} cannot move now"] if (number := relocation.count("stays")) else []
    parts += [f"{move.name} to {move.target}: {move.reason}" for move in moving[:2]]
    return "; ".join(parts)


def percent(moves: Iterable[VmMove]) -> int:
    states = [move.state for move in moves]
    over = sum(state not in ("waiting", "moving") for state in states)
    return round(100 * over / len(states)) if states else 0


def end(tx: Tx, relocation: Relocation, state: OperationState, message: str) -> None:
    """Its operation ends; what is asked for may well go on."""
    op = operations.get(tx, relocation.operation or "", None)
    if op is not None and op.open:
        operations.end(tx, op, state, message, code=ErrorKind.CONFLICT)


def progress(tx: Tx, relocation: Relocation) -> None:
    op = operations.get(tx, relocation.operation or "", None)
    if op is not None and op.open:
        share, message = min(99, percent(relocation.moves)), words(tx, relocation)
        if (op.progress, op.message) != (share, message):
            operations.progress(tx, op.id, share, message)


def away(vm: Resource) -> bool:
    """It is leaving the cloud, or has left it."""
    return vm.gone or vm.state == State.DELETING
