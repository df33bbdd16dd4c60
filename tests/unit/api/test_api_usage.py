"""What nodes have promised."""

from __future__ import annotations

from support.cloud import Cloud


async def test_usage_tells_promises_and_load_of_every_node(cloud: Cloud) -> None:
    node = await cloud.node("n1", cpus=4, memory_mib=8192, disk_mib=1000)
    await cloud.admin.end("PATCH", "/clusters/default", {"spec": {"cpu_overcommit": 2.5}})
    await cloud.image(size_mib=10)
    await cloud.admin.create("vms", "web", image="micro", cpus=3, memory_mib=512, disk_mib=20)
    (found,) = (await cloud.admin.get("/usage"))["items"]
    assert (found["node"], found["name"], found["state"]) == (node.id, "n1", "ready")
    assert found["promisable"] == {"cpus": 10, "memory_mib": 8192, "disk_mib": 1000}
    assert found["promised"] == {"cpus": 3, "memory_mib": 512, "disk_mib": 20}
    assert found["load"]["cpu"] == 0.0
    (found,) = (await cloud.admin.get("/usage", node="n1"))["items"]
    assert found["smoothed"]["pressure"] == 0.0
    await cloud.admin.fail("GET", "/usage", params={"node": "n9"}, status=404, code="not_found")
    await node.stop()
    await cloud.until(cloud.admin, "/nodes/n1", "down")
    assert (await cloud.admin.get("/usage"))["items"][0]["load"] is None


async def test_usage_is_the_administrators(cloud: Cloud) -> None:
    await cloud.alice.fail("GET", "/usage", status=403, code="forbidden")
