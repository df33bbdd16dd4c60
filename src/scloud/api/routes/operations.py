"""Operations and events."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from scloud.api.context import Caller, CallerDep, ContextDep, send
from scloud.api.intents.calling_back import call_back
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
from scloud.model.errors import CloudError, not_found
from scloud.model.fields import ID_CHARACTERS
from scloud.store import operations
from scloud.store.database import Tx
from scloud.store.operations import Operation, OperationState

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

    return send(await context.store.write(lambda tx: call_back(tx, _get(tx, ref, caller))), 202)


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
