"""Virtual machines: the table, one of them, its console, and the form for new ones."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from scloud.console import render
from scloud.console.api import part
from scloud.console.pages.lookup import Names, Resource, lists
from scloud.console.visit import Handler, Visit
from scloud.model.errors import CloudError

PAGE = 100
LOG_BYTES = 16384


async def table(visit: Visit) -> Response:
    page, images, accounts = await asyncio.gather(
        visit.api.get("/vms", limit=PAGE, cursor=visit.query("cursor"), state=visit.query("state"), **visit.scope()),
        visit.api.all("/images"),
        _admins(visit, "accounts"),
    )
    return await visit.page(
        "vms.html",
        title="Virtual machines",
        vms=page["items"],
        following=page["next"],
        state=visit.query("state"),
        everyone=visit.everyone,
        names=Names(images, accounts),
    )


async def _admins(visit: Visit, path: str) -> list[Resource]:
    return await visit.api.all(f"/{path}") if visit.admin else []


async def new(visit: Visit) -> Response:
    images, subnets, vpcs, groups, keypairs, disks, placement = await lists(
        visit.api, "images", "subnets", "vpcs", "security-groups", "keypairs", "disks", "placement-groups"
    )
    return await visit.page(
        "vm_new.html",
        title="New VM",
        images=[image for image in images if image["status"]["state"] == "ready"],
        subnets=subnets,
        groups=groups,
        keypairs=keypairs,
        disks=[disk for disk in disks if not disk["spec"]["vm"] and disk["status"]["state"] == "ready"],
        placement_groups=placement,
        nodes=await _admins(visit, "nodes"),
        names=Names(vpcs),
    )


async def one(visit: Visit) -> Response:
    vm = await visit.api.get(f"/vms/{part(visit.ref())}")
    (nics, disks), (images, groups, subnets, keypairs), figures, log, nodes, operations, events = await asyncio.gather(
        _attached(visit, vm),
        lists(visit.api, "images", "security-groups", "subnets", "keypairs"),
        _figures(visit, vm),
        _log(visit, vm),
        _admins(visit, "nodes"),
        visit.api.get("/operations", resource=vm["id"], limit=5, **_widely(visit, vm)),
        visit.api.get("/events", resource=vm["id"], limit=8, **_widely(visit, vm)),
    )
    return await visit.page(
        "vm.html",
        title=vm["name"],
        vm=vm,
        nics=nics,
        disks=disks,
        free_disks=[disk for disk in await visit.api.all("/disks") if not disk["spec"]["vm"]],
        images=images,
        groups=groups,
        subnets=subnets,
        figures=figures,
        log=log,
        recent=operations["items"],
        events=events["items"],
        names=Names(images, groups, subnets, keypairs, nodes),
    )


def _widely(visit: Visit, vm: Resource) -> dict[str, Any]:
    """An administrator may look at another account's VM."""
    return {"all_accounts": True} if vm["account"] != visit.me["account"]["id"] else {}


async def _attached(visit: Visit, vm: Resource) -> tuple[list[Resource], list[Resource]]:
    scope = _widely(visit, vm)
    if not scope:
        nics, disks = await lists(visit.api, "nics", "disks", vm=vm["id"])
        return nics, disks
    nics, disks = await lists(visit.api, "nics", "disks", **scope)
    mine = [[item for item in items if item["spec"]["vm"] == vm["id"]] for items in (nics, disks)]
    return mine[0], mine[1]


async def _figures(visit: Visit, vm: Resource) -> dict[str, Any] | None:
    if vm["status"]["state"] != "running":
        return None
    try:
        found: dict[str, Any] = await visit.api.get(f"/vms/{vm['id']}/figures")
        return found
    except CloudError:
        return None  # its node does not answer now; the page says so by the VM's state


async def _log(visit: Visit, vm: Resource) -> str | None:
    if not vm["status"]["node"]:
        return None
    try:
        return await visit.api.text(f"/vms/{vm['id']}/log", bytes=LOG_BYTES)
    except CloudError as error:
        return f"(the log cannot be read: {error.message})"


async def console(visit: Visit) -> Response:
    """A terminal. Its library writes style elements, which the policy lets pass by a nonce, and style attributes."""
    vm = await visit.api.get(f"/vms/{part(visit.ref())}")
    nonce = secrets.token_urlsafe(18)
    csp = render.policy(style_src=f"'self' 'nonce-{nonce}'", style_src_attr="'unsafe-inline'")
    return await visit.page("vm_console.html", title=f"{vm['name']}: console", vm=vm, nonce=nonce, csp=csp)


PAGES: Mapping[str, Handler] = {
    "/vms": table,
    "/vms/new": new,
    "/vms/{ref}": one,
    "/vms/{ref}/console": console,
}
