"""What becomes of operations that did not end in time: no state without an exit."""

from __future__ import annotations

from collections.abc import Iterable

from scloud.controllers import finishing, migration, node_removal, placement, snapshots
from scloud.controllers.storage import leaving
from scloud.model.errors import ErrorKind
from scloud.model.kinds import TRANSITIONAL, Kind, State
from scloud.model.registry import status_type
from scloud.model.storage import PoolStatus
from scloud.store import operations
from scloud.store.database import Tx
from scloud.store.operations import Operation, OperationState
from scloud.store.resources import Resource, find, save


def expire(tx: Tx, overdue: Iterable[Operation], connected: set[str]) -> None:
    """Fail each with what it was waiting for; a deletion succeeds for its owner all the same."""
    for old in overdue:
        op = operations.get(tx, old.id, None)
        if op is None or not op.open:
            continue
        row = find(tx, op.resource_id, gone=True)
        if row is None:
            operations.end(tx, op, OperationState.CANCELLED, "the resource is gone")
        elif migration.ends_first(row) and op.action != migration.ACTION:
            _expire_wait(tx, op, row)
        elif op.action == node_removal.ACTION:
            node_removal.overdue(tx, op, row)
        elif op.action.endswith(".delete"):
            _expire_deletion(tx, op, row, connected)
        else:
            _expire(tx, op, row, connected)


def _node_name(tx: Tx, row: Resource) -> str:
    node = find(tx, row.node) if row.node else None
    return node.name if node else "its node"


def _place(tx: Tx, row: Resource) -> Resource:
    """What has the node that is waited for: of a snapshot its disk."""
    return (find(tx, row.parent, gone=True) or row) if row.kind == Kind.SNAPSHOT and row.parent else row


def _expire_wait(tx: Tx, op: Operation, row: Resource) -> None:
    """Where it runs is not known: to call it off or gone would be to guess."""
    reason = (
        f"{op.action} did not finish within {op.deadline_at - op.created_at:.0f} s: its migration has not ended, as a "
        "node does not say whether it has it; it is done as soon as that is known"
    )
    operations.end(tx, op, OperationState.FAILED, reason, code=ErrorKind.TIMED_OUT)
    operations.record(tx, row, "error", reason)


def _expire_deletion(tx: Tx, op: Operation, row: Resource, connected: set[str]) -> None:
    if row.kind == Kind.POOL:
        _expire_pool_deletion(tx, op, row)
        return
    if row.kind == Kind.STORAGE_CLUSTER:
        leaving.overdue(tx, row)
        return
    place = _place(tx, row)
    name = _node_name(tx, place)
    waiting = "has not finished removing it" if place.node in connected else "does not answer"
    finishing.bury(
        tx, row, f"deleted; {name} {waiting}: what is left there is removed when it can be, its addresses stay reserved"
    )


def _expire_pool_deletion(tx: Tx, op: Operation, pool: Resource) -> None:
    """Its bytes are there until its cluster has deleted it: it stays to be seen, with the reason."""
    why = pool.status_as(PoolStatus).reason or "its cluster has not deleted it yet"
    seconds = op.deadline_at - op.created_at
    reason = f"{op.action} did not finish within {seconds:.0f} s; the pool stays in `deleting`: {why}"
    operations.end(tx, op, OperationState.FAILED, reason, code=ErrorKind.TIMED_OUT)


def _expire(tx: Tx, op: Operation, row: Resource, connected: set[str]) -> None:
    kind = Kind(row.kind)
    if op.action == migration.ACTION:
        migration.overdue(tx, row, op)
        return
    status = row.status_as(status_type(kind))
    seconds = op.deadline_at - op.created_at
    place = _place(tx, row)
    if place.node is not None and place.node not in connected:
        why = f"{_node_name(tx, place)} does not answer; it will be done if the node returns"
    else:
        why = f"last heard: {status.reason or op.message}"
    reason = f"{op.action} did not finish within {seconds:.0f} s; {why}"
    operations.end(tx, op, OperationState.FAILED, reason, code=ErrorKind.TIMED_OUT)
    operations.record(tx, row, "error", reason)
    if status.state in TRANSITIONAL and status.state != State.DELETING:
        save(tx, row, status=status.model_copy(update={"state": State.ERROR, "reason": reason}))
    if kind == Kind.SNAPSHOT:
        snapshots.wake_users(tx, row)
    if kind == Kind.VM and row.node is None:
        placement.unplaced(tx, row)
    elif kind == Kind.VM:
        _expire_parts(tx, row, reason)


def _expire_parts(tx: Tx, vm: Resource, reason: str) -> None:
    """What is on its way together with the VM, and has no operation of its own to wait for it."""
    for part in (part for parts in placement.attached(tx, vm) for part in parts):
        status = part.status_as(status_type(Kind(part.kind)))
        if status.state not in TRANSITIONAL or status.state == State.DELETING or operations.open_for(tx, part.id):
            continue
        save(tx, part, status=status.model_copy(update={"state": State.ERROR, "reason": reason}))
