"""Who does what in a storage cluster when nodes come and go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from scloud.controllers import serving
from scloud.controllers.storage import rows
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import Kind, State
from scloud.model.specs import DiskSpec
from scloud.model.storage import Device, StorageClusterSpec
from scloud.reconcile.ceph import layout
from scloud.reconcile.ceph.layout import Site
from scloud.store import operations, secrets
from scloud.store.database import Tx
from scloud.store.operations import OperationState
from scloud.store.resources import Resource, all_of, on_node, save, unrefer


def staying(spec: StorageClusterSpec, sites: Mapping[str, Site]) -> dict[str, Site]:
    return {node: site for node, site in sites.items() if node in spec.nodes and node not in spec.leaving}


def lasting_monitors(spec: StorageClusterSpec, sites: Mapping[str, Site]) -> list[str]:
    """Who is to have a monitor in the end. Others of the spec's go on until these have formed a quorum."""
    there = staying(spec, sites)
    return _kept(spec.monitors, there, [site.id for site in layout.choose_monitors(list(there.values()))])


def with_monitors(spec: StorageClusterSpec, monitors: Sequence[str], sites: Mapping[str, Site]) -> StorageClusterSpec:
    """Those that were there keep their address, whatever has become of their node's."""
    known = dict(zip(spec.monitors, layout.addresses_in(spec.mon_host), strict=True))
    entries = [known.get(node) or f"{sites[node].address}:{spec.first_port}" for node in monitors]
    text = ",".join(f"[v2:{entry}]" for entry in entries)
    return spec.model_copy(update={"monitors": tuple(monitors), "mon_host": text})


def staffed(tx: Tx, cluster: str, spec: StorageClusterSpec) -> StorageClusterSpec:
    """Monitors and managers for the nodes there are now: those that stay keep their part, the missing are added.

    A monitor that is to go is not stopped yet: while it is in the cluster's map, its end could cost the quorum.
    """
    if spec.mode != "deployed":
        return spec
    sites = rows.sites_of(tx, spec.nodes)
    there = staying(spec, sites)
    lasting = lasting_monitors(spec, sites)
    monitors = [*lasting, *(node for node in spec.monitors if node in sites and node not in lasting)]
    managers = _kept(spec.managers, there, [site.id for site in layout.choose_managers(list(there.values()))])
    known = secrets.secrets_of(tx, cluster)
    for node in managers:
        if rows.mgr_secret(node) not in known:
            secrets.put(tx, cluster, rows.mgr_secret(node), secrets.cephx_key(tx))
    return with_monitors(spec, monitors, sites).model_copy(update={"managers": tuple(managers)})


def _kept(now: Sequence[str], sites: Mapping[str, Site], chosen: Sequence[str]) -> list[str]:
    """As many as were chosen, those who have the part already first."""
    stay = [node for node in now if node in sites]
    return [*stay, *(node for node in chosen if node not in stay)][: len(chosen)]


def refuse_serving(tx: Tx, row: Resource, node: Resource) -> None:
    """IN_USE while VMs on the node have disks in this cluster's pools."""
    pools = {pool.row.id for pool in rows.pools_of(tx, row.id)}
    users = []
    for disk in on_node(tx, Kind.DISK, node.id):
        spec = disk.spec_as(DiskSpec)
        if spec.pool in pools and spec.vm is not None and not disk.gone:
            users.append(f"disk {disk.name}")
    if users:
        raise CloudError(
            ErrorKind.IN_USE,
            f"VMs on node '{node.name}' use {', '.join(users[:5])} of cluster '{row.name}'; move or stop them first",
            users=users,
        )


def serve_elsewhere(tx: Tx, row: Resource, node: Resource) -> None:
    """Disks that are on no VM get another node of the cluster that looks after them."""
    pools = {pool.row.id for pool in rows.pools_of(tx, row.id)}
    for disk in on_node(tx, Kind.DISK, node.id):
        if disk.spec_as(DiskSpec).pool in pools:
            serving.serve(tx, disk, without=node.id)


def take_over(tx: Tx, cluster: str, devices: Iterable[Device], why: str) -> None:
    """Something else is asked of devices from now on: what was asked of them before will not come to its end."""
    former = {device.operation for device in devices}
    for op in operations.open_for(tx, cluster):
        if op.id in former:
            operations.end(tx, op, OperationState.CANCELLED, why)


def forget_node(tx: Tx, node: str) -> None:
    """The node is no longer part of the cloud: what clusters had there is given up, and purged from them."""
    for row in all_of(tx, Kind.STORAGE_CLUSTER, gone=True):
        spec = row.spec_as(StorageClusterSpec)
        if node not in spec.nodes:
            continue
        left = tuple(item for item in spec.nodes if item != node)
        to_stay = [d for d in spec.devices if d.node == node and not (d.out and d.replace_path is None)]
        take_over(tx, row.id, to_stay, "its node was removed from the cloud, and the device with it")
        changed = spec.model_copy(
            update={
                "nodes": left,
                "leaving": tuple(item for item in spec.leaving if item != node),
                "maintenance": tuple(item for item in spec.maintenance if item != node),
                "devices": tuple(
                    device.model_copy(update={"out": True, "drained": True, "replace_path": None})
                    if device.node == node
                    else device
                    for device in spec.devices
                ),
            }
        )
        unrefer(tx, row.id, node, "store")
        save(tx, row, spec=staffed(tx, row.id, changed) if left and row.state != State.DELETING else changed)
