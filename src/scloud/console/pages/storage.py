"""Storage: for administrators clusters, pools and what accounts have in them; a disk with its figures for everybody."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from scloud.client.problems import failure
from scloud.console.api import part
from scloud.console.pages.lookup import Names, lists
from scloud.console.visit import Handler, Visit

LEVELS = ("datacenter", "rack", "host")
Piece = dict[str, Any]


def health(cluster: Mapping[str, Any]) -> str:
    """The level of the worst that is to be said: `error`, `warning`, or `ok`; its state while that is not ready."""
    status = cluster["status"]
    if status["state"] != "ready":
        return str(status["state"])
    levels = {item["level"] for item in status["conditions"]}
    return next((level for level in ("error", "warning") if level in levels), "ok")


def groups(states: Mapping[str, int]) -> list[Piece]:
    """Placement groups as pieces of a bar 100 wide, the healthy ones first."""
    total = sum(states.values())
    pieces: list[Piece] = []
    at = 0.0
    for mood in ("good", "busy", "unsure", "bad"):
        for state, count in sorted(states.items()):
            if count and mood_of_groups(state) == mood:
                width = 100 * count / total
                pieces.append({"state": state, "count": count, "mood": mood, "at": round(at, 2), "width": width})
                at += width
    return pieces


def mood_of_groups(state: str) -> str:
    """Healthy; on its way; fewer copies than wanted; not to be read or written, or damaged."""
    parts = set(state.split("+"))
    if parts & {"down", "incomplete", "inconsistent", "stale", "unknown", "failed_repair", "recovery_unfound"}:
        return "bad"
    if "active" not in parts:
        return "busy" if parts & {"peering", "creating", "activating"} else "bad"
    if parts & {"degraded", "undersized", "backfill_toofull", "recovery_toofull"}:
        return "unsure"
    return "good" if "clean" in parts else "busy"


def tree(osds: Sequence[Mapping[str, Any]]) -> list[Piece]:
    """Datacenters, racks and hosts, each followed by what is in it: (depth, words or an OSD)."""

    def place(osd: Mapping[str, Any]) -> list[tuple[str, str]]:
        known = osd.get("place") or {"host": osd.get("node", "")}
        return [(level, known[level]) for level in LEVELS if known.get(level)]

    rows: list[Piece] = []
    shown: list[tuple[str, str]] = []
    for osd in sorted(osds, key=lambda item: (place(item), item["osd"])):
        above = place(osd)
        for depth, (level, name) in enumerate(above):
            if shown[: depth + 1] != above[: depth + 1]:
                rows.append({"depth": depth, "what": f"{level} {name}", "osd": None})
        shown = above
        rows.append({"depth": len(above), "what": f"osd.{osd['osd']}", "osd": osd})
    return rows


def by_account(use: Sequence[Mapping[str, Any]], pools: Names) -> list[Piece]:
    """Accounts' disks in pools, who occupies most first."""
    found = [{**item, "where": pools(item["pool"]) or "nodes' own storage"} for item in use]
    return sorted(found, key=lambda item: (-item["used_mib"], item["account_name"], item["where"]))


async def show(visit: Visit) -> Response:
    clusters, pools, types, nodes, use = await asyncio.gather(
        visit.api.all("/storage-clusters"),
        visit.api.all("/pools"),
        visit.api.all("/disk-types"),
        visit.api.all("/nodes"),
        visit.api.get("/usage/storage", all_accounts=True),
    )
    return await visit.page(
        "storage.html",
        title="Storage",
        clusters=[
            {**item, "health": health(item), "groups": groups(item["status"]["placement_groups"])} for item in clusters
        ],
        tree=tree,
        pools=pools,
        types=types,
        use=by_account(use["items"], Names(pools)),
        names=Names(clusters, pools, nodes),
    )


async def disk(visit: Visit) -> Response:
    """Its figures are measured over a second, so this page takes that long while a VM has it open."""
    ref = part(visit.ref())
    found, figures, snapshots, types = await asyncio.gather(
        visit.api.get(f"/disks/{ref}"),
        visit.api.get(f"/disks/{ref}/figures"),
        visit.api.all("/snapshots", disk=visit.ref(), **visit.watched()),
        visit.api.all("/disk-types"),
    )
    if found["status"]["state"] == "trashed":
        raise failure("not_found", "this disk is in the trash; the list of disks has it, to be restored")
    vms, images = await lists(visit.api, "vms", "images", **visit.watched())
    return await visit.page(
        "disk.html",
        title=found["name"],
        disk=found,
        figures=figures,
        snapshots=snapshots,
        types=[item for item in types if item["name"] != found["spec"].get("type")],
        names=Names(vms, images, snapshots),
    )


PAGES: Mapping[str, Handler] = {"/storage": show, "/disks/{ref}": disk}
