"""What each node has promised to VMs, and how busy it is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from scloud.api.context import AdminDep, ContextDep, send
from scloud.api.schemas import PROBLEMS, Answer
from scloud.model.kinds import Kind
from scloud.model.observed import NodeLoad
from scloud.model.specs import ClusterSpec, NodeSpec
from scloud.model.statuses import Capacity, NodeStatus
from scloud.store import nodes
from scloud.store.database import Tx
from scloud.store.resources import all_of

router = APIRouter(tags=["nodes"], responses=PROBLEMS)


class NodeUsage(Answer):
    """`promisable` is the capacity with the cluster's CPU overcommit; `load` is null while the node is silent."""

    node: str
    name: str
    state: str
    promisable: Capacity
    promised: Capacity
    load: NodeLoad | None


class UsageAnswer(Answer):
    items: list[NodeUsage]


@router.get("/usage", response_model=UsageAnswer)
async def usage(context: ContextDep, _admin: AdminDep) -> Response:
    """Every node: what it could promise, what it has promised, and its load."""
    loads = {session.node: session.load for session in context.manager.sessions}

    def read(tx: Tx) -> list[dict[str, Any]]:
        promised = nodes.usages(tx)
        overcommit = {row.id: row.spec_as(ClusterSpec).cpu_overcommit for row in all_of(tx, Kind.CLUSTER)}
        items = []
        for row in all_of(tx, Kind.NODE):
            capacity = row.status_as(NodeStatus).capacity
            used = promised.get(row.id, nodes.Usage(row.id))
            cpus = int(capacity.cpus * overcommit.get(row.spec_as(NodeSpec).cluster, 1.0))
            load = loads.get(row.id)
            items.append(
                {
                    "node": row.id,
                    "name": row.name,
                    "state": row.state,
                    "promisable": {**capacity.model_dump(), "cpus": cpus},
                    "promised": {"cpus": used.cpus, "memory_mib": used.memory_mib, "disk_mib": used.disk_mib},
                    "load": load.model_dump() if load is not None else None,
                }
            )
        return items

    return send({"items": await context.store.read(read)})
