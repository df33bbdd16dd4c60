"""Storage clusters: the administrator's."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response

from scloud.api.commands import AdminCommandDep
from scloud.api.context import CallerDep, ContextDep, send
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
async def create_storage_cluster(body: StorageClusterCreate, command: AdminCommandDep) -> Response:
    """Deploy a storage cluster on nodes and their devices, or adopt one that is there."""
    return await command.run(storage.create_cluster, body.name, body.spec)


@router.patch("/{ref}", status_code=202, response_model=Accepted)
async def change_storage_cluster(ref: RefPath, body: StorageClusterPatch, command: AdminCommandDep) -> Response:
    """Its name, what gives way to what while it recovers, when it scrubs, when it warns."""
    return await command.run(storage.change_cluster, ref, body)


@router.delete("/{ref}", status_code=202, response_model=Accepted)
async def delete_storage_cluster(ref: RefPath, command: AdminCommandDep) -> Response:
    """Remove its daemons and wipe its devices; an adopted one is only let go. Refused while it has pools."""
    return await command.run(storage.delete_cluster, ref)


@router.post("/{ref}/actions/device-add", status_code=202, response_model=Accepted, operation_id="storage_add_device")
async def add_device(ref: RefPath, body: DeviceAsk, command: AdminCommandDep) -> Response:
    """Add a device: an OSD begins on it, and data moves there."""
    return await command.run(storage_devices.add_device, ref, body)


@router.post(
    "/{ref}/actions/device-remove", status_code=202, response_model=Accepted, operation_id="storage_remove_device"
)
async def remove_device(ref: RefPath, body: DeviceRef, command: AdminCommandDep) -> Response:
    """Drain a device, then wipe and forget it. Refused if redundancy or room would be lost."""
    return await command.run(storage_devices.remove_device, ref, body.device)


@router.post("/{ref}/actions/device-keep", status_code=202, response_model=Accepted, operation_id="storage_keep_device")
async def keep_device(ref: RefPath, body: DeviceRef, command: AdminCommandDep) -> Response:
    """Take back the removal or replacement of a device that is not empty yet."""
    return await command.run(storage_devices.keep_device, ref, body.device)


@router.post(
    "/{ref}/actions/device-replace", status_code=202, response_model=Accepted, operation_id="storage_replace_device"
)
async def replace_device(ref: RefPath, body: DeviceReplace, command: AdminCommandDep) -> Response:
    """Drain a device as far as it can be read, and begin anew with an empty one in its place."""
    return await command.run(storage_devices.replace_device, ref, body)


@router.post("/{ref}/actions/node-add", status_code=202, response_model=Accepted, operation_id="storage_add_node")
async def add_node(ref: RefPath, body: NodeAsk, command: AdminCommandDep) -> Response:
    """Let a node use the cluster; devices of it can be added then."""
    return await command.run(storage_devices.add_node, ref, body.node)


@router.post("/{ref}/actions/node-remove", status_code=202, response_model=Accepted, operation_id="storage_remove_node")
async def remove_node(ref: RefPath, body: NodeAsk, command: AdminCommandDep) -> Response:
    """Take a node out of the cluster; its devices are drained first."""
    return await command.run(storage_devices.remove_node, ref, body.node)


@router.post("/{ref}/actions/maintenance", status_code=202, response_model=Accepted, operation_id="storage_maintenance")
async def maintenance(ref: RefPath, body: MaintenanceAsk, command: AdminCommandDep) -> Response:
    """While it is on, nothing is rebuilt elsewhere though the node's OSDs are down."""
    return await command.run(storage_devices.maintenance, ref, body.node, body.on)


@router.post("/{ref}/actions/repair", status_code=202, response_model=Accepted, operation_id="storage_repair")
async def repair(ref: RefPath, body: RepairAsk, command: AdminCommandDep) -> Response:
    """Mend inconsistent placement groups from their good copies."""
    return await command.run(storage_devices.repair, ref, body)


@router.post("/{ref}/actions/deep-scrub", status_code=202, response_model=Accepted, operation_id="storage_deep_scrub")
async def deep_scrub(ref: RefPath, body: ScrubAsk, command: AdminCommandDep) -> Response:
    """Read and compare all copies now."""
    return await command.run(storage_devices.deep_scrub, ref, body)
