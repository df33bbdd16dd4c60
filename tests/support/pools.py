"""A storage cluster, a pool and a disk type as rows, without any of what is behind them."""

from __future__ import annotations

from collections.abc import Sequence

from scloud.model.kinds import Kind, State
from scloud.model.statuses import Status
from scloud.model.storage import Condition, DiskTypeSpec, PoolSpec, PoolStatus, StorageClusterSpec, StorageClusterStatus
from scloud.store.database import Tx
from scloud.store.resources import SYSTEM, create, find, save


def make_pool(tx: Tx, nodes: Sequence[str], type_: str = "standard") -> str:
    """A pool that these nodes reach, with a disk type of this name. The pool's id."""
    spec = StorageClusterSpec(mode="adopted", nodes=tuple(nodes), fsid="f", mon_host="192.0.2.9:6789")
    cluster = create(tx, Kind.STORAGE_CLUSTER, SYSTEM, f"c-{type_}", spec, StorageClusterStatus(state=State.READY))
    status = PoolStatus(state=State.READY, accepts_new=True)
    pool = create(
        tx, Kind.POOL, SYSTEM, f"p-{type_}", PoolSpec(cluster=cluster.id, rados_name="p"), status, parent=cluster.id
    )
    create(tx, Kind.DISK_TYPE, SYSTEM, type_, DiskTypeSpec(pool=pool.id), Status(state=State.READY))
    return pool.id


def close_pool(tx: Tx, pool: str, reason: str) -> None:
    """The pool is near full."""
    row = find(tx, pool)
    assert row is not None
    condition = Condition(name="near-full", level="warning", message=reason)
    update = {"accepts_new": False, "conditions": (condition,)}
    save(tx, row, status=row.status_as(PoolStatus).model_copy(update=update))


def reach_pool(tx: Tx, pool: str, nodes: Sequence[str]) -> None:
    """These nodes are the storage cluster's now."""
    row = find(tx, pool)
    assert row is not None
    cluster = find(tx, row.spec_as(PoolSpec).cluster)
    assert cluster is not None
    save(tx, cluster, spec=cluster.spec_as(StorageClusterSpec).model_copy(update={"nodes": tuple(nodes)}))
