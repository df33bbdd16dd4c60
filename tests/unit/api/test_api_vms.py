"""Virtual machines through the API, with nodes that obey."""

from __future__ import annotations

from support.cloud import Cloud


async def test_a_vm_runs_and_goes(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    await cloud.alice.create("vpcs", "net")
    await cloud.alice.create("subnets", "lan", vpc="net", cidr="10.0.0.0/24")
    vm = await cloud.alice.create("vms", "web", image="micro", nics=[{"subnet": "lan"}])
    assert vm["status"]["state"] == "running"
    assert vm["status"]["node"] == "n1"
    assert vm["status"]["addresses"] == ["10.0.0.3"]
    assert node.existing[f"vm/{vm['id']}"] == "running"
    await cloud.alice.end("DELETE", "/vms/web")
    await cloud.alice.fail("GET", "/vms/web", status=404, code="not_found")
    assert node.existing == {}
    assert cloud.rows("claim", scope="mac") == []
