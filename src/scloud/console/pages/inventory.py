"""Images, disks, keys, and what belongs to the administrator: nodes and accounts."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import Response

from scloud.console.api import part
from scloud.console.pages.lookup import Names, lists
from scloud.console.visit import Handler, Visit


async def images(visit: Visit) -> Response:
    (found,) = await lists(visit.api, "images", **visit.scope())
    return await visit.page("images.html", title="Images", images=found, everyone=visit.everyone)


async def disks(visit: Visit) -> Response:
    found, vms, images_ = await lists(visit.api, "disks", "vms", "images", **visit.scope())
    (types,) = await lists(visit.api, "disk-types")
    return await visit.page(
        "disks.html",
        title="Disks",
        disks=found,
        trash=await visit.api.all("/disks", state="trashed", **visit.scope()),
        types=types,
        vms=vms,
        everyone=visit.everyone,
        names=Names(vms, images_),
    )


async def keys(visit: Visit) -> Response:
    keypairs, groups, tokens = await lists(visit.api, "keypairs", "placement-groups", "tokens")
    return await visit.page(
        "keys.html", title="Keys and tokens", keypairs=keypairs, placement_groups=groups, tokens=tokens
    )


async def nodes(visit: Visit) -> Response:
    found, clusters = await lists(visit.api, "nodes", "clusters")
    usage = {item["node"]: item for item in (await visit.api.get("/usage"))["items"]}
    drains = {
        node["id"]: (await visit.api.get(f"/nodes/{part(node['id'])}/drain"))["drain"]
        for node in found
        if node["spec"]["draining"]
    }
    rebalances = {item["id"]: await visit.api.get(f"/clusters/{part(item['id'])}/rebalance") for item in clusters}
    return await visit.page(
        "nodes.html",
        title="Nodes",
        nodes=found,
        clusters=clusters,
        usage=usage,
        drains=drains,
        rebalances=rebalances,
        names=Names(clusters),
    )


async def accounts(visit: Visit) -> Response:
    (found,) = await lists(visit.api, "accounts")
    return await visit.page("accounts.html", title="Accounts", accounts=found)


PAGES: Mapping[str, Handler] = {
    "/images": images,
    "/disks": disks,
    "/keys": keys,
    "/nodes": nodes,
    "/accounts": accounts,
}
