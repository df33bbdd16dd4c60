"""Storage clusters: the administrator's."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response

from scloud.api.context import AdminDep, CallerDep, ContextDep, IdempotencyKey, send, write
from scloud.api.intents import storage, storage_devices
from scloud.api.reading import add_list, fetch, router_for
from scloud.api.schemas import Accepted, RefPath, ResourceOut
from scloud.api.storage_schemas import (
    DeviceAsk,
    DeviceRef,
    DeviceReplace,
    MaintenanceAsk,
    NodeAsk,
    RepairAsk,
    ScrubAsk,
    StorageClusterCreate,
    StorageClusterPatch,
)
from scloud.model.kinds import Kind

router = router_for(Kind.STORAGE_CLUSTER)
add_list(router, Kind.STORAGE_CLUSTER)


@router.get("/{ref}", response_model=ResourceOut, operation_id="show_storage_cluster")
async def show_storage_cluster(
    ref: RefPath,
    context: ContextDep,
    caller: CallerDep,
    fresh: Annotated[
        bool, Query(description="Look at the cluster first: some ten ms, 3 s if it does not answer.")
    ] = False,
) -> Response:
    """One, by id or name, as it was last looked at (`status.observed_at`), which is at most 15 s ago, or as it is."""
    row = await context.store.read(lambda tx: fetch(tx, Kind.STORAGE_CLUSTER, ref, caller))
    if fresh:
        await context.manager.storage.look_now(row.id)
        row = await context.store.read(lambda tx: fetch(tx, Kind.STORAGE_CLUSTER, ref, caller))
    return send(row.public())


@router.post("", status_code=202, response_model=Accepted)
async def create_storage_cluster(
    body: StorageClusterCreate, request: Request, context: ContextDep, admin: AdminDep, key: IdempotencyKey = None
) -> Response:
    """Deploy a storage cluster on nodes and their devices, or adopt one that is there."""
    return await write(
        context, admin, lambda tx: storage.create_cluster(tx, body.name, body.spec), request=request, key=key
    )


@router.patch("/{ref}", status_code=202, response_model=Accepted)
async def change_storage_cluster(
    ref: RefPath, body: StorageClusterPatch, context: ContextDep, admin: AdminDep
) -> Response:
    """Its name, what gives way to what while it recovers, when it scrubs, when it warns."""
    return await write(context, admin, lambda tx: storage.change_cluster(tx, ref, body))


@router.delete("/{ref}", status_code=202, response_model=Accepted)
async def delete_storage_cluster(ref: RefPath, context: ContextDep, admin: AdminDep) -> Response:
    """Remove its daemons and wipe its devices; an adopted one is only let go. Refused while it has pools."""
    return await write(context, admin, lambda tx: storage.delete_cluster(tx, ref))


@router.post("/{ref}/actions/device-add", status_code=202, response_model=Accepted, operation_id="storage_add_device")
async def add_device(
    ref: RefPath,
    body: DeviceAsk,
    request: Request,
    context: ContextDep,
    admin: AdminDep,
    key: IdempotencyKey = None,
) -> Response:
    """Add a device: an OSD begins on it, and data moves there."""
    return await write(context, admin, lambda tx: storage_devices.add_device(tx, ref, body), request=request, key=key)


@router.post(
    "/{ref}/actions/device-remove", status_code=202, response_model=Accepted, operation_id="storage_remove_device"
)
async def remove_device(
    ref: RefPath,
    body: DeviceRef,
    request: Request,
    context: ContextDep,
    admin: AdminDep,
    key: IdempotencyKey = None,
) -> Response:
    """Drain a device, then wipe and forget it. Refused if redundancy or room would be lost."""
    return await write(
        context, admin, lambda tx: storage_devices.remove_device(tx, ref, body.device), request=request, key=key
    )


@router.post("/{ref}/actions/device-keep", status_code=202, response_model=Accepted, operation_id="storage_keep_device")
async def keep_device(
    ref: RefPath,
    body: DeviceRef,
    request: Request,
    context: ContextDep,
    admin: AdminDep,
    key: IdempotencyKey = None,
) -> Response:
    """Take back the removal or replacement of a device that is not empty yet."""
    return await write(
        context, admin, lambda tx: storage_devices.keep_device(tx, ref, body.device), request=request, key=key
    )


@router.post(
    "/{ref}/actions/device-replace", status_code=202, response_model=Accepted, operation_id="storage_replace_device"
)
async def replace_device(
    ref: RefPath,
    body: DeviceReplace,
    request: Request,
    context: ContextDep,
    admin: AdminDep,
    key: IdempotencyKey = None,
) -> Response:
    """Drain a device as far as it can be read, and begin anew with an empty one in its place."""
    return await write(
        context, admin, lambda tx: storage_devices.replace_device(tx, ref, body), request=request, key=key
    )


@router.post("/{ref}/actions/node-add", status_code=202, response_model=Accepted, operation_id="storage_add_node")
async def add_node(
    ref: RefPath,
    body: NodeAsk,
    request: Request,
    context: ContextDep,
    admin: AdminDep,
    key: IdempotencyKey = None,
) -> Response:
    """Let a node use the cluster; devices of it can be added then."""
    return await write(
        context, admin, lambda tx: storage_devices.add_node(tx, ref, body.node), request=request, key=key
    )


@router.post("/{ref}/actions/node-remove", status_code=202, response_model=Accepted, operation_id="storage_remove_node")
async def remove_node(
    ref: RefPath,
    body: NodeAsk,
    request: Request,
    context: ContextDep,
    admin: AdminDep,
    key: IdempotencyKey = None,
) -> Response:
    """Take a node out of the cluster; its devices are drained first."""
    return await write(
        context, admin, lambda tx: storage_devices.remove_node(tx, ref, body.node), request=request, key=key
    )


@router.post("/{ref}/actions/maintenance", status_code=202, response_model=Accepted, operation_id="storage_maintenance")
async def maintenance(
    ref: RefPath,
    body: MaintenanceAsk,
    request: Request,
    context: ContextDep,
    admin: AdminDep,
    key: IdempotencyKey = None,
) -> Response:
    """While it is on, nothing is rebuilt elsewhere though the node's OSDs are down."""
    return await write(
        context, admin, lambda tx: storage_devices.maintenance(tx, ref, body.node, body.on), request=request, key=key
    )


@router.post("/{ref}/actions/repair", status_code=202, response_model=Accepted, operation_id="storage_repair")
async def repair(
    ref: RefPath,
    body: RepairAsk,
    request: Request,
    context: ContextDep,
    admin: AdminDep,
    key: IdempotencyKey = None,
) -> Response:
    """Mend inconsistent placement groups from their good copies."""
    return await write(context, admin, lambda tx: storage_devices.repair(tx, ref, body), request=request, key=key)


@router.post("/{ref}/actions/deep-scrub", status_code=202, response_model=Accepted, operation_id="storage_deep_scrub")
async def deep_scrub(
    ref: RefPath,
    body: ScrubAsk,
    request: Request,
    context: ContextDep,
    admin: AdminDep,
    key: IdempotencyKey = None,
) -> Response:
    """Read and compare all copies now."""
    return await write(context, admin, lambda tx: storage_devices.deep_scrub(tx, ref, body), request=request, key=key)
