"""A storage cluster's row to what each of its nodes is told."""

from __future__ import annotations

from scloud.controllers.storage import rows
from scloud.controllers.storage.load import Load
from scloud.controllers.storage.rows import PoolRow
from scloud.model.desired import DesiredStore, MgrDaemon, MonDaemon, OsdDaemon, StorePool
from scloud.model.ha import HaSettings
from scloud.model.kinds import State
from scloud.model.specs import ClusterSpec, NodeSpec
from scloud.model.storage import StorageClusterSpec
from scloud.reconcile.ceph.layout import Site, addresses_in
from scloud.store.database import Tx
from scloud.store.resources import Resource, find
from scloud.store.secrets import secrets_of


def store_id(cluster: str, node: str) -> str:
    return f"{cluster}.{node}"


def stores(tx: Tx, row: Resource) -> dict[str, DesiredStore]:
    """By node: its part in the cluster. Nodes that are no longer in the cloud are left out."""
    spec = row.spec_as(StorageClusterSpec)
    secrets = secrets_of(tx, row.id)
    sites = rows.sites_of(tx, spec.nodes)
    made = {pool.row.id: pool for pool in rows.pools_of(tx, row.id) if pool.made and not pool.leaving}
    gone = row.gone or row.state == State.DELETING
    result = {}
    for node, site in sites.items():
        reach = rows.granted(secrets, node)
        name, key = rows.client_of(secrets, node) or (rows.client_name(site.name), "")
        pools = tuple(
            _pool(pool) for _, pool in sorted(made.items()) if reach is not None and set(pool.names) <= set(reach)
        )
        ha = _ha_of(tx, node)
        result[node] = _store(row, spec, secrets, sites, site).model_copy(
            update={
                "client": name,
                "client_key": key if reach is not None else "",
                "pools": pools,
                "lease_s": ha.lease_s if ha.enabled else 0.0,
                "absent": gone or _emptied(spec, node),
            }
        )
    return result


def administered(load: Load) -> DesiredStore:
    """The cluster as its administrator reaches it, with all pools that were made. It is told to nobody, but lent."""
    return DesiredStore(
        id=load.row.id,
        generation=load.row.generation,
        cluster=load.row.id,
        fsid=load.spec.fsid,
        mon_host=load.spec.mon_host,
        client=load.secrets.get(rows.ADMIN_USER, "admin"),
        client_key=load.secrets.get(rows.ADMIN_KEY, ""),
        pools=tuple(_pool(pool) for pool in sorted(load.pools, key=lambda pool: pool.row.id) if pool.made),
    )


def _pool(pool: PoolRow) -> StorePool:
    return StorePool(id=pool.row.id, name=pool.spec.rados_name, data_name=pool.spec.data_name)


def _ha_of(tx: Tx, node: str) -> HaSettings:
    row = find(tx, node)
    cluster = find(tx, row.spec_as(NodeSpec).cluster) if row is not None else None
    return cluster.spec_as(ClusterSpec).ha if cluster is not None else HaSettings()


def _emptied(spec: StorageClusterSpec, node: str) -> bool:
    """Whether a node that leaves has nothing left to do here."""
    return (
        node in spec.leaving
        and node not in spec.monitors
        and node not in spec.managers
        and all(device.node != node for device in spec.devices)
    )


def _store(
    row: Resource, spec: StorageClusterSpec, secrets: dict[str, str], sites: dict[str, Site], site: Site
) -> DesiredStore:
    base = DesiredStore(
        id=store_id(row.id, site.id),
        generation=row.generation,
        cluster=row.id,
        fsid=spec.fsid,
        mon_host=spec.mon_host,
        client="",
    )
    if spec.mode == "adopted":
        return base
    addresses = dict(zip(spec.monitors, addresses_in(spec.mon_host), strict=True))
    names = {id: sites[id].name for id in spec.monitors if id in sites}
    daemons: list[MonDaemon | MgrDaemon | OsdDaemon] = []
    if site.id in spec.monitors:
        daemons.append(MonDaemon(name=site.name, address=addresses[site.id]))
    if site.id in spec.managers:
        daemons.append(MgrDaemon(name=site.name, key=secrets.get(rows.mgr_secret(site.id), "")))
    daemons += [
        OsdDaemon(
            uuid=device.uuid,
            key=secrets.get(rows.osd_secret(device.uuid), ""),
            path=device.path,
            size_mib=device.size_mib,
            media=device.media.value,
            crush=site.crush,
            absent=device.drained,
        )
        for device in spec.devices
        if device.node == site.id
    ]
    monitor = site.id in spec.monitors
    return base.model_copy(
        update={
            "first_port": spec.first_port,
            "initial_monitors": tuple((names[id], addresses[id]) for id in spec.monitors if id in names),
            "mon_key": secrets.get(rows.MON, "") if monitor else "",
            "admin_key": secrets.get(rows.ADMIN_KEY, "") if monitor else "",
            "bootstrap_key": secrets.get(rows.BOOTSTRAP, "") if any(d.type == "osd" for d in daemons) else "",
            "daemons": tuple(daemons),
        }
    )
