"""Pools and disk types, and what nodes' labels mean to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from scloud.api.context import accepted, begin, begin_and_end
from scloud.api.intents.common import resolve
from scloud.api.intents.storage import cluster_of
from scloud.api.storage_schemas import DiskTypeAsk, PoolAsk
from scloud.controllers.storage import rows
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import Kind, State
from scloud.model.statuses import Status
from scloud.model.storage import (
    DiskTypeSpec,
    PoolSpec,
    PoolStatus,
    StorageClusterSpec,
    StorageClusterStatus,
    copies_of,
)
from scloud.reconcile.ceph.layout import misplaced, spots
from scloud.reconcile.ceph.redundancy import domains, objections, width
from scloud.store import operations
from scloud.store.database import Tx
from scloud.store.resources import (
    SYSTEM,
    Resource,
    claim_value,
    create,
    get,
    refer,
    refuse_if_used,
    remove,
    save,
    using,
)


def create_pool(tx: Tx, name: str, ask: PoolAsk) -> dict[str, Any]:
    """CONFLICT, with what would do, if the cluster cannot keep such a pool."""
    found = resolve(tx, "spec.cluster", Kind.STORAGE_CLUSTER, ask.cluster, SYSTEM)
    cluster, _ = cluster_of(tx, found.id)
    if cluster.observed_generation == 0:
        reason = cluster.status_as(StorageClusterStatus).reason
        raise CloudError(ErrorKind.CONFLICT, f"cluster '{cluster.name}' is not ready ({cluster.state}): {reason}")
    spec = PoolSpec(
        cluster=cluster.id, redundancy=ask.redundancy, fault_domain=ask.fault_domain, media=ask.media, rados_name=""
    )
    objection = objections(spec, cluster.name, rows.spots_of(tx, cluster))
    if objection:
        raise CloudError(ErrorKind.CONFLICT, objection)
    status = PoolStatus(state=State.CREATING, reason="being made")
    row = create(tx, Kind.POOL, SYSTEM, name, spec, status, parent=cluster.id)
    rados = _rados_name(tx, row, cluster.id)
    data = f"{rados}.data" if copies_of(ask.redundancy)[0] > 1 else None
    row = save(tx, row, spec=spec.model_copy(update={"rados_name": rados, "data_name": data}))
    refer(tx, row.id, cluster.id, "cluster")
    tx.touch(cluster.key)
    return accepted(begin(tx, "pool.create", row), row)


def _rados_name(tx: Tx, row: Resource, cluster: str) -> str:
    """After the pool; with the id's end if a pool that was renamed has that name."""
    scope = f"rados:{cluster}"
    plain = f"scloud.{row.name}"
    if claim_value(tx, scope, plain, row.id):
        return plain
    other = f"scloud.{row.name[:40]}.{row.id[-8:]}"
    claim_value(tx, scope, other, row.id)
    return other


def rename_pool(tx: Tx, ref: str, name: str) -> dict[str, Any]:
    """Inside the cluster it keeps its name."""
    row = get(tx, Kind.POOL, ref, SYSTEM)
    if row.name != name:
        row = save(tx, row, name=name)
    return accepted(begin_and_end(tx, "pool.update", row), row)


def delete_pool(tx: Tx, ref: str) -> dict[str, Any]:
    """Refused, with the list, while disks or disk types use it; its bytes go with it."""
    row = get(tx, Kind.POOL, ref, SYSTEM)
    refuse_if_used(tx, row)
    op = begin(tx, "pool.delete", row)
    if row.state != State.DELETING:
        status = row.status_as(PoolStatus).model_copy(
            update={"state": State.DELETING, "reason": "being deleted", "accepts_new": False}
        )
        row = save(tx, row, status=status, spec=row.spec_as(PoolSpec))
        operations.record(tx, row, "info", "is being deleted")
        tx.touch(f"{Kind.STORAGE_CLUSTER}/{row.parent}")
    return accepted(op, row)


def create_disk_type(tx: Tx, name: str, ask: DiskTypeAsk) -> dict[str, Any]:
    pool = resolve(tx, "spec.pool", Kind.POOL, ask.pool, SYSTEM) if ask.pool else None
    if pool is not None and pool.state == State.DELETING:
        raise CloudError(ErrorKind.CONFLICT, f"pool '{pool.name}' is being deleted")
    spec = DiskTypeSpec(pool=pool.id if pool else None)
    row = create(tx, Kind.DISK_TYPE, SYSTEM, name, spec, Status(state=State.READY))
    if pool is not None:
        refer(tx, row.id, pool.id, "pool")
    return accepted(begin_and_end(tx, "disk-type.create", row), row)


def rename_disk_type(tx: Tx, ref: str, name: str) -> dict[str, Any]:
    """Disks that were made with it keep the name they were made with."""
    row = get(tx, Kind.DISK_TYPE, ref, SYSTEM)
    if row.name != name:
        row = save(tx, row, name=name)
    return accepted(begin_and_end(tx, "disk-type.update", row), row)


def delete_disk_type(tx: Tx, ref: str) -> dict[str, Any]:
    """Disks that were made with it stay."""
    row = get(tx, Kind.DISK_TYPE, ref, SYSTEM)
    refuse_if_used(tx, row)
    op = begin_and_end(tx, "disk-type.delete", row, "deleted")
    remove(tx, row)
    return accepted(op, row)


def check_labels(tx: Tx, node: Resource, labels: Mapping[str, str]) -> None:
    """CONFLICT if with these labels a storage cluster's tree, or a pool's fault domains, would not hold any more."""
    for row in using(tx, node.id, "store"):
        spec = row.spec_as(StorageClusterSpec)
        if spec.mode != "deployed" or row.gone or row.state == State.DELETING:
            continue
        sites = rows.sites_of(tx, spec.nodes)
        after = {id: replace(site, labels=labels) if id == node.id else site for id, site in sites.items()}
        objection = misplaced(after.values())
        if objection:
            raise CloudError(ErrorKind.CONFLICT, f"storage cluster '{row.name}': {objection}")
        for pool in rows.pools_of(tx, row.id):
            media = pool.spec.media.value if pool.spec.media else None
            have = domains(spots(spec.devices, sites), pool.spec.fault_domain, media)
            left = domains(spots(spec.devices, after), pool.spec.fault_domain, media)
            if not pool.leaving and len(left) < min(len(have), width(pool.spec.redundancy)):
                raise CloudError(
                    ErrorKind.CONFLICT,
                    f"pool '{pool.row.name}' would lose redundancy: its devices would be in {len(left)} "
                    f"{pool.spec.fault_domain}s instead of {len(have)}",
                )
