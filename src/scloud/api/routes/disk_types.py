"""Disk types: made by administrators, used by every account."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Request, Response

from scloud.api.context import AdminDep, Caller, CallerDep, ContextDep, IdempotencyKey, send, write
from scloud.api.intents import storage_pools
from scloud.api.reading import router_for
from scloud.api.schemas import Accepted, Cursor, Limit, NameFilter, RefPath, Rename, ResourceOut, ResourcePage
from scloud.api.storage_schemas import DiskTypeCreate
from scloud.model.kinds import Kind
from scloud.store.resources import SYSTEM, Resource, get, page

router = router_for(Kind.DISK_TYPE)


def _shown(row: Resource, caller: Caller) -> dict[str, Any]:
    """Which pool is behind it is the administrators' business."""
    spec = orjson.loads(row.spec) if caller.admin else {}
    return {**row.public(), "spec": spec}


@router.get("", response_model=ResourcePage)
async def list_disk_types(
    context: ContextDep, caller: CallerDep, limit: Limit = 100, cursor: Cursor = None, name: NameFilter = None
) -> Response:
    """A page, oldest first; every account sees them."""
    filters = {"name": name} if name is not None else {}
    rows, following = await context.store.read(
        lambda tx: page(tx, Kind.DISK_TYPE, SYSTEM, limit=limit, after=cursor, filters=filters)
    )
    return send({"items": [_shown(row, caller) for row in rows], "next": following})


@router.get("/{ref}", response_model=ResourceOut)
async def show_disk_type(ref: RefPath, context: ContextDep, caller: CallerDep) -> Response:
    """One, by id or name."""
    row = await context.store.read(lambda tx: get(tx, Kind.DISK_TYPE, ref, SYSTEM))
    return send(_shown(row, caller))


@router.post("", status_code=202, response_model=Accepted)
async def create_disk_type(
    body: DiskTypeCreate, request: Request, context: ContextDep, admin: AdminDep, key: IdempotencyKey = None
) -> Response:
    """A name for a pool, or for the nodes' local storage, that accounts make disks with."""
    return await write(
        context, admin, lambda tx: storage_pools.create_disk_type(tx, body.name, body.spec), request=request, key=key
    )


@router.patch("/{ref}", status_code=202, response_model=Accepted)
async def rename_disk_type(ref: RefPath, body: Rename, context: ContextDep, admin: AdminDep) -> Response:
    """Give it another name."""
    return await write(context, admin, lambda tx: storage_pools.rename_disk_type(tx, ref, body.name))


@router.delete("/{ref}", status_code=202, response_model=Accepted)
async def delete_disk_type(ref: RefPath, context: ContextDep, admin: AdminDep) -> Response:
    """Delete it; disks that were made with it stay."""
    return await write(context, admin, lambda tx: storage_pools.delete_disk_type(tx, ref))
