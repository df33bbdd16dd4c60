"""A node's comings and goings in the database."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select

from scloud.controllers import reports, serving
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import Kind, State
from scloud.model.observed import NodeFacts
from scloud.model.statuses import NodeStatus
from scloud.model.wire import WAS_REMOVED
from scloud.store import operations
from scloud.store.database import Tx
from scloud.store.resources import find, save
from scloud.store.tables import resource

_READY = select(resource.c.id).where(resource.c.kind == Kind.NODE, resource.c.state == State.READY)


def arrived(tx: Tx, node: str, facts: NodeFacts) -> None:
    """The node has connected and said what it is. FORBIDDEN if it was taken out of the cloud meanwhile."""
    row = find(tx, node)
    if row is None:
        raise CloudError(ErrorKind.FORBIDDEN, WAS_REMOVED)
    old = row.status_as(NodeStatus)
    new = old.model_copy(
        update={
            "state": State.READY,
            "reason": "",
            "tunnel_ip": facts.tunnel_ip,
            "storage_ip": facts.storage_ip,
            "address": facts.hostname,
            "architecture": facts.architecture,
            "capacity": facts.capacity,
            "accelerator": facts.accelerator,
            "agent_version": facts.agent_version,
            "datapath": facts.datapath,
            "gpus": facts.gpus,
            "last_seen": tx.now,
        }
    )
    if old.state != State.READY:
        operations.record(tx, row, "info", "connected")
    save(tx, row, status=new, observed_generation=row.generation)
    if old.state != State.READY:
        serving.node_back(tx)
    for op in operations.open_for(tx, row.id):
        if op.action == "node.create":
            operations.end(tx, op, operations.OperationState.DONE, "joined")


def lost(tx: Tx, node: str, since_s: float) -> None:
    """The node has not been connected for longer than the grace."""
    row = find(tx, node)
    if row is None:
        return
    status = row.status_as(NodeStatus)
    if status.state != State.READY:
        return
    since = datetime.fromtimestamp(tx.now - since_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    reason = f"node {row.name} has not answered since {since}; what it runs may still be running"
    save(tx, row, status=status.model_copy(update={"state": State.DOWN, "reason": reason}))
    operations.record(tx, row, "error", reason)
    reports.node_lost(tx, row, reason)
    serving.node_gone(tx, row.id)


def ready_nodes(tx: Tx) -> list[str]:
    return [row.id for row in tx.conn.execute(_READY)]
