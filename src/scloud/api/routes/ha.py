"""High availability: what is watched with which numbers, and the story of each node that was lost."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from scloud.api.context import AdminDep, ContextDep, send
from scloud.api.schemas import PROBLEMS, Cursor, HaOut, IncidentPage, Limit, RefFilter
from scloud.model.kinds import Kind
from scloud.model.specs import ClusterSpec
from scloud.store import incidents
from scloud.store.database import Tx
from scloud.store.resources import SYSTEM, all_of, find, get

router = APIRouter(prefix="/ha", tags=["ha"], responses=PROBLEMS)


@router.get("", response_model=HaOut)
async def show_ha(context: ContextDep, _admin: AdminDep) -> Response:
    """The numbers of each cluster, the incidents that are open, and why nothing is done where nothing is."""
    conditions = context.manager.ha.conditions

    def read(tx: Tx) -> dict[str, Any]:
        clusters = []
        for row in all_of(tx, Kind.CLUSTER):
            ha = row.spec_as(ClusterSpec).ha
            clusters.append({"cluster": row.name, "settings": ha.model_dump(), "detection_s": ha.detection_s})
        names = {node: known.name for node, _ in conditions if (known := find(tx, node)) is not None}
        return {
            "clusters": clusters,
            "conditions": [{"node": names.get(node, node), "message": words} for node, words in conditions],
            "incidents": [incident.model_dump() for incident in incidents.open_ones(tx)],
        }

    return send(await context.store.read(read))


@router.get("/incidents", response_model=IncidentPage)
async def list_incidents(
    context: ContextDep, _admin: AdminDep, limit: Limit = 100, cursor: Cursor = None, node: RefFilter = None
) -> Response:
    """A page of them, newest first; `node` is a node's id or name."""

    def read(tx: Tx) -> dict[str, Any]:
        id = get(tx, Kind.NODE, node, SYSTEM).id if node is not None else None
        items, following = incidents.page(tx, limit=limit, before=cursor, node=id)
        return {"items": [item.model_dump() for item in items], "next": following}

    return send(await context.store.read(read))
