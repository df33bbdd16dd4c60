"""VPCs, subnets, security groups, and the trace of a packet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from scloud.console.api import part
from scloud.console.forms import Form
from scloud.console.pages.lookup import Names, lists
from scloud.console.visit import Handler, Visit
from scloud.model.errors import CloudError


async def show(visit: Visit) -> Response:
    vpcs, subnets, groups, nics, vms = await lists(
        visit.api, "vpcs", "subnets", "security-groups", "nics", "vms", **visit.scope()
    )
    used: dict[str, int] = {}
    for nic in nics:
        used[nic["spec"]["subnet"]] = used.get(nic["spec"]["subnet"], 0) + 1
    return await visit.page(
        "networks.html",
        title="Networks",
        vpcs=vpcs,
        subnets=subnets,
        groups=groups,
        nics=nics,
        used=used,
        everyone=visit.everyone,
        names=Names(vpcs, subnets, groups, vms),
    )


async def group(visit: Visit) -> Response:
    found = await visit.api.get(f"/security-groups/{part(visit.ref())}")
    groups, nics, vms = await lists(visit.api, "security-groups", "nics", "vms")
    members = [nic for nic in nics if found["id"] in nic["spec"]["security_groups"]]
    return await visit.page(
        "group.html",
        title=found["name"],
        group=found,
        groups=groups,
        members=members,
        names=Names(groups, vms),
    )


async def trace(visit: Visit) -> Response:
    """A form that asks nothing until it is filled in, and can be linked to when it is."""
    vms, nics = await lists(visit.api, "vms", "nics")
    asked = {name: visit.query(name) or "" for name in ("from", "to", "protocol", "port")}
    result: dict[str, Any] | None = None
    error: CloudError | None = None
    if asked["from"] and asked["to"]:
        form = Form(visit.request.query_params)
        body = {"from": asked["from"], "to": asked["to"], "protocol": asked["protocol"] or "icmp"}
        try:
            port = form.number("port") if body["protocol"] != "icmp" else None
            result = await visit.api.post("/network/trace", {**body, **({"port": port} if port is not None else {})})
        except CloudError as problem:
            error = problem
    return await visit.page(
        "trace.html", title="Network trace", vms=vms, nics=nics, asked=asked, result=result, error=error
    )


PAGES: Mapping[str, Handler] = {
    "/networks": show,
    "/networks/trace": trace,
    "/security-groups/{ref}": group,
}
