"""What Prometheus scrapes from the manager."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.process_collector import ProcessCollector
from sqlalchemy import func, select

from scloud.api.context import Context
from scloud.store.database import Tx
from scloud.store.operations import OPEN
from scloud.store.tables import operation, resource, work


async def exposition(context: Context) -> bytes:
    """Counts from the database, and each connected node's load."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    resources = Gauge("scloud_resources", "Resources by kind and state", ["kind", "state"], registry=registry)
    open_operations = Gauge("scloud_operations_open", "Operations under way", registry=registry)
    work_items = Gauge("scloud_work_items", "Work items waiting for a controller", registry=registry)
    connected = Gauge("scloud_nodes_connected", "Nodes with a live connection", registry=registry)
    load = Gauge("scloud_node_load", "Load of a node, 0..1", ["node", "resource"], registry=registry)
    latency = Gauge("scloud_node_storage_seconds", "Time of one storage request", ["node"], registry=registry)
    Gauge("scloud_leader_epoch", "Epoch of this leader", registry=registry).set(context.manager.epoch)

    def read(tx: Tx) -> None:
        rows = select(resource.c.kind, resource.c.state, func.count()).group_by(resource.c.kind, resource.c.state)
        for kind, state, number in tx.conn.execute(rows):
            resources.labels(kind, state).set(number)
        waiting = select(func.count()).select_from(operation).where(operation.c.state.in_(OPEN))
        open_operations.set(tx.conn.execute(waiting).scalar_one())
        work_items.set(tx.conn.execute(select(func.count()).select_from(work)).scalar_one())

    await context.store.read(read)
    connected.set(len(context.manager.sessions))
    for session in context.manager.sessions:
        if session.load is None:
            continue
        for resource_name in ("cpu", "memory", "disk", "network", "storage"):
            load.labels(session.facts.hostname, resource_name).set(getattr(session.load, resource_name))
        latency.labels(session.facts.hostname).set(session.load.storage_ms / 1000)
    return generate_latest(registry)
