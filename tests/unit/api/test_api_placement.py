"""Where VMs go: load, racks, clusters, nodes that have just joined, and many requests at once."""

from __future__ import annotations

import asyncio
from typing import Any

from scloud.model.observed import NodeLoad
from support.cloud import Api, Cloud
from support.pools import make_pool, reach_pool


async def where(api: Api, name: str) -> str:
    return str((await api.get(f"/vms/{name}"))["status"]["node"])


async def plan(api: Api, **spec: Any) -> dict[str, Any]:
    body = {"name": "x", "spec": {"image": "micro", **spec}}
    answer = await api.ask("POST", "/vms", json=body, params={"dry_run": "true"})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_a_busy_node_is_avoided_and_the_dry_run_tells_by_how_much(cloud: Cloud) -> None:
    for name in ("n1", "n2"):
        await cloud.node(name)
    await cloud.image()
    assert (await plan(cloud.alice))["node"] == "n1"
    session = cloud.manager.sessions.get(cloud.nodes["n1"].id)
    assert session is not None
    cloud.nodes["n1"].load = NodeLoad(cpu=0.8, storage_ms=25.0)

    async def seen() -> bool:
        assert session is not None
        return session.smoothed.cpu > 0.0

    await cloud.eventually(seen)

    async def avoided() -> bool:
        return bool((await plan(cloud.alice))["node"] == "n2")

    await cloud.eventually(avoided)
    parts = {item["node"]: item["parts"] for item in (await plan(cloud.alice))["candidates"]}
    assert parts["n1"]["load"] > parts["n2"]["load"] == 0.0
    assert await where(cloud.alice, (await cloud.alice.create("vms", "web", image="micro"))["name"]) == "n2"


async def test_groups_over_racks(cloud: Cloud) -> None:
    for name, rack in (("n1", "a"), ("n2", "a"), ("n3", "b"), ("n4", "")):
        await cloud.node(name)
        if rack:
            await cloud.admin.end("PATCH", f"/nodes/{name}", {"spec": {"labels": {"rack": rack}}})
    await cloud.image()
    await cloud.alice.create("placement-groups", "apart", policy="hard", over="rack")
    spec = {"image": "micro", "placement_group": "apart"}
    homes = {await where(cloud.alice, (await cloud.alice.create("vms", f"v{n}", **spec))["name"]) for n in (1, 2)}
    assert len(homes) == 2 and "n3" in homes and "n4" not in homes
    why = {item["node"]: item["reasons"] for item in (await plan(cloud.alice, placement_group="apart"))["candidates"]}
    assert why["n2"] == ["stands in rack a, which already has a VM of this hard placement group"]
    assert "no rack that is known" in why["n4"][0]
    op = await cloud.alice.end("POST", "/vms", {"name": "v3", "spec": spec}, state="failed")
    assert op["error"]["code"] == "no_capacity" and "stands in rack" in op["error"]["message"]
    # another rack, and it can be placed
    await cloud.admin.end("PATCH", "/nodes/n4", {"spec": {"labels": {"rack": "c"}}})
    await cloud.alice.end("POST", "/vms/v3/actions/start")
    assert await where(cloud.alice, "v3") == "n4"


async def test_a_node_that_has_just_joined_gets_the_next_vms(cloud: Cloud) -> None:
    await cloud.node("n1")
    await cloud.image()
    for number in range(4):
        await cloud.alice.create("vms", f"old-{number}", image="micro")
    await cloud.node("n2")
    made = [await cloud.alice.create("vms", f"new-{number}", image="micro") for number in range(4)]
    assert [vm["status"]["node"] for vm in made] == ["n2"] * 4
    assert {vm["status"]["node"] for vm in await cloud.alice.list("/vms", name="old-0")} == {"n1"}, "and none is moved"


async def test_a_node_of_another_architecture_than_its_clusters_is_not_used(cloud: Cloud) -> None:
    await cloud.node("n1", architecture="aarch64")
    await cloud.image("arm", architecture="aarch64")
    [candidate] = (await plan(cloud.alice, image="arm"))["candidates"]
    assert candidate["reasons"] == ["is aarch64 in a cluster of x86_64 nodes; add it to another cluster"]
    await cloud.admin.create("clusters", "arms", architecture="aarch64")
    made = await cloud.admin.do("POST", "/nodes", {"name": "n2", "spec": {"cluster": "arms"}})
    assert made["resource"]["spec"]["cluster"] == (await cloud.admin.get("/clusters/arms"))["id"]


async def test_rebalancing_is_proposed_with_gains_and_changes_nothing(cloud: Cloud) -> None:
    one = await cloud.node("n1", cpus=4)
    await cloud.image()
    pool = await cloud.store.write(lambda tx: make_pool(tx, [one.id]))
    for number in range(6):
        await cloud.alice.create("vms", f"vm-{number}", image="micro", cpus=2, disk_type="standard")
    await cloud.alice.create("vms", "here", image="micro", disk_type="standard", node="n1")
    await cloud.alice.create("vms", "local", image="micro")
    assert (await cloud.admin.get("/clusters/default/rebalance"))["moves"] == []
    two = await cloud.node("n2", cpus=4)
    await cloud.store.write(lambda tx: reach_pool(tx, pool, [one.id, two.id]))
    before = cloud.dump()
    found = await cloud.admin.get("/clusters/default/rebalance")
    assert [(move["source"], move["target"]) for move in found["moves"]] == [("n1", "n2")] * 4
    assert [move["gain"] for move in found["moves"]] == sorted((move["gain"] for move in found["moves"]), reverse=True)
    assert found["nodes"] == [
        {"node": "n1", "before": 0.875, "after": 0.375},
        {"node": "n2", "before": 0.0, "after": 0.5},
    ]
    assert found["stays"] == {"may be on one node only": 1, "have disks in their node's own storage": 1}
    assert len((await cloud.admin.get("/clusters/default/rebalance", limit=1))["moves"]) == 1
    await cloud.alice.fail("GET", "/clusters/default/rebalance", status=403, code="forbidden")
    assert cloud.dump() == before


async def test_fifty_creations_at_once_never_overbook(cloud: Cloud) -> None:
    """Room for 24 of 512 MiB: as many are made, the rest are told why not; no node has promised more than it has."""
    for name in ("n1", "n2", "n3"):
        await cloud.node(name, memory_mib=8 * 512)
    await cloud.image()
    body = {"spec": {"image": "micro", "memory_mib": 512}}
    answers = await asyncio.gather(
        *(api.do("POST", "/vms", {"name": f"vm-{n}", **body}) for n in range(25) for api in (cloud.alice, cloud.admin))
    )
    ended = await asyncio.gather(
        *(cloud.admin.get(f"/operations/{answer['operation']['id']}", wait=20) for answer in answers)
    )
    states = sorted(op["state"] for op in ended)
    assert states == ["done"] * 24 + ["failed"] * 26
    assert {op["error"]["code"] for op in ended if op["error"]} == {"no_capacity"}
    for item in (await cloud.admin.get("/usage"))["items"]:
        assert item["promised"]["memory_mib"] == item["promisable"]["memory_mib"] == 4096
    placed = [vm["status"]["node"] for vm in await cloud.admin.list("/vms", all_accounts=True, state="running")]
    assert {name: placed.count(name) for name in set(placed)} == {"n1": 8, "n2": 8, "n3": 8}
