"""The end of a cluster: its nodes let go of it, then it is forgotten."""

from __future__ import annotations

from scloud.controllers import finishing
from scloud.controllers.storage import changes
from scloud.controllers.storage.changes import Reports
from scloud.controllers.storage.load import load
from scloud.model.kinds import State
from scloud.model.storage import StorageClusterStatus
from scloud.store import operations, samples, secrets
from scloud.store.database import Tx
from scloud.store.resources import remove, save


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


def _explain(tx: Tx, id: str, reason: str) -> None:
    found = load(tx, id)
    if found is None or found.status.reason == reason:
        return
    status: StorageClusterStatus = found.status.model_copy(update={"reason": reason, "state": State.DELETING})
    save(tx, found.row, status=status)
    for op in operations.open_for(tx, id):
        operations.progress(tx, op.id, 50, reason)
