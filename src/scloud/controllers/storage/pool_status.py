"""What is so of a cluster's pools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from scloud.controllers import finishing
from scloud.controllers.storage.load import Load
from scloud.controllers.storage.look import Look
from scloud.controllers.storage.planning import wanted_pools
from scloud.controllers.storage.rows import PoolRow
from scloud.model.errors import ErrorKind
from scloud.model.kinds import State
from scloud.model.storage import Condition, PoolStatus
from scloud.reconcile.ceph import pools as reconcile
from scloud.reconcile.ceph.conditions import appeared, dated
from scloud.reconcile.ceph.figures import cluster_capacity, forecast, fullness, pool_capacity, room_told, sooner
from scloud.reconcile.ceph.layout import spots
from scloud.reconcile.ceph.pools import Wanted
from scloud.reconcile.ceph.redundancy import objections, warning
from scloud.reconcile.ceph.view import PoolSeen, View
from scloud.store import operations, samples
from scloud.store.database import Tx
from scloud.store.nodes import usages
from scloud.store.resources import remove, save

RATE_STEP = 5.0
"""Figures below that many a second, and changes smaller than a fifth, are not worth a write to the database."""


def update(tx: Tx, load: Load, look: Look, failures: Mapping[str, str]) -> bool:
    """`failures`: why commands for a pool failed, by its id. True if nodes are to be told of other pools."""
    promised = usages(tx)
    changed = False
    for pool, wanted in zip(load.pools, wanted_pools(load), strict=True):
        provisioned = promised[pool.row.id].disk_mib if pool.row.id in promised else 0
        if pool.leaving:
            changed |= _removed(tx, load, look, pool, wanted, failures.get(pool.row.id, ""))
        else:
            changed |= _present(tx, load, look, pool, wanted, provisioned, failures.get(pool.row.id, ""))
    return changed


def _removed(tx: Tx, load: Load, look: Look, pool: PoolRow, wanted: Wanted, failure: str) -> bool:
    """Forget a pool that is gone from the cluster; say why one is not."""
    if reconcile.plan(wanted, look.view, look.slow):
        if failure:
            _stays(tx, pool, reconcile.undeleted(failure, load.deployed))
        return False
    if not pool.row.gone:
        operations.record(tx, pool.row, "info", "deleted")
    finishing.complete_deletion(tx, pool.row)
    samples.forget(tx, pool.row.id)
    remove(tx, pool.row)
    tx.touch(load.row.key)
    return True


def _stays(tx: Tx, pool: PoolRow, reason: str) -> None:
    """It is to be deleted, and is there."""
    for op in operations.open_for(tx, pool.row.id):
        if op.message != reason:
            operations.progress(tx, op.id, op.progress, reason)
    if pool.status.reason != reason:
        if not pool.row.gone:
            operations.record(tx, pool.row, "error", f"is not deleted: {reason}")
        save(tx, pool.row, status=pool.status.model_copy(update={"reason": reason}))


def _present(tx: Tx, load: Load, look: Look, pool: PoolRow, wanted: Wanted, provisioned: int, failure: str) -> bool:
    old, view = pool.status, look.view
    stranger = reconcile.foreign(wanted, view)
    data = view.pools.get(pool.spec.data_name or pool.spec.rados_name)
    made = data is not None and not stranger and not reconcile.plan(wanted, view, look.slow)
    if old.observed_generation == 0 and view.forming:
        made = False  # whoever used it now would have to wait
    conditions: list[Condition] = []
    accepts = False
    figures: dict[str, object] = {}
    if data is not None and not stranger:
        samples.add(tx, pool.row.id, data.stored >> 20)
        capacity = pool_capacity(pool.spec, view, data, provisioned, samples.history(tx, pool.row.id))
        if pool.spec.media is None or {osd.media for osd in view.osds} <= {pool.spec.media.value}:
            capacity = sooner(capacity, cluster_capacity(view, 0, samples.history(tx, load.row.id)))
        accepts, conditions = _room(load, pool, view, data, forecast(capacity))
        figures = {
            "capacity": capacity,
            "iops_read": _step(old.iops_read, data.reads_per_s),
            "iops_write": _step(old.iops_write, data.writes_per_s),
            "kib_read_per_s": _step(old.kib_read_per_s, data.read_bytes_per_s / 1024),
            "kib_write_per_s": _step(old.kib_write_per_s, data.write_bytes_per_s / 1024),
        }
    thin = warning(pool.spec.redundancy)
    if thin:
        conditions.append(Condition(name="thin-redundancy", level="warning", message=thin))
    reason = _reason(load, pool, stranger, failure)
    state, generation = old.state, old.observed_generation
    if made:
        state, reason, generation = State.READY, "", pool.row.generation
    elif stranger or failure:
        state = State.ERROR if old.observed_generation == 0 or stranger else old.state
    new = old.model_copy(
        update={
            **figures,
            "state": state,
            "reason": reason if state != State.READY else "",
            "conditions": dated(tx.now, conditions, old.conditions),
            "accepts_new": accepts and (made or old.observed_generation > 0),
            "observed_generation": generation,
        }
    )
    _write(tx, pool, new)
    if made:
        finishing.complete(tx, pool.row, pool.row.generation)
    elif stranger:
        finishing.fail(tx, pool.row, pool.row.generation, reason, ErrorKind.CONFLICT)
    if (generation > 0) != (old.observed_generation > 0):
        tx.touch(pool.row.key)
        return True
    return False


def _room(load: Load, pool: PoolRow, view: View, data: PoolSeen, when: str) -> tuple[bool, list[Condition]]:
    """Whether it takes new disks, and what is to be said of that."""
    metadata = view.pools.get(pool.spec.rados_name, data)
    data = replace(data, full=data.full or metadata.full, over_quota=data.over_quota or metadata.over_quota)
    refused = [item for item in pool.status.conditions if item.name in ("near-full", "full")]
    if refused and not data.full and not room_told(view):
        return False, refused  # with no manager to tell how full it is, it is as full as it was
    return fullness(pool.spec, view, data, load.spec.warn_percent / 100, not refused, when)


def _reason(load: Load, pool: PoolRow, stranger: str, failure: str) -> str:
    if stranger:
        return (
            f"the cluster has a pool '{stranger}' that somebody else made; it is left as it is: delete this pool and "
            "make one of another name"
        )
    if failure:
        return failure
    return pool.status.reason or "being made"


def _write(tx: Tx, pool: PoolRow, new: PoolStatus) -> None:
    old = pool.status
    if new == old:
        return
    for condition in appeared(new.conditions, old.conditions):
        operations.record(tx, pool.row, condition.level, condition.message)
    if new.state == State.ERROR and old.state != State.ERROR:
        operations.record(tx, pool.row, "error", new.reason)
    save(tx, pool.row, status=new, observed_generation=new.observed_generation)


def _step(before: float, now: float) -> float:
    """A figure that jitters is kept as it was."""
    return before if abs(now - before) <= max(RATE_STEP, before / 5) and bool(before) == bool(now) else round(now, 1)


def unreachable(tx: Tx, load: Load, reason: str) -> None:
    """Nothing new is begun in pools of a cluster that does not answer."""
    message = f"the cluster does not answer: {reason}"
    for pool in load.pools:
        if pool.leaving:
            _stays(tx, pool, f"{message}; it is deleted as soon as it does")
        if pool.leaving or (pool.status.conditions and pool.status.conditions[0].name == "unreachable"):
            continue
        condition = Condition(name="unreachable", level="error", message=message, since=tx.now)
        new = pool.status.model_copy(update={"accepts_new": False, "conditions": (condition,)})
        save(tx, pool.row, status=new)


def shaky(load: Load) -> list[Condition]:
    """Pools that have lost the fault domains they need: they go on, but cannot be made whole."""
    if not load.deployed:
        return []
    found = []
    for pool in load.pools:
        objection = objections(pool.spec, load.row.name, spots(load.spec.devices, load.sites))
        if objection and not pool.leaving:
            message = f"pool '{pool.row.name}' cannot be made whole: {objection}"
            found.append(Condition(name=f"pool-{pool.row.name}-shaky", level="warning", message=message))
    return found
