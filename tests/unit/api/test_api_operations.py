"""Operations: waiting, cancelling, deadlines. No state without an exit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scloud.model.kinds import TRANSITIONAL
from support.cloud import Cloud
from support.node import ScriptedNode


def transitional(cloud: Cloud) -> list[tuple[str, str, str]]:
    return [(r["kind"], r["name"], r["state"]) for r in cloud.rows("resource") if r["state"] in TRANSITIONAL]


async def running(cloud: Cloud) -> tuple[ScriptedNode, dict[str, Any]]:
    """A node, and on it a VM with a nic of its own, a nic and a disk that are only attached."""
    node = await cloud.node()
    await cloud.image()
    await cloud.alice.create("vpcs", "net")
    await cloud.alice.create("subnets", "lan", vpc="net", cidr="10.0.0.0/24")
    await cloud.alice.create("nics", "loose", subnet="lan")
    await cloud.alice.create("disks", "data", size_mib=10)
    vm = await cloud.alice.create("vms", "a", image="micro", nics=[{"subnet": "lan"}, {"nic": "loose"}], disks=["data"])
    return node, vm


async def test_a_wait_ends_with_the_operation_or_with_its_time(cloud: Cloud) -> None:
    node, _vm = await running(cloud)
    node.holding = True
    made = await cloud.alice.do("POST", "/vms/a/actions/stop")
    path = f"/operations/{made['operation']['id']}"
    assert (await cloud.alice.get(path))["state"] == "running"
    assert (await cloud.alice.get(path, wait=0.05))["state"] == "running"
    waiting = asyncio.create_task(cloud.alice.get(path, wait=30))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    await node.release()
    op = await waiting
    assert (op["state"], op["progress"], op["error"]) == ("done", 100, None)
    assert op["finished_at"] >= op["started_at"] >= op["created_at"]
    assert cloud.manager.waiters._futures == {}
    await cloud.alice.fail("GET", "/operations/op-0", params={"wait": 10}, status=404, code="not_found")
    assert cloud.manager.waiters._futures == {}


async def test_a_wait_ends_when_progress_is_not_what_was_seen(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    node.holding = True
    made = await cloud.alice.do("POST", "/vms", {"name": "a", "spec": {"image": "micro"}})
    op = await cloud.alice.get(f"/operations/{made['operation']['id']}", wait=30, seen=0)
    assert (op["state"], op["progress"], op["message"]) == ("running", 20, "placed on n1")
    op = await cloud.alice.get(f"/operations/{made['operation']['id']}", wait=0.05, seen=20)
    assert op["progress"] == 20


async def test_cancelling_a_creation_removes_what_was_made(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    node.holding = True
    made = await cloud.alice.do("POST", "/vms", {"name": "a", "spec": {"image": "micro"}})
    await cloud.until(cloud.alice, "/vms/a", "creating")
    answer = await cloud.alice.do("POST", f"/operations/{made['operation']['id']}/cancel")
    assert answer["operation"]["state"] == "cancelled"
    assert answer["resource"]["status"]["state"] == "deleting"
    assert [op["action"] for op in await cloud.alice.list("/operations", state="running")] == ["vm.delete"]
    await node.release()
    await cloud.until_gone(made["resource"]["id"])
    assert node.existing == {}
    again = await cloud.alice.fail("POST", f"/operations/{made['operation']['id']}/cancel", status=409, code="conflict")
    assert "ended already" in again["detail"]


async def test_a_cancelled_creation_on_a_dead_node_ends_too(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    node.holding = True
    made = await cloud.alice.do("POST", "/vms", {"name": "a", "spec": {"image": "micro"}})
    await cloud.until(cloud.alice, "/vms/a", "creating")
    await cloud.lose(node)
    await cloud.alice.do("POST", f"/operations/{made['operation']['id']}/cancel")
    cloud.clock.advance(61)

    async def gone() -> bool:
        return await cloud.alice.list("/vms") == [] and await cloud.alice.list("/operations", state="running") == []

    await cloud.eventually(gone)


async def test_other_things_cannot_be_cancelled(cloud: Cloud) -> None:
    node, _vm = await running(cloud)
    node.holding = True
    made = await cloud.alice.do("POST", "/vms/a/actions/stop")
    problem = await cloud.alice.fail(
        "POST", f"/operations/{made['operation']['id']}/cancel", status=409, code="conflict"
    )
    assert "vm.stop cannot be called back" in problem["detail"]


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize(
    ("path", "body", "seconds"),
    [
        ("/vms/a/actions/stop", None, 121),
        ("/vms/a/actions/reboot", None, 61),
        ("/vms/a/actions/resize", {"cpus": 2}, 61),
        ("/vms/a/actions/rebuild", None, 301),
        ("/disks/data/actions/resize", {"size_mib": 20}, 61),
        ("/disks/data/actions/detach", None, 61),
        ("/disks/more/actions/attach", {"vm": "a"}, 61),
        ("/nics/loose/actions/detach", None, 61),
        ("/nics/spare/actions/attach", {"vm": "a"}, 61),
    ],
)
async def test_what_does_not_end_in_time_fails_with_a_reason_and_is_done_later(
    cloud: Cloud, path: str, body: Any, seconds: float, connected: bool
) -> None:
    node, _vm = await running(cloud)
    await cloud.alice.create("disks", "more", size_mib=10)
    await cloud.alice.create("nics", "spare", subnet="lan")
    node.holding = True
    if not connected:
        await cloud.lose(node)
    made = await cloud.alice.do("POST", path, body)
    assert made["operation"]["state"] == "running"
    cloud.clock.advance(seconds)
    op = await cloud.alice.wait(made, "failed")
    assert op["error"]["code"] == "timed_out"
    assert f"{op['action']} did not finish within" in op["message"]
    assert ("last heard" if connected else "n1 does not answer") in op["message"]

    async def at_rest() -> bool:
        return transitional(cloud) == []

    await cloud.eventually(at_rest)
    node.holding = False
    if connected:
        await node.release()
    else:
        await node.start()

    async def well() -> bool:
        states = {r["state"] for r in cloud.rows("resource", account=cloud.alice.account)}
        return states <= {"ready", "running", "stopped"}

    await cloud.eventually(well)


@pytest.mark.parametrize("connected", [True, False])
async def test_a_creation_that_does_not_end_leaves_an_error_and_no_state_on_its_way(
    cloud: Cloud, connected: bool
) -> None:
    node = await cloud.node()
    await cloud.image()
    await cloud.alice.create("vpcs", "net")
    await cloud.alice.create("subnets", "lan", vpc="net", cidr="10.0.0.0/24")
    node.holding = True
    made = await cloud.alice.do("POST", "/vms", {"name": "a", "spec": {"image": "micro", "nics": [{"subnet": "lan"}]}})
    await cloud.until(cloud.alice, "/vms/a", "creating")
    if not connected:
        await cloud.lose(node)
    cloud.clock.advance(301)
    await cloud.alice.wait(made, "failed")

    async def at_rest() -> bool:
        return transitional(cloud) == []

    await cloud.eventually(at_rest)
    assert (await cloud.alice.get("/vms/a"))["status"]["reason"].startswith("vm.create did not finish within 300 s")
    node.holding = False
    await (node.release() if connected else node.start())
    await cloud.until(cloud.alice, "/vms/a", "running")
    await cloud.until(cloud.alice, "/nics/a-nic0", "ready")
    await cloud.until(cloud.alice, "/disks/a-system", "ready")


async def test_a_deletion_ends_for_its_owner_and_its_addresses_stay_reserved(cloud: Cloud) -> None:
    node, vm = await running(cloud)
    await cloud.lose(node)
    made = await cloud.alice.do("DELETE", "/vms/a")
    cloud.clock.advance(61)
    op = await cloud.alice.wait(made)
    assert "n1 does not answer" in op["message"] and "stay reserved" in op["message"]
    await cloud.alice.fail("GET", "/vms/a", status=404, code="not_found")
    await cloud.alice.fail("GET", f"/vms/{vm['id']}", status=404, code="not_found")

    async def at_rest() -> bool:
        return [row for row in transitional(cloud) if not row[1].startswith(("vm-", "nic-", "dsk-"))] == []

    await cloud.eventually(at_rest)
    # What was only attached is its owner's again, and says why it is not free yet.
    loose = await cloud.alice.get("/nics/loose")
    assert loose["status"]["state"] == "error" and "n1 does not answer" in loose["status"]["reason"]
    assert [row["name"] for row in await cloud.alice.list("/nics")] == ["loose"]
    taken = {"name": "b", "spec": {"subnet": "lan", "ip": vm["status"]["addresses"][0]}}
    await cloud.alice.fail("POST", "/nics", taken, status=409, code="conflict")
    # The name is free, the room is not.
    assert cloud.rows("node_usage")[0]["cpus"] == 1
    await cloud.node("n2")
    again = await cloud.alice.create("vms", "a", image="micro")
    assert again["status"]["node"] == "n2"
    await node.start()
    await cloud.until_gone(vm["id"])
    await cloud.until(cloud.alice, "/nics/loose", "ready")
    assert f"vm/{vm['id']}" not in node.existing
    assert {row["cpus"] for row in cloud.rows("node_usage", node=node.id)} == {0}
    await cloud.alice.create("nics", "b", subnet="lan", ip=taken["spec"]["ip"])


async def test_a_buried_network_keeps_its_addresses_until_its_node_returns(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    vpc = await cloud.alice.create("vpcs", "net", vni=77)
    await cloud.alice.create("subnets", "lan", vpc="net", cidr="10.0.0.0/24")
    await cloud.alice.create("vms", "a", image="micro", nics=[{"subnet": "lan"}])
    await cloud.lose(node)
    made = await cloud.alice.do("DELETE", "/vms/a")
    cloud.clock.advance(61)
    await cloud.alice.wait(made)
    op = await cloud.alice.end("DELETE", "/subnets/lan")
    assert "stay reserved" in op["message"]
    await cloud.alice.create("subnets", "lan", vpc="net", cidr="10.0.0.0/24")
    body: dict[str, Any] = {"name": "b", "spec": {"subnet": "lan", "ip": "10.0.0.3"}}
    await cloud.alice.fail("POST", "/nics", body, status=409, code="conflict")
    assert (await cloud.alice.create("nics", "c", subnet="lan"))["spec"]["ip"] == "10.0.0.4"
    await cloud.alice.end("DELETE", "/nics/c")
    await cloud.alice.end("DELETE", "/subnets/lan")
    await cloud.alice.end("DELETE", "/vpcs/net")
    await cloud.alice.fail("POST", "/vpcs", {"name": "new", "spec": {"vni": 77}}, status=409, code="conflict")
    await node.start()
    await cloud.until_gone(vpc["id"])
    assert cloud.rows("claim") == []
    await cloud.alice.create("vpcs", "new", vni=77)


async def test_a_group_deleted_while_it_is_applied_ends_its_operation(cloud: Cloud) -> None:
    node, _vm = await running(cloud)
    node.holding = True
    await cloud.alice.create("security-groups", "web")
    await cloud.alice.do("PATCH", "/nics/a-nic0", {"spec": {"security_groups": ["web"]}})
    await cloud.alice.do("PATCH", "/nics/a-nic0", {"spec": {"security_groups": []}})
    rule = {"direction": "inbound", "cidr": "0.0.0.0/0"}
    made = await cloud.alice.do("POST", "/security-groups/web/rules", rule)
    await cloud.alice.end("DELETE", "/security-groups/web")
    op = await cloud.alice.get(f"/operations/{made['operation']['id']}", wait=5)
    assert op["state"] in ("done", "cancelled")


async def test_events_tell_the_story_newest_first(cloud: Cloud) -> None:
    node, vm = await running(cloud)
    await cloud.alice.end("POST", "/vms/a/actions/stop")
    told = await cloud.alice.list("/events", resource="a")
    assert [event["message"] for event in told] == ["stopped", "running"]
    assert all(event["resource"] == {"kind": "vm", "id": vm["id"], "name": "a"} for event in told)
    assert await cloud.alice.list("/events", level="error") == []
    newest = told[0]["id"]
    waiting = asyncio.create_task(cloud.alice.list("/events", after=newest, wait=30))
    await cloud.alice.end("POST", "/vms/a/actions/start")
    assert [event["message"] for event in await waiting] == ["running"]
    assert await cloud.alice.list("/events", after=(await cloud.alice.list("/events"))[0]["id"], wait=0.02) == []
    page = await cloud.alice.get("/events", limit=1)
    older = await cloud.alice.get("/events", limit=1, cursor=page["next"])
    assert older["items"][0]["id"] < page["items"][0]["id"]
    await cloud.lose(node)
    await cloud.until(cloud.alice, "/vms/a", "unknown")
    assert await cloud.alice.list("/events", level="error") == []
    assert [e["resource"]["name"] for e in await cloud.admin.list("/events", level="error", all_accounts=True)] == [
        "n1"
    ]
