"""Reading is the same for every kind: a page of them, or one by id or name."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from scloud.api.context import Caller, CallerDep, ContextDep, send
from scloud.api.schemas import PROBLEMS, AllAccounts, Cursor, Limit, NameFilter, RefPath, ResourceOut, ResourcePage
from scloud.model.errors import CloudError
from scloud.model.kinds import ADMIN_KINDS, Kind
from scloud.store.database import Tx
from scloud.store.resources import SYSTEM, Resource, find, get, page

SHARED = (Kind.IMAGE, Kind.DISK_TYPE)
"""Kinds of which every account sees the system's too."""
COLLECTION: dict[Kind, str] = {kind: f"{kind.value}s" for kind in Kind}


def router_for(kind: Kind) -> APIRouter:
    return APIRouter(prefix=f"/{COLLECTION[kind]}", tags=[COLLECTION[kind]], responses=PROBLEMS)


def fetch(tx: Tx, kind: Kind, ref: str, caller: Caller) -> Resource:
    """By id or name in the caller's account; administrators reach any account's by id."""
    if kind in ADMIN_KINDS:
        caller.need_admin()
        return get(tx, kind, ref, SYSTEM)
    try:
        return get(tx, kind, ref, caller.account)
    except CloudError:
        row = find(tx, ref) if caller.admin else None
        if row is not None and row.kind == kind:
            return row
        if kind in SHARED:
            return get(tx, kind, ref, SYSTEM)
        raise


def owner_for(tx: Tx, kind: Kind, ref: str, caller: Caller) -> str:
    """The account to act in: the caller's own, or, for an administrator who names an id, its owner's."""
    row = fetch(tx, kind, ref, caller)
    return row.account if caller.admin else caller.account


def list_page(
    tx: Tx,
    kind: Kind,
    caller: Caller,
    all_accounts: bool,
    limit: int,
    cursor: str | None,
    filters: dict[str, Any],
    without: dict[str, Any] | None = None,
) -> bytes | dict[str, Any]:
    wanted = {name: value for name, value in filters.items() if value is not None}
    if kind in ADMIN_KINDS:
        caller.need_admin()
        scope: str | list[str] | None = SYSTEM
    else:
        scope = caller.scope(all_accounts)
        if kind in SHARED and scope is not None:
            scope = [scope, SYSTEM]
    rows, following = page(tx, kind, scope, limit=limit, after=cursor, filters=wanted, without=without)
    return {"items": [row.public() for row in rows], "next": following}


def add_show(router: APIRouter, kind: Kind) -> None:
    @router.get("/{ref}", response_model=ResourceOut, operation_id=f"show_{kind.name.lower()}")
    async def show(ref: RefPath, context: ContextDep, caller: CallerDep) -> Response:
        """One, by id or name."""
        row = await context.store.read(lambda tx: fetch(tx, kind, ref, caller))
        return send(row.public())


def add_list(router: APIRouter, kind: Kind) -> None:
    @router.get("", response_model=ResourcePage, operation_id=f"list_{kind.name.lower()}")
    async def list_(
        context: ContextDep,
        caller: CallerDep,
        limit: Limit = 100,
        cursor: Cursor = None,
        name: NameFilter = None,
        all_accounts: AllAccounts = False,
    ) -> Response:
        """A page, oldest first."""
        filters = {"name": name}
        return send(
            await context.store.read(lambda tx: list_page(tx, kind, caller, all_accounts, limit, cursor, filters))
        )


def add_reading(router: APIRouter, kind: Kind) -> None:
    add_list(router, kind)
    add_show(router, kind)
