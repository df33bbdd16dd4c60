"""The cloud as a whole: health, audit, network trace, metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy import func, select

from scloud import __version__
from scloud.api.context import AdminDep, CallerDep, ContextDep, send
from scloud.api.metrics import exposition
from scloud.api.schemas import PROBLEMS, Answer, TraceAsk
from scloud.controllers import audit as auditing
from scloud.controllers import trace as tracing
from scloud.model.errors import invalid
from scloud.model.kinds import Kind, State
from scloud.model.storage import StorageClusterStatus
from scloud.store.database import Tx
from scloud.store.lease import managers
from scloud.store.resources import all_of, in_state
from scloud.store.tables import resource

NAMED = 10
"""Nodes that a condition names."""
router = APIRouter(tags=["system"], responses=PROBLEMS)


class TraceStep(Answer):
    node: str
    stage: str
    verdict: str
    text: str


class TraceAnswer(Answer):
    verdict: str
    summary: str
    steps: list[TraceStep]


class Finding(Answer):
    severity: str
    node: str
    key: str
    message: str


class AuditAnswer(Answer):
    clean: bool
    findings: list[Finding]
    nodes_asked: list[str]
    nodes_silent: list[str]


class Condition(Answer):
    severity: str
    message: str


class StatusAnswer(Answer):
    """`nodes` counts them by state; `connected` are those that this manager hears now. After a takeover the two differ
    until all have dialled."""

    healthy: bool
    version: str
    epoch: int
    counts: dict[str, dict[str, int]]
    nodes: dict[str, int]
    connected: int | None
    conditions: list[Condition]


class ManagerRow(Answer):
    """`api` and `link` are HOST:PORT."""

    role: str
    id: str
    api: str
    link: str


class ManagerList(Answer):
    items: list[ManagerRow]


@router.get("/managers", response_model=ManagerList)
async def list_managers(context: ContextDep, _admin: AdminDep, request: Request) -> Response:
    """The one that leads, first, and those that would take over; any of them answers for the leader."""
    found = await context.store.read(managers)
    rows = [{"role": role, "id": who.id, "api": who.api, "link": who.link} for role, who in found]
    # Without rivals there is no lease to look at.
    alone = {"role": "leader", "id": "alone", "api": request.url.netloc, "link": context.join_address}
    return send({"items": rows if context.store.has_rivals else [alone]})


@router.post("/network/trace", response_model=TraceAnswer, tags=["network"])
async def trace(body: TraceAsk, context: ContextDep, caller: CallerDep) -> Response:
    """Why can't A reach B? Step by step, in words, from intent to the real switch."""
    if (body.port is None) != (body.protocol == "icmp"):
        raise invalid("port", "goes with tcp and udp, and is needed there")
    return send(await tracing.trace(context.manager, caller.account, body.source, body.to, body.protocol, body.port))


@router.get("/audit", response_model=AuditAnswer)
async def audit(context: ContextDep, _admin: AdminDep) -> Response:
    """What exists without an owner, and what has an owner and does not exist."""
    return send(await auditing.audit(context.manager))


@router.get("/status", response_model=StatusAnswer)
async def status(context: ContextDep, caller: CallerDep) -> Response:
    """Health in words. Administrators see the whole cloud, others their account."""

    def read(tx: Tx) -> dict[str, Any]:
        query = select(resource.c.kind, resource.c.state, func.count()).where(resource.c.gone.is_(False))
        if not caller.admin:
            query = query.where(resource.c.account == caller.account)
        counts: dict[str, dict[str, int]] = {}
        for kind, state, number in tx.conn.execute(query.group_by(resource.c.kind, resource.c.state)):
            counts.setdefault(kind, {})[state] = number
        nodes = counts.pop(Kind.NODE, {})
        conditions = _conditions(tx, nodes, counts) if caller.admin else []
        return {
            "healthy": not any(item["severity"] == "error" for item in conditions),
            "version": __version__,
            "epoch": context.manager.epoch,
            "counts": counts,
            "nodes": nodes,
            "connected": len(context.manager.sessions) if caller.admin else None,
            "conditions": conditions,
        }

    return send(await context.store.read(read))


def _conditions(tx: Tx, nodes: dict[str, int], counts: dict[str, dict[str, int]]) -> list[dict[str, str]]:
    found = []
    down = in_state(tx, Kind.NODE, State.DOWN) if nodes.get(State.DOWN) else []
    for node in down[:NAMED]:
        found.append({"severity": "error", "message": f"node {node.name} does not answer; its VMs are unknown"})
    if more := down[NAMED:]:
        message = f"{len(more)} more nodes do not answer; see `scloud node list`"
        found.append({"severity": "error", "message": message})
    if not nodes.get(State.READY):
        found.append({"severity": "error", "message": "no node is ready; VMs can be placed nowhere"})
    if tx.has_rivals and len(managers(tx)) == 1:
        found.append({"severity": "warning", "message": "there is no standby manager: if this one dies, nobody leads"})
    failed = counts.get(Kind.VM, {}).get(State.ERROR, 0)
    if failed:
        found.append({"severity": "warning", "message": f"{failed} VMs are in error; see `scloud vm list`"})
    for row in all_of(tx, Kind.STORAGE_CLUSTER):
        found += [
            {"severity": item.level, "message": f"storage cluster {row.name}: {item.message}"}
            for item in row.status_as(StorageClusterStatus).conditions
            if item.level != "info"
        ]
    return found


public = APIRouter(tags=["system"])


@public.get("/healthz", include_in_schema=False)
async def healthz(context: ContextDep) -> Response:
    """Answers while the manager works; needs no token and tells nothing."""
    await context.store.read(lambda tx: tx.conn.execute(select(1)).scalar())
    return send({"ok": True})


@public.get("/metrics", include_in_schema=False)
async def metrics(context: ContextDep, _admin: AdminDep) -> Response:
    """Prometheus exposition; an administrator's token is needed."""
    return Response(await exposition(context), media_type=CONTENT_TYPE_LATEST)
