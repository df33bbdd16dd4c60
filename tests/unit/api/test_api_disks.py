"""Data disks."""

from __future__ import annotations

from scloud.model.desired import DesiredDisk
from support.cloud import Cloud


async def test_a_disk_is_attached_detached_grown_and_deleted(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    disk = await cloud.alice.create("disks", "data", size_mib=100)
    key = f"disk/{disk['id']}"
    assert disk["status"]["node"] is None
    vm = await cloud.alice.create("vms", "a", image="micro")
    await cloud.alice.end("POST", "/disks/data/actions/attach", {"vm": "a"})
    assert [d.id for d in node.objects[f"vm/{vm['id']}"].disks][1:] == [disk["id"]]  # type: ignore[union-attr]
    assert (await cloud.alice.get("/disks/data"))["status"]["node"] == "n1"
    assert {row["name"] for row in await cloud.alice.list("/disks", vm="a")} == {"a-system", "data"}
    await cloud.alice.end("POST", "/disks/data/actions/attach", {"vm": "a"})
    await cloud.alice.create("vms", "b", image="micro")
    used = await cloud.alice.fail("POST", "/disks/data/actions/attach", {"vm": "b"}, status=409, code="in_use")
    assert used["users"] == ["vm a"]
    await cloud.alice.fail("DELETE", "/disks/data", status=409, code="in_use")
    await cloud.alice.end("POST", "/disks/data/actions/resize", {"size_mib": 200})
    item = node.objects[key]
    assert isinstance(item, DesiredDisk) and item.size_mib == 200
    assert cloud.rows("node_usage")[0]["disk_mib"] == 220
    smaller = await cloud.alice.fail(
        "POST", "/disks/data/actions/resize", {"size_mib": 199}, status=422, code="invalid"
    )
    assert "only grow" in smaller["detail"]
    huge = {"size_mib": 10**7}
    await cloud.alice.fail("POST", "/disks/data/actions/resize", huge, status=409, code="no_capacity")
    await cloud.alice.end("POST", "/disks/data/actions/detach")
    await cloud.alice.end("POST", "/disks/data/actions/detach")
    assert (await cloud.alice.get("/disks/data"))["spec"]["vm"] is None
    assert key in node.existing
    await cloud.alice.end("DELETE", "/disks/data")
    assert key not in node.existing
    assert cloud.rows("node_usage")[0]["disk_mib"] == 20


async def test_a_disk_on_no_node_changes_at_once(cloud: Cloud) -> None:
    await cloud.alice.create("disks", "data", size_mib=100)
    await cloud.alice.end("POST", "/disks/data/actions/resize", {"size_mib": 10**6})
    assert (await cloud.alice.get("/disks/data"))["spec"]["size_mib"] == 10**6
    await cloud.alice.end("DELETE", "/disks/data")


async def test_a_disk_ties_its_vm_to_its_node(cloud: Cloud) -> None:
    for name in ("n1", "n2"):
        await cloud.node(name)
    await cloud.image()
    for number in (1, 2):
        await cloud.alice.create("disks", f"d{number}", size_mib=10)
        spec = {"image": "micro", "node": f"n{number}", "disks": [f"d{number}"]}
        await cloud.alice.create("vms", f"v{number}", **spec)
        await cloud.alice.end("DELETE", f"/vms/v{number}")
        assert (await cloud.alice.get(f"/disks/d{number}"))["status"]["state"] == "ready"
    vm = await cloud.alice.create("vms", "a", image="micro", disks=["d2"])
    assert vm["status"]["node"] == "n2"
    problem = await cloud.alice.fail("POST", "/disks/d1/actions/attach", {"vm": "a"}, status=409, code="conflict")
    assert "n1" in problem["detail"] and "n2" in problem["detail"]
    await cloud.alice.end("POST", "/disks/d2/actions/detach")
    spec = {"image": "micro", "disks": ["d1", "d2"]}
    op = await cloud.alice.end("POST", "/vms", {"name": "both", "spec": spec}, state="failed")
    assert "disk 'd1' is on node n1 and disk 'd2' is on node n2" in op["message"]
    await cloud.alice.end("DELETE", "/vms/both")
    spec = {"image": "micro", "disks": ["d1"], "node": "n2"}
    op = await cloud.alice.end("POST", "/vms", {"name": "far", "spec": spec}, state="failed")
    assert "disk 'd1' is on node n1 and node n2 was asked for" in op["message"]
    await cloud.alice.end("POST", "/disks/d1/actions/detach")
    await cloud.alice.end("POST", "/vms/far/actions/start")
    assert (await cloud.alice.get("/vms/far"))["status"]["node"] == "n2"


async def test_a_system_disk_goes_with_its_vm_only(cloud: Cloud) -> None:
    await cloud.node()
    await cloud.image()
    await cloud.alice.create("vms", "a", image="micro")
    await cloud.alice.fail("POST", "/disks/a-system/actions/detach", status=409, code="conflict")
    await cloud.alice.fail("DELETE", "/disks/a-system", status=409, code="in_use")
    await cloud.alice.end("POST", "/disks/a-system/actions/resize", {"size_mib": 20})
    assert (await cloud.alice.get("/disks/a-system"))["status"]["state"] == "ready"


async def test_data_disks_outlive_their_vm(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    disk = await cloud.alice.create("disks", "data", size_mib=10)
    await cloud.alice.create("vms", "a", image="micro", disks=["data"])
    await cloud.alice.end("DELETE", "/vms/a")
    kept = await cloud.alice.get("/disks/data")
    assert (kept["spec"]["vm"], kept["status"]["state"], kept["status"]["node"]) == (None, "ready", "n1")
    assert f"disk/{disk['id']}" in node.existing
    await cloud.alice.create("vms", "b", image="micro", disks=["data"])


async def test_a_vm_has_at_most_sixteen_data_disks(cloud: Cloud) -> None:
    await cloud.node()
    await cloud.image()
    for number in range(17):
        await cloud.alice.create("disks", f"d{number}", size_mib=1)
    await cloud.alice.create("vms", "a", image="micro", disks=[f"d{number}" for number in range(16)])
    await cloud.alice.fail("POST", "/disks/d16/actions/attach", {"vm": "a"}, status=409, code="no_capacity")
