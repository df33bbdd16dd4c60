"""Virtual machines through the API, with nodes that obey."""

from __future__ import annotations

from typing import Any

import pytest

from scloud.model.desired import DesiredDisk, DesiredVm
from scloud.model.observed import Observed
from support.cloud import Cloud
from support.node import ScriptedNode


async def lan(cloud: Cloud, cidr: str = "10.0.0.0/24") -> None:
    await cloud.image()
    await cloud.alice.create("vpcs", "net")
    await cloud.alice.create("subnets", "lan", vpc="net", cidr=cidr)


def told(node: ScriptedNode, vm: dict[str, Any]) -> DesiredVm:
    item = node.objects[f"vm/{vm['id']}"]
    assert isinstance(item, DesiredVm)
    return item


async def test_a_vm_runs_and_goes(cloud: Cloud) -> None:
    node = await cloud.node()
    await lan(cloud)
    vm = await cloud.alice.create("vms", "web", image="micro", nics=[{"subnet": "lan"}], user_data="#!/bin/sh\n")
    assert vm["status"]["state"] == "running"
    assert vm["status"]["node"] == "n1"
    assert vm["status"]["addresses"] == ["10.0.0.3"]
    assert node.existing[f"vm/{vm['id']}"] == "running"
    assert told(node, vm).user_data == "#!/bin/sh\n"
    [disk] = await cloud.alice.list("/disks", vm="web")
    assert (disk["spec"]["system"], disk["spec"]["size_mib"], disk["status"]["state"]) == (True, 10, "ready")
    assert cloud.rows("node_usage") == [{"node": node.id, "cpus": 1, "memory_mib": 256, "disk_mib": 10}]
    await cloud.alice.end("DELETE", "/vms/web")
    await cloud.alice.fail("GET", "/vms/web", status=404, code="not_found")
    assert node.existing == {}
    assert [row["scope"] for row in cloud.rows("claim")] == ["vni"]
    assert cloud.rows("node_usage") == [{"node": node.id, "cpus": 0, "memory_mib": 0, "disk_mib": 0}]


async def test_many_at_once_are_all_or_none(cloud: Cloud) -> None:
    await cloud.node()
    await lan(cloud, "10.0.0.0/28")  # twelve free addresses
    body = {"name": "web", "count": 5, "spec": {"image": "micro", "nics": [{"subnet": "lan"}]}}
    made = await cloud.alice.do("POST", "/vms", body)
    assert [row["name"] for row in made["resources"]] == [f"web-{number}" for number in range(1, 6)]
    for op in made["operations"]:
        await cloud.alice.wait(op)
    assert {row["status"]["state"] for row in await cloud.alice.list("/vms")} == {"running"}
    before = cloud.dump()
    await cloud.alice.fail("POST", "/vms", {**body, "name": "more", "count": 8}, status=409, code="no_capacity")
    await cloud.alice.fail("POST", "/vms", {**body, "count": 2}, status=409, code="conflict")
    await cloud.alice.fail("POST", "/vms", {**body, "name": "a" * 60}, status=422, code="invalid")
    for spec in ({"nics": [{"subnet": "lan", "ip": "10.0.0.9"}]}, {"disks": ["d"]}, {"nics": [{"nic": "n"}]}):
        broken = {"name": "x", "count": 2, "spec": {"image": "micro", **spec}}
        problem = await cloud.alice.fail("POST", "/vms", broken, status=422, code="invalid")
        assert problem["fields"][0]["field"] == "count"
    assert cloud.dump() == before


async def test_a_dry_run_says_where_and_why_not_elsewhere(cloud: Cloud) -> None:
    await cloud.node("n1")
    await cloud.node("n2", memory_mib=512)
    await cloud.node("n3")
    await cloud.node("n4", connect=False)
    await cloud.image()
    await cloud.admin.end("POST", "/nodes/n3/actions/cordon")
    before = cloud.dump()
    body = {"name": "x", "spec": {"image": "micro", "memory_mib": 1024}}
    answer = await cloud.alice.ask("POST", "/vms", json=body, params={"dry_run": "true"})
    assert answer.status_code == 200
    plan = answer.json()
    assert plan["node"] == "n1"
    reasons = {item["node"]: item["reasons"] for item in plan["candidates"]}
    assert reasons["n1"] == []
    assert reasons["n2"] == ["has too little memory left (512 MiB, 1024 asked for)"]
    assert "cordoned" in reasons["n3"][0] and "joining" in reasons["n4"][0]
    assert cloud.dump() == before
    await cloud.image("arm", architecture="aarch64")
    body["spec"]["image"] = "arm"  # type: ignore[index]
    answer = await cloud.alice.ask("POST", "/vms", json=body, params={"dry_run": "true"})
    assert answer.json()["node"] is None


async def test_placement_groups_hard_and_soft(cloud: Cloud) -> None:
    for name in ("n1", "n2"):
        await cloud.node(name)
    await cloud.image()
    await cloud.alice.create("placement-groups", "hard", policy="hard")
    await cloud.alice.create("placement-groups", "soft", policy="soft")
    for group in ("hard", "soft"):
        body = {"name": group, "count": 2, "spec": {"image": "micro", "placement_group": group}}
        made = await cloud.alice.do("POST", "/vms", body)
        for op in made["operations"]:
            await cloud.alice.wait(op)
        nodes = [(await cloud.alice.get(f"/vms/{group}-{number}"))["status"]["node"] for number in (1, 2)]
        assert sorted(nodes) == ["n1", "n2"]
    spec = {"image": "micro", "placement_group": "soft"}
    await cloud.alice.end("POST", "/vms", {"name": "third", "spec": spec})
    spec = {"image": "micro", "placement_group": "hard"}
    op = await cloud.alice.end("POST", "/vms", {"name": "no", "spec": spec}, state="failed")
    assert op["error"]["code"] == "no_capacity"
    assert "hard placement group (2 of 2 nodes)" in op["error"]["message"]


async def test_cpus_are_overcommitted_as_the_cluster_says(cloud: Cloud) -> None:
    await cloud.node(cpus=1)
    await cloud.image()
    await cloud.alice.create("vms", "a", image="micro", cpus=4)
    op = await cloud.alice.end("POST", "/vms", {"name": "b", "spec": {"image": "micro"}}, state="failed")
    assert "too few CPUs left (0 of 4 with overcommit, 1 asked for)" in op["error"]["message"]
    await cloud.admin.end("PATCH", "/clusters/default", {"spec": {"cpu_overcommit": 5}})
    await cloud.alice.end("POST", "/vms/b/actions/start")
    assert (await cloud.alice.get("/vms/b"))["status"]["state"] == "running"


async def test_no_room_is_an_error_with_reasons_and_a_way_out(cloud: Cloud) -> None:
    await cloud.node("n1", memory_mib=512)
    await lan(cloud)
    spec = {"image": "micro", "memory_mib": 1024, "nics": [{"subnet": "lan"}]}
    made = await cloud.alice.do("POST", "/vms", {"name": "big", "spec": spec})
    op = await cloud.alice.wait(made, "failed")
    assert op["error"] == {"code": "no_capacity", "message": op["message"]}
    vm = await cloud.alice.get("/vms/big")
    assert vm["status"]["state"] == "error"
    assert vm["status"]["reason"].startswith("no node can take it: node n1: has too little memory left (512 MiB")
    assert vm["status"]["addresses"] == ["10.0.0.3"]
    for kind in ("disks", "nics"):
        assert [row["status"]["state"] for row in await cloud.alice.list(f"/{kind}")] == ["ready"]
    await cloud.alice.end("POST", "/vms/big/actions/start", state="failed")
    await cloud.node("n2", memory_mib=2048)
    await cloud.alice.end("POST", "/vms/big/actions/start")
    assert (await cloud.alice.get("/vms/big"))["status"]["node"] == "n2"
    made = await cloud.alice.do("POST", "/vms", {"name": "huge", "spec": {**spec, "memory_mib": 99999}})
    await cloud.alice.wait(made, "failed")
    await cloud.alice.end("DELETE", "/vms/huge")
    assert [row["name"] for row in await cloud.alice.list("/vms")] == ["big"]
    assert len(await cloud.alice.list("/nics")) == 1 and len(await cloud.alice.list("/disks")) == 1


async def test_stop_start_and_reboot_count_requests(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    vm = await cloud.alice.create("vms", "a", image="micro")
    assert (await cloud.alice.end("POST", "/vms/a/actions/start"))["message"] == "it is running already"
    await cloud.alice.end("POST", "/vms/a/actions/reboot")
    assert (told(node, vm).starts, told(node, vm).reboots) == (1, 1)
    await cloud.alice.end("POST", "/vms/a/actions/stop", {"force": True})
    assert (told(node, vm).power, told(node, vm).force_stop) == ("off", True)
    assert (await cloud.alice.get("/vms/a"))["status"]["state"] == "stopped"
    assert (await cloud.alice.end("POST", "/vms/a/actions/stop"))["message"] == "it is stopped already"
    await cloud.alice.fail("POST", "/vms/a/actions/reboot", status=409, code="conflict")
    await cloud.alice.end("POST", "/vms/a/actions/start")
    assert (told(node, vm).power, told(node, vm).starts, told(node, vm).force_stop) == ("on", 2, False)


async def test_a_vm_made_switched_off(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    vm = await cloud.alice.create("vms", "a", image="micro", power="off")
    assert vm["status"]["state"] == "stopped" and told(node, vm).power == "off"


async def test_a_vm_without_a_node_is_stopped_at_once(cloud: Cloud) -> None:
    await cloud.image()
    await cloud.alice.end("POST", "/vms", {"name": "a", "spec": {"image": "micro"}}, state="failed")
    await cloud.alice.end("POST", "/vms/a/actions/stop")
    assert (await cloud.alice.get("/vms/a"))["status"]["state"] == "stopped"
    await cloud.node()
    await cloud.alice.end("POST", "/vms/a/actions/start")


async def test_resize_stays_within_the_node(cloud: Cloud) -> None:
    node = await cloud.node(memory_mib=1024)
    await cloud.image()
    vm = await cloud.alice.create("vms", "a", image="micro")
    await cloud.alice.end("POST", "/vms/a/actions/resize", {"cpus": 2, "memory_mib": 512})
    vm = await cloud.alice.get("/vms/a")
    assert (vm["status"]["cpus"], vm["status"]["memory_mib"], vm["spec"]["cpus"]) == (2, 512, 2)
    assert cloud.rows("node_usage")[0]["memory_mib"] == 512
    before = cloud.dump()
    body = {"memory_mib": 2048}
    problem = await cloud.alice.fail("POST", "/vms/a/actions/resize", body, status=409, code="no_capacity")
    assert "n1" in problem["detail"]
    await cloud.alice.fail("POST", "/vms/a/actions/resize", {}, status=422, code="invalid")
    await cloud.alice.fail("POST", "/vms/a/actions/resize", {"cpus": 0}, status=422, code="invalid")
    assert cloud.dump() == before
    await cloud.alice.end("POST", "/vms/a/actions/resize", {"memory_mib": 128})
    assert cloud.rows("node_usage")[0] == {"node": node.id, "cpus": 2, "memory_mib": 128, "disk_mib": 10}


async def test_rebuild_makes_the_system_disk_anew(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    other = await cloud.image("other")
    await cloud.image("large", size_mib=20)
    vm = await cloud.alice.create("vms", "a", image="micro")
    [disk] = await cloud.alice.list("/disks")
    await cloud.alice.end("POST", "/vms/a/actions/stop")
    await cloud.alice.end("POST", "/vms/a/actions/rebuild")
    item = node.objects[f"disk/{disk['id']}"]
    assert isinstance(item, DesiredDisk) and item.incarnation == 1
    assert told(node, vm).power == "on"
    await cloud.alice.end("POST", "/vms/a/actions/rebuild", {"image": "other"})
    item = node.objects[f"disk/{disk['id']}"]
    assert isinstance(item, DesiredDisk) and (item.incarnation, item.image) == (2, other)
    await cloud.admin.end("DELETE", "/images/micro")
    await cloud.alice.fail("POST", "/vms/a/actions/rebuild", {"image": "large"}, status=422, code="invalid")
    await cloud.alice.fail("POST", "/vms/a/actions/rebuild", {"image": "micro"}, status=422, code="invalid")


async def test_a_rename_reaches_the_guests_name(cloud: Cloud) -> None:
    node = await cloud.node()
    await lan(cloud)
    vm = await cloud.alice.create("vms", "a", image="micro", nics=[{"subnet": "lan"}])
    await cloud.alice.end("PATCH", "/vms/a", {"name": "b"})

    async def heard() -> bool:
        names = [item.hostname for item in node.objects.values() if item.kind == "port"]
        return told(node, vm).name == "b" and names == ["b"]

    await cloud.eventually(heard)


async def test_a_guest_that_powers_itself_off_stays_off(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    vm = await cloud.alice.create("vms", "a", image="micro")
    key = f"vm/{vm['id']}"
    off = Observed(key=key, generation=vm["generation"], state="stopped", settled=True, guest_stopped=True)
    await node.say(off)
    vm = await cloud.until(cloud.alice, "/vms/a", "stopped")
    assert vm["spec"]["power"] == "off"
    assert "powered itself off" in (await cloud.alice.list("/events", resource="a"))[1]["message"]


async def test_an_error_of_the_node_is_the_operations_and_the_vms(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    node.holding = True
    made = await cloud.alice.do("POST", "/vms", {"name": "a", "spec": {"image": "micro"}})
    key = f"vm/{made['resource']['id']}"
    await cloud.until(cloud.alice, "/vms/a", "creating")
    await node.say(Observed(key=key, generation=1, state="working", settled=False, reason="booting"))

    async def explained() -> bool:
        return bool((await cloud.alice.get("/vms/a"))["status"]["reason"] == "booting")

    await cloud.eventually(explained)
    await node.say(Observed(key=key, generation=1, state="error", settled=True, reason="QEMU died; see the log"))
    op = await cloud.alice.wait(made, "failed")
    assert op["error"] == {"code": "engine", "message": "QEMU died; see the log"}
    assert (await cloud.alice.get("/vms/a"))["status"]["reason"] == "QEMU died; see the log"
    started = await cloud.alice.do("POST", "/vms/a/actions/start")
    await node.say(Observed(key=key, generation=1, state="error", settled=True, reason="QEMU died; see the log"))
    await node.say(Observed(key=f"vm/nothing-{key[-4:]}", generation=1, state="ready", settled=True))
    assert (await cloud.alice.get("/vms/a"))["status"]["state"] == "starting"
    await node.release()
    await cloud.alice.wait(started)
    assert (await cloud.alice.get("/vms/a"))["status"]["state"] == "running"


async def test_references_of_a_vm_are_checked_one_by_one(cloud: Cloud) -> None:
    await cloud.node()
    await lan(cloud)
    await cloud.image("mine", account=cloud.admin.account)
    good: dict[str, Any] = {"image": "micro", "nics": [{"subnet": "lan"}]}
    before = cloud.dump()
    for change, field in (
        ({"image": "none"}, "spec.image"),
        ({"image": "mine"}, "spec.image"),
        ({"disk_mib": 9}, "spec.disk_mib"),
        ({"keypairs": ["none"]}, "spec.keypairs"),
        ({"placement_group": "none"}, "spec.placement_group"),
        ({"node": "none"}, "spec.node"),
        ({"disks": ["none"]}, "spec.disks"),
        ({"nics": [{"subnet": "none"}]}, "spec.nics.0.subnet"),
        ({"nics": [{"subnet": "lan"}, {"nic": "none"}]}, "spec.nics.1.nic"),
        ({"nics": [{"subnet": "lan", "security_groups": ["none"]}]}, "spec.nics.0.security_groups"),
        ({"nics": [{}]}, "spec.nics.0"),
        ({"user_data": "a\0b"}, "spec.user_data"),
        ({"user_data": "x" * 65537}, "spec.user_data"),
        ({"restart_limit": -1}, "spec.restart_limit"),
    ):
        body = {"name": "x", "spec": {**good, **change}}
        problem = await cloud.alice.fail("POST", "/vms", body, status=422, code="invalid")
        assert problem["fields"][0]["field"] == field, change
    assert cloud.dump() == before


async def test_lists_by_node_and_state(cloud: Cloud) -> None:
    for name in ("n1", "n2"):
        await cloud.node(name)
    await cloud.image()
    for vm, node in (("a", "n1"), ("b", "n2")):
        await cloud.alice.create("vms", vm, image="micro", node=node)
    await cloud.alice.end("POST", "/vms/b/actions/stop")
    assert [row["name"] for row in await cloud.alice.list("/vms", state="stopped")] == ["b"]
    await cloud.alice.fail("GET", "/vms", params={"node": "n1"}, status=403, code="forbidden")
    assert [row["name"] for row in await cloud.admin.list("/vms", node="n1", all_accounts=True)] == ["a"]
    await cloud.alice.fail("GET", "/vms", params={"state": "odd"}, status=422, code="invalid")


async def test_log_and_figures_come_from_the_node(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    vm = await cloud.alice.create("vms", "a", image="micro")
    answer = await cloud.alice.ask("GET", "/vms/a/log", params={"bytes": 5})
    assert answer.text == f"log of {vm['id']}\n"[-5:] and answer.headers["content-type"].startswith("text/plain")
    assert (await cloud.alice.get("/vms/a/figures"))["cpu_seconds"] == 1.5
    await cloud.alice.end("POST", "/vms/a/actions/stop")
    await cloud.alice.fail("GET", "/vms/a/figures", status=409, code="conflict")
    await node.stop()
    await cloud.until(cloud.admin, "/nodes/n1", "down")
    problem = await cloud.alice.fail("GET", "/vms/a/log", status=503, code="unavailable")
    assert "not connected" in problem["detail"]
    await cloud.alice.end(
        "POST", "/vms", {"name": "b", "spec": {"image": "micro", "memory_mib": 99999}}, state="failed"
    )
    await cloud.alice.fail("GET", "/vms/b/log", status=409, code="conflict")


@pytest.mark.parametrize("action", ["start", "stop", "reboot", "rebuild"])
async def test_nothing_is_asked_of_a_vm_that_leaves(cloud: Cloud, action: str) -> None:
    node = await cloud.node()
    await cloud.image()
    await cloud.alice.create("vms", "a", image="micro")
    node.holding = True
    first = await cloud.alice.do("DELETE", "/vms/a")
    again = await cloud.alice.do("DELETE", "/vms/a")
    assert again["operation"]["id"] == first["operation"]["id"]
    await cloud.alice.fail("POST", f"/vms/a/actions/{action}", status=409, code="conflict")
    await node.release()
    await cloud.alice.wait(first)
