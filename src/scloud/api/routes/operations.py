"""Operations and events."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from scloud.api.context import Caller, CallerDep, ContextDep, accepted, begin, send
from scloud.api.schemas import (
    PROBLEMS,
    Accepted,
    AllAccounts,
    Cursor,
    EventPage,
    Limit,
    OperationOut,
    OperationPage,
    RefFilter,
    RefPath,
)
from scloud.controllers import finishing, snapshots
from scloud.model.errors import CloudError, ErrorKind, not_found
from scloud.model.fields import ID_CHARACTERS
from scloud.model.kinds import Kind, State
from scloud.store import operations
from scloud.store.database import Tx
from scloud.store.operations import Operation, OperationState
from scloud.store.resources import find

router = APIRouter(tags=["operations"], responses=PROBLEMS)
LONGEST_WAIT_S = 60.0


@router.get("/operations", response_model=OperationPage)
async def list_operations(
    context: ContextDep,
    caller: CallerDep,
    limit: Limit = 100,
    cursor: Cursor = None,
    state: OperationState | None = None,
    resource: RefFilter = None,
    all_accounts: AllAccounts = False,
) -> Response:
    """A page of operations, newest first."""
    scope = caller.scope(all_accounts)
    rows, following = await context.store.read(
        lambda tx: operations.page(tx, scope, limit=limit, after=cursor, state=state, resource=resource)
    )
    return send({"items": [row.public() for row in rows], "next": following})


@router.get("/operations/{ref}", response_model=OperationOut)
async def show_operation(
    ref: RefPath,
    context: ContextDep,
    caller: CallerDep,
    wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT_S, description="seconds to wait for its end")] = 0.0,
    seen: Annotated[int | None, Query(ge=0, le=100, description="also answer once progress differs from this")] = None,
) -> Response:
    """One operation; with `wait`, answered when it has ended, has moved on from `seen`, or the time is over."""
    waiters, key = context.manager.waiters, f"operation/{ref}"
    deadline = context.store.clock() + wait
    while True:
        change = waiters.expect(key)
        try:
            op = await context.store.read(lambda tx: _get(tx, ref, caller))
        except CloudError:
            waiters.cancel(key, change)
            raise
        left = deadline - context.store.clock()
        if not op.open or left <= 0 or (seen is not None and op.progress != seen):
            waiters.cancel(key, change)
            return send(op.public())
        await waiters.wait(key, change, left)


def _get(tx: Tx, ref: str, caller: Caller) -> Operation:
    op = operations.get(tx, ref, None if caller.admin else caller.account)
    if op is None:
        raise not_found("operation", ref)
    return op


@router.post("/operations/{ref}/cancel", status_code=202, response_model=Accepted)
async def cancel_operation(ref: RefPath, context: ContextDep, caller: CallerDep) -> Response:
    """Undo a creation or an import that is under way; nothing else can be called back."""

    def cancel(tx: Tx) -> dict[str, object]:
        op = _get(tx, ref, caller)
        row = find(tx, op.resource_id)
        if not op.open or row is None:
            raise CloudError(ErrorKind.CONFLICT, f"operation {op.id} has ended already: it is {op.state}")
        if op.action not in ("vm.create", "image.import"):
            raise CloudError(
                ErrorKind.CONFLICT, f"{op.action} cannot be called back; it ends by itself within its deadline"
            )
        for disk in (item for item in finishing.owned(tx, row) if item.kind == Kind.DISK):
            snapshots.refuse_clones(tx, disk)  # as `vm delete` does
        ended = operations.end(tx, op, OperationState.CANCELLED, "cancelled; what was made is being removed")
        # The removal is an operation of its own: it has a deadline, as every state on its way to another one.
        begin(tx, f"{row.kind}.delete", row)
        if row.kind == Kind.VM:
            finishing.begin_vm_deletion(tx, row)
        elif row.state != State.DELETING:
            finishing.leave_image(tx, row)
        return accepted(ended, find(tx, row.id) or row)

    return send(await context.store.write(cancel), 202)


@router.get("/events", response_model=EventPage, tags=["events"])
async def list_events(
    context: ContextDep,
    caller: CallerDep,
    limit: Limit = 100,
    cursor: Cursor = None,
    after: Annotated[str | None, Query(max_length=32, pattern=ID_CHARACTERS)] = None,
    resource: RefFilter = None,
    level: Literal["info", "warning", "error"] | None = None,
    wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT_S, description="seconds to wait for something new")] = 0.0,
    all_accounts: AllAccounts = False,
) -> Response:
    """A page of events, newest first; with `after`, only what came later than that event."""
    scope = caller.scope(all_accounts)
    waiters = context.manager.waiters
    deadline = context.store.clock() + wait
    while True:
        change = waiters.expect("events")
        items, following = await context.store.read(
            lambda tx: operations.events(
                tx, scope, limit=limit, before=cursor, after=after, resource=resource, level=level
            )
        )
        left = deadline - context.store.clock()
        if items or left <= 0:
            waiters.cancel("events", change)
            return send({"items": items, "next": following})
        await waiters.wait("events", change, left)
