"""Reading what the database has of a storage cluster: its nodes as sites, its pools, its keys."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scloud.model.kinds import Kind, State
from scloud.model.specs import NodeSpec
from scloud.model.statuses import NodeStatus
from scloud.model.storage import Device, PoolSpec, PoolStatus, StorageClusterSpec, StorageClusterStatus
from scloud.reconcile.ceph.devices import crowded_out
from scloud.reconcile.ceph.layout import Site, Spot, spots
from scloud.reconcile.ceph.removal import stranded
from scloud.store.database import Tx
from scloud.store.resources import Resource, children, find_many

MON, ADMIN_USER, ADMIN_KEY, BOOTSTRAP = "mon.", "admin.user", "admin.key", "bootstrap"


def mgr_secret(node: str) -> str:
    return f"mgr/{node}"


def osd_secret(uuid: str) -> str:
    return f"osd/{uuid}"


def client_secret(node: str) -> str:
    return f"client/{node}"


def granted_secret(node: str) -> str:
    """Not the key, but the names of the pools that the cluster lets it reach: a JSON list, there once the key is."""
    return f"granted/{node}"


def fenced_secret(node: str) -> str:
    """There while the node is cut off: the cluster is not to know its key."""
    return f"fenced/{node}"


def client_name(node_name: str) -> str:
    """A node's cephx name, without `client.`."""
    return f"scloud-{node_name}"


def client_of(secrets: dict[str, str], node: str) -> tuple[str, str] | None:
    """(name, key) of a node's client."""
    text = secrets.get(client_secret(node))
    if text is None:
        return None
    name, _, key = text.partition(":")
    return name, key


def granted(secrets: dict[str, str], node: str) -> tuple[str, ...] | None:
    """Pools that a node's key reaches; None until the cluster has the key."""
    text = secrets.get(granted_secret(node))
    return tuple(json.loads(text)) if text is not None else None


def sites_of(tx: Tx, nodes: tuple[str, ...]) -> dict[str, Site]:
    """Those nodes that are still part of the cloud."""
    rows = find_many(tx, nodes, gone=False)
    return {id: site(rows[id]) for id in nodes if id in rows and rows[id].kind == Kind.NODE}


def site(row: Resource) -> Site:
    status = row.status_as(NodeStatus)
    return Site(row.id, row.name, status.storage_ip or status.tunnel_ip, row.spec_as(NodeSpec).labels)


@dataclass(frozen=True, slots=True)
class PoolRow:
    row: Resource
    spec: PoolSpec
    status: PoolStatus

    @property
    def names(self) -> tuple[str, ...]:
        """What it is called inside the cluster."""
        return (self.spec.rados_name, *([self.spec.data_name] if self.spec.data_name else []))

    @property
    def leaving(self) -> bool:
        return self.row.gone or self.row.state == State.DELETING

    @property
    def made(self) -> bool:
        """Whether it has been seen in the cluster."""
        return self.status.observed_generation > 0


def pools_of(tx: Tx, cluster: str) -> list[PoolRow]:
    """All pools of a cluster, those that are being deleted too."""
    return [
        PoolRow(row, row.spec_as(PoolSpec), row.status_as(PoolStatus))
        for row in children(tx, Kind.POOL, cluster, gone=True)
    ]


def spots_of(tx: Tx, row: Resource, spec: StorageClusterSpec | None = None) -> list[Spot]:
    """Where data can be: what was asked for, or, of a cluster that was adopted, what has been seen."""
    spec = spec or row.spec_as(StorageClusterSpec)
    if spec.mode == "deployed":
        return spots(spec.devices, sites_of(tx, spec.nodes))
    seen = row.status_as(StorageClusterStatus).osds
    return [Spot(osd.place, osd.media, osd.total_mib) for osd in seen if osd.taken_in]


def in_place(tx: Tx, row: Resource, spec: StorageClusterSpec) -> set[str]:
    """Uuids of devices to be replaced whose data have nowhere else to go, or no room there."""
    kept = [pool.spec for pool in pools_of(tx, row.id) if not pool.leaving]
    found = filled_in_place(spec.devices, spots_of(tx, row, spec), kept)
    return found | crowded_out(spec.devices, dead(row.status_as(StorageClusterStatus)), toofull=False)


def filled_in_place(devices: Iterable[Device], left: Sequence[Spot], pools: Iterable[PoolSpec]) -> set[str]:
    """The same, of devices, the places of those that stay, and the pools that stay."""
    waiting = [device for device in devices if device.out and device.replace_path is not None]
    return {device.uuid for device in waiting} if waiting and stranded(pools, left) else set()


def dead(status: StorageClusterStatus) -> set[str]:
    """Uuids of OSDs that were down when the cluster was last looked at."""
    return {osd.uuid for osd in status.osds if not osd.up}
