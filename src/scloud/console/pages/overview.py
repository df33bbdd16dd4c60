"""The first page: health in words, counts, nodes, and what happened last."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from scloud.console import words
from scloud.console.visit import Handler, Visit

LINKS = {
    "vm": "/vms",
    "image": "/images",
    "disk": "/disks",
    "vpc": "/networks",
    "subnet": "/networks",
    "security-group": "/networks",
    "nic": "/networks",
}
EVENTS = 12


def health(status: Mapping[str, Any]) -> str:
    """One sentence about the VMs: `3 VMs run, 1 is stopped.`"""
    states: Mapping[str, int] = status["counts"].get("vm", {})
    if not sum(states.values()):
        return "There are no VMs yet."
    running, parts = states.get("running", 0), []
    parts.append(f"{words.counted(running, 'vm')} {'runs' if running == 1 else 'run'}")
    parts += [f"{number} {state}" for state, number in sorted(states.items()) if number and state != "running"]
    return ", ".join(parts) + "."


async def show(visit: Visit) -> Response:
    status, events, nodes = await asyncio.gather(
        visit.api.get("/status"), visit.api.get("/events", limit=EVENTS, **visit.watched()), _nodes(visit)
    )
    failed = status["counts"].get("vm", {}).get("error", 0)
    return await visit.page(
        "overview.html",
        title="Overview",
        status_=status,
        sentence=health(status),
        well=status["healthy"] and not failed and not status["conditions"],
        counts=[(kind, LINKS[kind], status["counts"].get(kind, {})) for kind in LINKS],
        events=events["items"],
        nodes=nodes,
    )


async def _nodes(visit: Visit) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await visit.api.get("/usage"))["items"] if visit.admin else []
    return items


PAGES: Mapping[str, Handler] = {"/": show}
