"""Storage clusters: deploying, adopting, changing settings, deleting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scloud.api.context import accepted, begin, begin_and_end
from scloud.api.intents.common import refuse_while_leaving, resolve_node
from scloud.api.storage_schemas import DeviceAsk, StorageClusterAsk, StorageClusterPatch
from scloud.controllers.storage import rows
from scloud.model.errors import CloudError, ErrorKind, invalid
from scloud.model.kinds import Kind, State
from scloud.model.storage import Device, StorageClusterSpec, StorageClusterStatus
from scloud.reconcile.ceph import layout
from scloud.reconcile.ceph.conf import read_adopted
from scloud.reconcile.ceph.layout import Site
from scloud.store import operations, secrets
from scloud.store.database import Tx
from scloud.store.resources import (
    SYSTEM,
    Resource,
    all_of,
    claim_value,
    claimed,
    create,
    get,
    refer,
    refuse_if_used,
    save,
)

PORTS = "ceph-ports"


def cluster_of(tx: Tx, ref: str) -> tuple[Resource, StorageClusterSpec]:
    """A cluster that can be changed."""
    row = get(tx, Kind.STORAGE_CLUSTER, ref, SYSTEM)
    refuse_while_leaving(row)
    return row, row.spec_as(StorageClusterSpec)


def need_deployed(row: Resource, spec: StorageClusterSpec) -> None:
    if spec.mode != "deployed":
        raise CloudError(
            ErrorKind.CONFLICT,
            f"cluster '{row.name}' was adopted: its daemons and devices are managed with its own tools",
        )


def create_cluster(tx: Tx, name: str, ask: StorageClusterAsk) -> dict[str, Any]:
    sites = _sites(tx, ask)
    if ask.mode == "adopted":
        spec, keys = _adopt(ask, sites)
        action = "storage-cluster.adopt"
    else:
        spec, keys = _deploy(tx, name, ask, sites)
        action = "storage-cluster.create"
    status = StorageClusterStatus(state=State.CREATING, reason="waiting for the nodes")
    row = create(tx, Kind.STORAGE_CLUSTER, SYSTEM, name, spec, status)
    for key, value in keys.items():
        secrets.put(tx, row.id, key, value)
    for node in spec.nodes:
        join(tx, row.id, sites[node])
    if spec.first_port and not claim_value(tx, PORTS, str(spec.first_port), row.id):
        raise CloudError(ErrorKind.CONFLICT, "the ports were taken by another cluster; try again")
    return accepted(begin(tx, action, row), row)


def join(tx: Tx, cluster: str, site: Site) -> None:
    """A node becomes part of a cluster: it has a key of its own, which the controller makes known to the cluster."""
    refer(tx, cluster, site.id, "store")
    secrets.put(tx, cluster, rows.client_secret(site.id), f"{rows.client_name(site.name)}:{secrets.cephx_key(tx)}")


def ready_site(tx: Tx, field: str, ref: str) -> Site:
    """A node that daemons can be started on."""
    row = resolve_node(tx, field, ref)
    site = rows.site(row)
    if row.state != State.READY or not site.address:
        raise CloudError(ErrorKind.CONFLICT, f"node '{row.name}' is {row.state}; a storage cluster needs it connected")
    return site


def _sites(tx: Tx, ask: StorageClusterAsk) -> dict[str, Site]:
    """The nodes in the order they were named, each once; all that are ready if none was."""
    if ask.nodes is None:
        found = [rows.site(row) for row in all_of(tx, Kind.NODE) if row.state == State.READY]
    else:
        found = [ready_site(tx, f"spec.nodes.{number}", ref) for number, ref in enumerate(ask.nodes)]
    sites: dict[str, Site] = {}
    for number, site in enumerate(found):
        if site.id in sites:
            raise invalid(f"spec.nodes.{number}", f"names node '{site.name}' a second time")
        sites[site.id] = site
    if not sites:
        raise CloudError(
            ErrorKind.CONFLICT, "a storage cluster needs at least one node that is ready; see `scloud node list`"
        )
    return sites


def _adopt(ask: StorageClusterAsk, sites: dict[str, Site]) -> tuple[StorageClusterSpec, dict[str, str]]:
    try:
        found = read_adopted(ask.conf or "", ask.keyring or "")
    except ValueError as error:
        field, rule = error.args
        raise invalid(f"spec.{field}", rule) from error
    spec = StorageClusterSpec(mode="adopted", nodes=tuple(sites), fsid=found.fsid, mon_host=found.mon_host)
    return spec, {rows.ADMIN_USER: found.user, rows.ADMIN_KEY: found.key}


def _deploy(
    tx: Tx, name: str, ask: StorageClusterAsk, sites: dict[str, Site]
) -> tuple[StorageClusterSpec, dict[str, str]]:
    objection = layout.misplaced(sites.values())
    if objection:
        raise CloudError(ErrorKind.CONFLICT, f"the nodes' labels do not fit: {objection}")
    port = layout.free_port(claimed(tx, PORTS))
    if port is None:
        raise CloudError(ErrorKind.NO_CAPACITY, "every range of ports is taken; delete a storage cluster first")
    order = list(sites.values())
    monitors = layout.choose_monitors(order)
    managers = layout.choose_managers(order)
    devices = make_devices(tx, ask.devices, sites, (), field="spec.devices")
    spec = StorageClusterSpec(
        mode="deployed",
        nodes=tuple(sites),
        monitors=tuple(site.id for site in monitors),
        managers=tuple(site.id for site in managers),
        devices=devices,
        fsid=secrets.uuid4(tx),
        mon_host=layout.mon_host([site.address for site in monitors], port),
        first_port=port,
    )
    keys = {
        rows.MON: secrets.cephx_key(tx),
        rows.ADMIN_USER: "admin",
        rows.ADMIN_KEY: secrets.cephx_key(tx),
        rows.BOOTSTRAP: secrets.cephx_key(tx),
        **{rows.mgr_secret(site.id): secrets.cephx_key(tx) for site in managers},
        **{rows.osd_secret(device.uuid): secrets.cephx_key(tx) for device in devices},
    }
    return spec, keys


def make_devices(
    tx: Tx,
    asks: Sequence[DeviceAsk],
    sites: dict[str, Site],
    present: Sequence[Device],
    *,
    field: str,
    operation: str = "",
) -> tuple[Device, ...]:
    """Devices as they will be kept; INVALID for one on a node that is not of the cluster, or named twice."""
    taken = {(device.node, device.path) for device in present}
    by_ref = {**{site.name: site for site in sites.values()}, **sites}
    elsewhere = _used_elsewhere(tx)
    made = []
    for number, ask in enumerate(asks):
        where = f"{field}.{number}" if field else "device"
        site = by_ref.get(ask.node)
        if site is None:
            names = ", ".join(sorted(site.name for site in sites.values()))
            raise invalid(f"{where}.node", f"must be a node of this cluster ({names}), not '{ask.node}'")
        place = (site.id, ask.path)
        if place in taken:
            raise invalid(f"{where}.path", f"is device {site.name}:{ask.path}, which is in this cluster already")
        if place in elsewhere:
            raise invalid(f"{where}.path", f"is device {site.name}:{ask.path}, which cluster '{elsewhere[place]}' has")
        taken.add(place)
        made.append(
            Device(
                node=site.id,
                path=ask.path,
                size_mib=ask.size_mib,
                media=ask.media,
                uuid=secrets.uuid4(tx),
                operation=operation,
            )
        )
    return tuple(made)


def _used_elsewhere(tx: Tx) -> dict[tuple[str, str], str]:
    """Which cluster has each device, clusters whose devices are not wiped yet included."""
    return {
        (device.node, device.path): row.name
        for row in all_of(tx, Kind.STORAGE_CLUSTER, gone=True)
        for device in row.spec_as(StorageClusterSpec).devices
    }


def change_cluster(tx: Tx, ref: str, ask: StorageClusterPatch) -> dict[str, Any]:
    """Another name, other settings."""
    row, spec = cluster_of(tx, ref)
    wanted = {key: value for key, value in (ask.spec or ask).model_dump().items() if ask.spec and value is not None}
    if ask.name is not None and ask.name != row.name:
        row = save(tx, row, name=ask.name)
    if not wanted:
        return accepted(begin_and_end(tx, "storage-cluster.update", row), row)
    if set(wanted) - {"warn_percent"}:
        need_deployed(row, spec)
    row = save(tx, row, spec=StorageClusterSpec.model_validate(spec.model_dump() | wanted))
    return accepted(begin(tx, "storage-cluster.update", row), row)


def delete_cluster(tx: Tx, ref: str) -> dict[str, Any]:
    """Refused while pools are in it that are not being deleted; from any state."""
    row = get(tx, Kind.STORAGE_CLUSTER, ref, SYSTEM)
    refuse_if_used(tx, row, ignore=[pool.row.id for pool in rows.pools_of(tx, row.id) if pool.leaving])
    op = begin(tx, "storage-cluster.delete", row)
    if row.state != State.DELETING:
        status = row.status_as(StorageClusterStatus).model_copy(
            update={"state": State.DELETING, "reason": "being deleted", "conditions": ()}
        )
        row = save(tx, row, status=status, spec=row.spec_as(StorageClusterSpec))
        operations.record(tx, row, "info", "is being deleted")
    return accepted(op, row)
