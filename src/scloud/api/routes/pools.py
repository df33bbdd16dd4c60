"""Pools of storage clusters: the administrator's."""

from __future__ import annotations

from fastapi import Response

from scloud.api.commands import AdminCommandDep
from scloud.api.intents import storage_pools
from scloud.api.reading import add_reading, router_for
from scloud.api.schemas import Accepted, RefPath, Rename
from scloud.api.storage_schemas import PoolCreate
from scloud.model.kinds import Kind

router = router_for(Kind.POOL)
add_reading(router, Kind.POOL)


@router.post("", status_code=202, response_model=Accepted)
async def create_pool(body: PoolCreate, command: AdminCommandDep) -> Response:
    """A pool of copies (`replica:3`) or of chunks (`ec:4+2`) over different hosts, racks or datacenters."""
    return await command.run(storage_pools.create_pool, body.name, body.spec)


@router.patch("/{ref}", status_code=202, response_model=Accepted)
async def rename_pool(ref: RefPath, body: Rename, command: AdminCommandDep) -> Response:
    """Give it another name."""
    return await command.run(storage_pools.rename_pool, ref, body.name)


@router.delete("/{ref}", status_code=202, response_model=Accepted)
async def delete_pool(ref: RefPath, command: AdminCommandDep) -> Response:
    """Delete a pool and all bytes in it; refused, with the list, while disks or disk types use it."""
    return await command.run(storage_pools.delete_pool, ref)
