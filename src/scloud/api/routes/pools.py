"""Pools of storage clusters: the administrator's."""

from __future__ import annotations

from fastapi import Request, Response

from scloud.api.context import AdminDep, ContextDep, IdempotencyKey, write
from scloud.api.intents import storage_pools
from scloud.api.reading import add_reading, router_for
from scloud.api.schemas import Accepted, RefPath, Rename
from scloud.api.storage_schemas import PoolCreate
from scloud.model.kinds import Kind

router = router_for(Kind.POOL)
add_reading(router, Kind.POOL)


@router.post("", status_code=202, response_model=Accepted)
async def create_pool(
    body: PoolCreate, request: Request, context: ContextDep, admin: AdminDep, key: IdempotencyKey = None
) -> Response:
    """A pool of copies (`replica:3`) or of chunks (`ec:4+2`) over different hosts, racks or datacenters."""
    return await write(
        context, admin, lambda tx: storage_pools.create_pool(tx, body.name, body.spec), request=request, key=key
    )


@router.patch("/{ref}", status_code=202, response_model=Accepted)
async def rename_pool(ref: RefPath, body: Rename, context: ContextDep, admin: AdminDep) -> Response:
    """Give it another name."""
    return await write(context, admin, lambda tx: storage_pools.rename_pool(tx, ref, body.name))


@router.delete("/{ref}", status_code=202, response_model=Accepted)
async def delete_pool(ref: RefPath, context: ContextDep, admin: AdminDep) -> Response:
    """Delete a pool and all bytes in it; refused, with the list, while disks or disk types use it."""
    return await write(context, admin, lambda tx: storage_pools.delete_pool(tx, ref))
