"""Operations, events and work items: what was asked for, what happened, what is still to be looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson
from sqlalchemy import Row, bindparam, delete, insert, select, text, update

from scloud.model.kinds import EVENT_PREFIX, OPERATION_PREFIX
from scloud.store.database import Tx
from scloud.store.resources import Resource
from scloud.store.tables import event, operation, work


class OperationState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN = (OperationState.QUEUED, OperationState.RUNNING)


@dataclass(frozen=True, slots=True)
class Operation:
    id: str
    action: str
    account: str
    resource_kind: str
    resource_id: str
    resource_name: str
    generation: int
    state: str
    progress: int
    message: str
    error: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    deadline_at: float

    @property
    def open(self) -> bool:
        return self.state in OPEN

    def public(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": "operation",
            "action": self.action,
            "account": self.account or None,
            "resource": {"kind": self.resource_kind, "id": self.resource_id, "name": self.resource_name},
            "state": self.state,
            "progress": self.progress,
            "message": self.message,
            "error": orjson.Fragment(self.error) if self.error else None,
            "created_at": self.created_at,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
            "deadline_at": self.deadline_at,
        }


_OPEN_FOR = (
    select(operation)
    .where(operation.c.resource_id == bindparam("resource_id"), operation.c.state.in_(OPEN))
    .order_by(operation.c.id)
)
_WITH_OPEN = select(operation.c.resource_id).where(
    operation.c.resource_id.in_(bindparam("ids", expanding=True)), operation.c.state.in_(OPEN)
)
_OVERDUE = (
    select(operation)
    .where(operation.c.state.in_(OPEN), operation.c.deadline_at <= bindparam("now"))
    .order_by(operation.c.id)
    .limit(bindparam("most"))
)
_DUE = select(work).where(work.c.due_at <= bindparam("now")).order_by(work.c.due_at).limit(bindparam("most"))
_NEXT_DUE = select(work.c.due_at).order_by(work.c.due_at).limit(1)
_BY_ID = select(operation).where(operation.c.id == bindparam("id"))
_INSERT = insert(operation)
_INSERT_EVENT = insert(event)
_END = (
    update(operation)
    .where(operation.c.id == bindparam("which"), operation.c.state.in_(OPEN))
    .values({name: bindparam(name) for name in ("state", "message", "error", "finished_at", "progress")})
)

_PROGRESS = (
    update(operation)
    .where(operation.c.id == bindparam("which"), operation.c.state.in_(OPEN))
    .values(progress=bindparam("progress"), message=bindparam("message"))
)
_FINISH = delete(work).where(work.c.key == bindparam("which"), work.c.version == bindparam("seen"))


def _row(row: Row[Any]) -> Operation:
    return Operation(*tuple(row))


def begin(
    tx: Tx,
    action: str,
    row: Resource,
    *,
    seconds: float,
    account: str | None = None,
    progress: int = 0,
    message: str = "accepted",
) -> Operation:
    """An operation on a resource at its present generation, to be ended within `seconds`."""
    made = Operation(
        id=tx.new_id(OPERATION_PREFIX),
        action=action,
        account=row.account if account is None else account,
        resource_kind=row.kind,
        resource_id=row.id,
        resource_name=row.name,
        generation=row.generation,
        state=OperationState.RUNNING,
        progress=progress,
        message=message,
        error=None,
        created_at=tx.now,
        started_at=tx.now,
        finished_at=None,
        deadline_at=tx.now + seconds,
    )
    tx.conn.execute(_INSERT, [{name: getattr(made, name) for name in Operation.__slots__}])
    tx.touch(f"operation/{made.id}")
    return made


def end(tx: Tx, op: Operation, state: OperationState, message: str, *, code: str | None = None) -> Operation:
    """End an operation; one that has ended already stays as it is."""
    error = orjson.dumps({"code": code or "engine", "message": message}).decode() if state == "failed" else None
    values: dict[str, Any] = {
        "state": state.value,
        "message": message,
        "error": error,
        "finished_at": tx.now,
        "progress": 100 if state is OperationState.DONE else op.progress,
    }
    tx.conn.execute(_END, {**values, "which": op.id})
    tx.touch(f"operation/{op.id}")
    return Operation(**{**{name: getattr(op, name) for name in Operation.__slots__}, **values})


def progress(tx: Tx, op_id: str, percent: int, message: str) -> None:
    tx.conn.execute(_PROGRESS, {"which": op_id, "progress": percent, "message": message})
    tx.touch(f"operation/{op_id}")


def postpone(tx: Tx, op_id: str, seconds: float) -> None:
    """Give it so long from now on."""
    tx.conn.execute(update(operation).where(operation.c.id == op_id).values(deadline_at=tx.now + seconds))


def get(tx: Tx, id: str, account: str | None) -> Operation | None:
    row = tx.conn.execute(_BY_ID, {"id": id}).first()
    if row is None or (account is not None and row.account != account):
        return None
    return _row(row)


def open_for(tx: Tx, resource_id: str) -> list[Operation]:
    return [_row(row) for row in tx.conn.execute(_OPEN_FOR, {"resource_id": resource_id})]


def was_done(tx: Tx, resource_id: str, action: str) -> bool:
    """Whether this was done to the resource, as far as operations are kept."""
    of = (operation.c.resource_id == resource_id, operation.c.state == OperationState.DONE)
    query = select(operation.c.id).where(*of, operation.c.action == action).limit(1)
    return tx.conn.execute(query).first() is not None


def ids_with_open(tx: Tx, resource_ids: Iterable[str]) -> set[str]:
    """Those of the resources that have open operations."""
    wanted = list(resource_ids)
    found: set[str] = set()
    for start in range(0, len(wanted), 500):
        rows = tx.conn.execute(_WITH_OPEN, {"ids": wanted[start : start + 500]})
        found.update(row.resource_id for row in rows)
    return found


def open_with(tx: Tx, action: str) -> list[Operation]:
    """Those of one action."""
    query = select(operation).where(operation.c.state.in_(OPEN), operation.c.action == action).order_by(operation.c.id)
    return [_row(row) for row in tx.conn.execute(query)]


def all_open(tx: Tx) -> list[Operation]:
    query = select(operation).where(operation.c.state.in_(OPEN)).order_by(operation.c.id)
    return [_row(row) for row in tx.conn.execute(query)]


def overdue(tx: Tx, now: float, limit: int = 200) -> list[Operation]:
    return [_row(row) for row in tx.conn.execute(_OVERDUE, {"now": now, "most": limit})]


def next_deadline(tx: Tx) -> float | None:
    query = select(operation.c.deadline_at).where(operation.c.state.in_(OPEN))
    row = tx.conn.execute(query.order_by(operation.c.deadline_at).limit(1)).first()
    return float(row.deadline_at) if row else None


def page(
    tx: Tx,
    account: str | None,
    *,
    limit: int,
    after: str | None = None,
    state: str | None = None,
    resource: str | None = None,
) -> tuple[list[Operation], str | None]:
    """Newest first; `resource` is an id or a name."""
    query = select(operation)
    if account is not None:
        query = query.where(operation.c.account == account)
    if state:
        query = query.where(operation.c.state == state)
    if resource:
        query = query.where((operation.c.resource_id == resource) | (operation.c.resource_name == resource))
    if after:
        query = query.where(operation.c.id < after)
    rows = [_row(row) for row in tx.conn.execute(query.order_by(operation.c.id.desc()).limit(limit + 1))]
    return (rows[:limit], rows[limit - 1].id) if len(rows) > limit else (rows, None)


# --- events


def record(tx: Tx, row: Resource, level: str, message: str) -> None:
    """Something worth telling the owner of a resource. Levels: info, warning, error."""
    id = tx.new_id(EVENT_PREFIX)
    tx.conn.execute(
        _INSERT_EVENT,
        [
            {
                "id": id,
                "at": tx.now,
                "level": level,
                "account": row.account,
                "resource_kind": row.kind,
                "resource_id": row.id,
                "resource_name": row.name,
                "message": message,
            }
        ],
    )
    tx.touch(f"event/{id}")


def events(
    tx: Tx,
    account: str | None,
    *,
    limit: int,
    before: str | None = None,
    after: str | None = None,
    resource: str | None = None,
    level: str | None = None,
) -> tuple[list[dict[str, Any]], str | None]:
    """Newest first; `after` gives only what came later than that event."""
    query = select(event)
    if account is not None:
        query = query.where(event.c.account == account)
    if resource:
        query = query.where((event.c.resource_id == resource) | (event.c.resource_name == resource))
    if level:
        query = query.where(event.c.level == level)
    if before:
        query = query.where(event.c.id < before)
    if after:
        query = query.where(event.c.id > after)
    rows = list(tx.conn.execute(query.order_by(event.c.id.desc()).limit(limit + 1)))
    items = [
        {
            "id": row.id,
            "at": row.at,
            "level": row.level,
            "account": row.account or None,
            "resource": {"kind": row.resource_kind, "id": row.resource_id, "name": row.resource_name},
            "message": row.message,
        }
        for row in rows[:limit]
    ]
    return items, (rows[limit - 1].id if len(rows) > limit else None)


def forget_old(tx: Tx, *, events_before: float, operations_before: float) -> None:
    """Bound the history: ended operations and events older than the given times go."""
    tx.conn.execute(delete(event).where(event.c.at < events_before))
    tx.conn.execute(
        delete(operation).where(operation.c.finished_at.is_not(None), operation.c.finished_at < operations_before)
    )


# --- work items


_ENQUEUE = text(
    "INSERT INTO work (key, due_at, attempts, version) VALUES (:key, :due_at, 0, 1) "
    "ON CONFLICT (key) DO UPDATE SET due_at = excluded.due_at, attempts = 0, version = work.version + 1"
)


@dataclass(frozen=True, slots=True)
class WorkItem:
    key: str
    due_at: float
    attempts: int
    version: int


def enqueue(tx: Tx, key: str, *, delay: float = 0.0) -> None:
    """Ask a controller to look at `kind/id`; an item that is there becomes due again at once."""
    tx.conn.execute(_ENQUEUE, {"key": key, "due_at": tx.now + delay})
    tx.touch(f"work/{key}")


def due(tx: Tx, limit: int = 500) -> list[WorkItem]:
    rows = tx.conn.execute(_DUE, {"now": tx.now, "most": limit})
    return [WorkItem(row.key, row.due_at, row.attempts, row.version) for row in rows]


def next_due(tx: Tx) -> float | None:
    row = tx.conn.execute(_NEXT_DUE).first()
    return float(row.due_at) if row else None


def finish(tx: Tx, item: WorkItem) -> None:
    """The item is done, unless it was enqueued again meanwhile."""
    tx.conn.execute(_FINISH, {"which": item.key, "seen": item.version})


def retry(tx: Tx, item: WorkItem, *, delay: float) -> None:
    tx.conn.execute(
        update(work)
        .where(work.c.key == item.key, work.c.version == item.version)
        .values(due_at=tx.now + delay, attempts=item.attempts + 1)
    )
