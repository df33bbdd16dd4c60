"""Disk types: made by administrators, used by every account."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Response

from scloud.api.commands import AdminCommandDep
from scloud.api.context import Caller, CallerDep, ContextDep, send
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
async def create_disk_type(body: DiskTypeCreate, command: AdminCommandDep) -> Response:
    """A name for a pool, or for the nodes' local storage, that accounts make disks with."""
    return await command.run(storage_pools.create_disk_type, body.name, body.spec)


@router.patch("/{ref}", status_code=202, response_model=Accepted)
async def rename_disk_type(ref: RefPath, body: Rename, command: AdminCommandDep) -> Response:
    """Give it another name."""
    return await command.run(storage_pools.rename_disk_type, ref, body.name)


@router.delete("/{ref}", status_code=202, response_model=Accepted)
async def delete_disk_type(ref: RefPath, command: AdminCommandDep) -> Response:
    """Delete it; disks that were made with it stay."""
    return await command.run(storage_pools.delete_disk_type, ref)
