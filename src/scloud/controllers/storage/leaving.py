"""The end of a cluster: its nodes let go of it, then it is forgotten."""

from __future__ import annotations

from scloud.controllers import finishing
from scloud.controllers.storage import changes, rows
from scloud.controllers.storage.changes import Reports
from scloud.controllers.storage.load import load
from scloud.controllers.storage.rows import PoolRow
from scloud.model.errors import ErrorKind
from scloud.model.kinds import State
from scloud.model.storage import StorageClusterSpec, StorageClusterStatus
from scloud.store import operations, samples, secrets
from scloud.store.database import Tx
from scloud.store.operations import OperationState
from scloud.store.resources import Resource, remove, save


def finish(tx: Tx, id: str, reports: Reports) -> bool:
    """True when nothing of the cluster is left, neither on its nodes nor in the database."""
    found = load(tx, id)
    if found is None:
        return True
    held = [site.name for node, site in found.sites.items() if not changes.let_go(reports, found, node)]
    if held:
        more = f" and {len(held) - 5} more" if len(held) > 5 else ""
        _explain(tx, found.row.id, f"waiting for {', '.join(held[:5])}{more}{changes.troubles(found, reports)}")
        return False
    for pool in found.pools:
        if not found.deployed:
            _leave_pool(tx, found.row.name, pool)
        finishing.complete_deletion(tx, pool.row)
        samples.forget(tx, pool.row.id)
        remove(tx, pool.row)
    finishing.complete_deletion(tx, found.row)
    if not found.row.gone:
        operations.record(tx, found.row, "info", "deleted" if found.deployed else "let go")
    secrets.forget(tx, id)
    samples.forget(tx, id)
    remove(tx, found.row)
    return True


def overdue(tx: Tx, row: Resource) -> None:
    """Its deletion did not end in time: gone for its owner, with what is true of the nodes that have not let go."""
    spec = row.spec_as(StorageClusterSpec)
    why = row.status_as(StorageClusterStatus).reason or "waiting for its nodes"
    if spec.mode == "deployed":
        left = "its daemons there are stopped and its devices wiped when they answer, and its ports stay reserved"
    else:
        left = "they forget their keys to it when they answer; its own devices and data are as they were"
    for pool in rows.pools_of(tx, row.id):
        if spec.mode != "deployed":
            _leave_pool(tx, row.name, pool)
        finishing.bury(tx, pool.row, f"deleted with cluster '{row.name}'")
    finishing.bury(tx, row, f"deleted; {why}: {left}")


def _leave_pool(tx: Tx, cluster: str, pool: PoolRow) -> None:
    """A cluster that is let go keeps a pool that it has not deleted."""
    reason = (
        f"cluster '{cluster}' was let go before it had deleted the pool, which stays in it: {', '.join(pool.names)}"
    )
    for op in operations.open_for(tx, pool.row.id):
        operations.end(tx, op, OperationState.FAILED, reason, code=ErrorKind.CONFLICT)


def _explain(tx: Tx, id: str, reason: str) -> None:
    found = load(tx, id)
    if found is None or found.status.reason == reason:
        return
    status: StorageClusterStatus = found.status.model_copy(update={"reason": reason, "state": State.DELETING})
    save(tx, found.row, status=status)
    for op in operations.open_for(tx, id):
        operations.progress(tx, op.id, 50, reason)
