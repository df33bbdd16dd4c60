"""A VM on its way to another node: what each node is told, and who has it in the end."""

from __future__ import annotations

from typing import Any

import pytest

from scloud.controllers import reports
from scloud.model.desired import DesiredPort, DesiredVm
from scloud.model.migrations import MoveSeen
from scloud.model.observed import Observed
from support.cloud import Cloud
from support.node import ScriptedNode
from support.pools import make_pool

KIND = {"disk": "disk", "port": "nic"}


async def rig(cloud: Cloud) -> tuple[ScriptedNode, ScriptedNode, dict[str, Any]]:
    """A running VM on n1, whose disk is in a pool that n1 and n2 reach."""
    one = await cloud.node("n1")
    two = await cloud.node("n2")
    await cloud.image()
    await cloud.store.write(lambda tx: make_pool(tx, [one.id, two.id]))
    await cloud.admin.create("vpcs", "net")
    await cloud.admin.create("subnets", "lan", vpc="net", cidr="10.0.0.0/24")
    nics = [{"subnet": "lan"}]
    vm = await cloud.admin.create("vms", "a", image="micro", disk_type="standard", node="n1", nics=nics)
    return one, two, await cloud.until(cloud.admin, f"/vms/{vm['id']}", "running")


def told(node: ScriptedNode, vm: str) -> DesiredVm:
    item = node.objects[f"vm/{vm}"]
    assert isinstance(item, DesiredVm)
    return item


def seen(vm: str, state: str, number: int = 1, **more: Any) -> Observed:
    move = MoveSeen.model_validate({"number": number, "state": state, **more})
    return Observed(key=f"vm/{vm}", generation=1, state="running", settled=False, move=move)


def promised(cloud: Cloud, node: ScriptedNode) -> int:
    return sum(row["memory_mib"] for row in cloud.rows("node_usage", node=node.id))


async def begin(cloud: Cloud, two: ScriptedNode, vm: str) -> dict[str, Any]:
    """Migration begun; both nodes hold still and say what a test lets them say."""
    two.override[f"vm/{vm}"] = seen(vm, "ready", address="192.0.2.2:7")
    answer = await cloud.admin.do("POST", f"/vms/{vm}/actions/migrate", {"node": "n2"})
    return answer


async def copying(cloud: Cloud, one: ScriptedNode, two: ScriptedNode, vm: str) -> dict[str, Any]:
    one.override[f"vm/{vm}"] = seen(vm, "copying")
    answer = await begin(cloud, two, vm)
    await one.until(lambda: told(one, vm).move_out is not None)
    return answer


async def test_it_moves_with_all_that_is_its_own(cloud: Cloud) -> None:
    one, two, vm = await rig(cloud)
    id, memory = vm["id"], vm["spec"]["memory_mib"]
    answer = await copying(cloud, one, two, id)
    move = told(one, id).move_out
    assert move is not None and (move.address, move.target) == ("192.0.2.2:7", two.id)
    came = told(two, id).move_in
    assert came is not None and came.source == one.id
    ports = [item for node in (one, two) for item in node.objects.values() if isinstance(item, DesiredPort)]
    assert ports and all(port.on(one.id) and port.on(two.id) for port in ports)
    assert {port.second for port in ports} == {(two.id, "192.0.2.2")}
    assert (promised(cloud, one), promised(cloud, two)) == (memory, memory)
    del one.override[f"vm/{id}"], two.override[f"vm/{id}"]
    one.holding = True
    await one.say(seen(id, "left"))
    done = await cloud.admin.wait(answer)
    assert "n2" in done["message"]
    await one.until(lambda: told(one, id).power == "absent")
    await two.until(lambda: told(two, id).move_in is None)
    shown = await cloud.admin.get(f"/vms/{id}")
    assert shown["status"]["node"] == "n2" and shown["status"]["leaving"] == [one.id]
    assert shown["spec"]["node"] == two.id, "one that was asked onto a node alone is asked onto the new one"
    disk = (await cloud.admin.list("/disks"))[0]
    assert disk["status"]["node"] == "n2" and f"disk/{disk['id']}" in two.objects
    assert (promised(cloud, one), promised(cloud, two)) == (0, memory)
    await one.release()
    await one.until(lambda: f"vm/{id}" not in one.objects)
    assert not any(isinstance(item, DesiredPort) for item in one.objects.values())


async def test_one_that_breaks_off_stays(cloud: Cloud) -> None:
    one, two, vm = await rig(cloud)
    id, memory = vm["id"], vm["spec"]["memory_mib"]
    answer = await copying(cloud, one, two, id)
    for action in ("reboot", "stop"):
        await cloud.admin.fail("POST", f"/vms/{id}/actions/{action}", {}, status=409, code="conflict")
    del one.override[f"vm/{id}"], two.override[f"vm/{id}"]
    await one.say(seen(id, "stays", reason="the cable is cut"))
    failed = await cloud.admin.wait(answer, "failed")
    assert "the cable is cut" in failed["message"]
    await two.until(lambda: f"vm/{id}" not in two.objects)
    await one.until(lambda: told(one, id).move_out is None)
    shown = await cloud.admin.get(f"/vms/{id}")
    assert (shown["status"]["node"], shown["status"]["state"]) == ("n1", "running")
    assert (promised(cloud, one), promised(cloud, two)) == (memory, 0)


async def local(cloud: Cloud) -> tuple[ScriptedNode, ScriptedNode, str, str]:
    """(n1, n2, a running VM on n1, its disk in n1's own storage)."""
    one, two = await cloud.node("n1"), await cloud.node("n2")
    await cloud.image()
    vm = await cloud.admin.create("vms", "a", image="micro", node="n1")
    await cloud.until(cloud.admin, f"/vms/{vm['id']}", "running")
    (disk,) = await cloud.admin.list("/disks")
    return one, two, vm["id"], disk["id"]


def room(cloud: Cloud, node: ScriptedNode) -> int:
    return sum(row["disk_mib"] for row in cloud.rows("node_usage", node=node.id))


async def test_a_disk_of_its_nodes_own_storage_goes_with_it(cloud: Cloud) -> None:
    one, two, id, disk = await local(cloud)
    size = room(cloud, one)
    answer = await copying(cloud, one, two, id)
    out, came = told(one, id).move_out, told(two, id).move_in
    assert out is not None and out.copies == (disk,)
    assert came is not None and [(copy.disk, copy.size_mib) for copy in came.copies] == [(disk, size)]
    assert (room(cloud, one), room(cloud, two)) == (size, size)
    assert f"disk/{disk}" not in two.objects
    ask = {"name": "s", "spec": {"disk": disk}}
    problem = await cloud.admin.fail("POST", "/snapshots", ask, status=409, code="conflict")
    assert "on its way to another node" in problem["detail"]
    del one.override[f"vm/{id}"], two.override[f"vm/{id}"]
    one.holding = True
    await one.say(seen(id, "left"))
    await cloud.admin.wait(answer)
    await one.until(lambda: told(one, id).leftovers == (disk,) and told(one, id).power == "absent")
    await two.until(lambda: f"disk/{disk}" in two.objects)
    assert f"disk/{disk}" not in one.objects and told(two, id).leftovers == ()
    assert (room(cloud, one), room(cloud, two)) == (0, size)
    # Rid of the VM, but not of the disk's bytes: an agent says so that has not heard of these yet.
    await one.say(Observed(key=f"vm/{id}", generation=1, state="absent", settled=True))
    assert (await cloud.admin.get(f"/vms/{id}"))["status"]["leaving"] == [one.id]
    await one.release()
    await one.until(lambda: f"vm/{id}" not in one.objects)
    status = (await cloud.admin.get(f"/vms/{id}"))["status"]
    assert (status["leaving"], status["leftovers"]) == ([], {})


async def test_of_one_that_breaks_off_the_target_drops_the_copy(cloud: Cloud) -> None:
    one, two, id, disk = await local(cloud)
    size = room(cloud, one)
    answer = await copying(cloud, one, two, id)
    del one.override[f"vm/{id}"], two.override[f"vm/{id}"]
    two.holding = True
    await one.say(seen(id, "stays", reason="the cable is cut"))
    await cloud.admin.wait(answer, "failed")
    await two.until(lambda: told(two, id).leftovers == (disk,) and told(two, id).power == "absent")
    assert told(one, id).leftovers == () and f"disk/{disk}" in one.objects
    assert (room(cloud, one), room(cloud, two)) == (size, 0)
    await two.release()
    await two.until(lambda: f"vm/{id}" not in two.objects)


async def test_a_target_that_connects_anew_keeps_what_has_come(cloud: Cloud) -> None:
    """The manager has died meanwhile: the guest may run there already."""
    one, two, vm = await rig(cloud)
    await copying(cloud, one, two, vm["id"])
    evicted: list[Any] = []
    two.answers["evict"] = evicted.append
    await two.stop()
    await two.start()
    await two.until(lambda: told(two, vm["id"]).move_in is not None)
    assert not evicted


async def test_a_source_that_does_not_know_lets_the_target_decide(cloud: Cloud) -> None:
    one, two, vm = await rig(cloud)
    id = vm["id"]
    answer = await copying(cloud, one, two, id)
    await one.say(seen(id, "held", reason="the agent was restarted"))

    def asked() -> bool:
        move = told(two, id).move_in
        return move is not None and move.asked == 1

    await two.until(asked)
    assert (await cloud.admin.get(f"/vms/{id}"))["status"]["node"] == "n1"
    del one.override[f"vm/{id}"]
    await two.say(seen(id, "arrived", asked=1))
    await cloud.admin.wait(answer)
    assert (await cloud.admin.get(f"/vms/{id}"))["status"]["node"] == "n2"


async def test_cancelled_and_deleted_on_the_way(cloud: Cloud) -> None:
    one, two, vm = await rig(cloud)
    id = vm["id"]
    answer = await copying(cloud, one, two, id)
    await cloud.admin.do("POST", f"/vms/{id}/actions/migrate", {"cancel": True})

    def told_to_end() -> bool:
        move = told(one, id).move_out
        return move is not None and move.cancel

    await one.until(told_to_end)
    del one.override[f"vm/{id}"], two.override[f"vm/{id}"]
    await one.say(seen(id, "stays", reason="canceled by client"))
    await cloud.admin.wait(answer, "cancelled")
    await two.until(lambda: f"vm/{id}" not in two.objects)
    one.override[f"vm/{id}"] = seen(id, "copying", number=2)
    two.override[f"vm/{id}"] = seen(id, "ready", number=2, address="192.0.2.2:7")
    again = await cloud.admin.do("POST", f"/vms/{id}/actions/migrate", {"node": "n2"})
    await one.until(lambda: told(one, id).move_out is not None)
    del one.override[f"vm/{id}"], two.override[f"vm/{id}"]
    gone = await cloud.admin.do("DELETE", f"/vms/{id}")
    await one.until(told_to_end)
    await one.say(seen(id, "stays", number=2, reason="canceled by client"))
    await cloud.admin.wait(gone)
    await cloud.admin.wait(again, "cancelled")
    await cloud.until_gone(id)
    assert (promised(cloud, one), promised(cloud, two)) == (0, 0)
    assert not one.existing and not two.existing


async def test_one_that_is_deleted_while_nobody_knows_where_it_runs_keeps_its_disks(cloud: Cloud) -> None:
    """The target may have let it run by now, and has not said so: a disk that was free could be written by two."""
    one, two, vm = await rig(cloud)
    id = vm["id"]
    await cloud.admin.create("disks", "data", size_mib=64, type="standard")
    await cloud.admin.end("POST", "/disks/data/actions/attach", {"vm": id})
    other = await cloud.admin.create("vms", "other", image="micro", disk_type="standard", node="n1")
    await copying(cloud, one, two, id)
    gone = await cloud.admin.do("DELETE", f"/vms/{id}")
    assert "ended first" in gone["operation"]["message"]
    again = await cloud.admin.do("DELETE", f"/vms/{id}")
    assert again["operation"]["id"] == gone["operation"]["id"]
    problem = await cloud.admin.fail("POST", f"/vms/{id}/actions/start", {}, status=409, code="conflict")
    assert "is being deleted; its migration is ended first" in problem["detail"]
    await cloud.admin.fail("POST", f"/vms/{id}/actions/stop", {"force": True}, status=409, code="conflict")
    attach = {"vm": other["id"]}
    await cloud.admin.fail("POST", "/disks/data/actions/attach", attach, status=409, code="in_use")

    del one.override[f"vm/{id}"], two.override[f"vm/{id}"]
    two.holding = True  # it runs there, and is not ended yet
    await one.say(seen(id, "left"))
    await two.until(lambda: told(two, id).power == "absent")
    await cloud.admin.do("POST", "/disks/data/actions/attach", attach)
    disk = await cloud.admin.get("/disks/data")
    assert disk["status"]["node"] == "n2" and "n2 to let go" in disk["status"]["reason"]
    await two.release()
    await cloud.admin.wait(gone)
    await one.until(lambda: f"disk/{disk['id']}" in one.objects)


async def test_one_that_is_switched_off_on_the_way_is_off_where_it_has_come(cloud: Cloud) -> None:
    one, two, vm = await rig(cloud)
    id = vm["id"]
    moving = await copying(cloud, one, two, id)
    stopped = await cloud.admin.do("POST", f"/vms/{id}/actions/stop", {"force": True})
    # What was said before it was told to move says nothing of whether it is off.
    await one.say(Observed(key=f"vm/{id}", generation=vm["generation"], state="running", settled=True))
    assert (await cloud.admin.get(f"/operations/{stopped['operation']['id']}"))["state"] == "running"
    del one.override[f"vm/{id}"], two.override[f"vm/{id}"]
    await one.say(seen(id, "left"))
    await cloud.admin.wait(moving)
    await cloud.admin.wait(stopped)
    shown = await cloud.admin.get(f"/vms/{id}")
    assert (shown["status"]["state"], shown["status"]["node"], shown["spec"]["power"]) == ("stopped", "n2", "off")


@pytest.mark.parametrize("first", [0, 1])
async def test_two_nodes_that_say_at_once_that_it_is_gone_are_both_heard(cloud: Cloud, first: int) -> None:
    """Their reports are taken into the database together."""
    one, two, vm = await rig(cloud)
    id = vm["id"]
    await copying(cloud, one, two, id)
    gone = await cloud.admin.do("DELETE", f"/vms/{id}")
    del one.override[f"vm/{id}"], two.override[f"vm/{id}"]
    one.holding = two.holding = True
    await one.say(seen(id, "stays"))
    await one.until(lambda: told(one, id).power == "absent")
    await two.until(lambda: told(two, id).power == "absent")
    disk, nic = (f"{kind}/{row['id']}" for kind in ("disk", "port") for row in cloud.rows("resource", kind=KIND[kind]))
    absent = {key: Observed(key=key, generation=99, state="absent", settled=True) for key in (f"vm/{id}", disk, nic)}
    said = [(one.id, tuple(absent.values())), (two.id, (absent[f"vm/{id}"],))]
    order = dict(said if first == 0 else reversed(said))
    await cloud.store.write(lambda tx: reports.take_in(tx, order))
    assert (await cloud.admin.get(f"/vms/{id}"))["status"]["leaving"] == []
    await two.release()  # and has no tap of it
    await cloud.admin.wait(gone)
    await cloud.until_gone(id)


async def test_a_deletion_that_waits_for_a_silent_node_says_so_in_time(cloud: Cloud) -> None:
    one, two, vm = await rig(cloud)
    id = vm["id"]
    await copying(cloud, one, two, id)
    gone = await cloud.admin.do("DELETE", f"/vms/{id}")
    cloud.clock.advance(100_000)
    failed = await cloud.admin.wait(gone, "failed")
    assert "a node does not say whether it has it" in failed["message"]
    assert (await cloud.admin.get(f"/vms/{id}"))["status"]["migration"] is not None
    del one.override[f"vm/{id}"], two.override[f"vm/{id}"]
    await one.say(seen(id, "stays"))
    await cloud.until_gone(id)


async def test_it_has_the_time_that_its_bytes_take(cloud: Cloud) -> None:
    one, two, _ = await rig(cloud)
    large = await cloud.admin.create("vms", "large", image="micro", node="n1", memory_mib=1024)
    id = large["id"]
    await cloud.until(cloud.admin, f"/vms/{id}", "running")
    two.override[f"vm/{id}"] = seen(id, "ready", address="192.0.2.2:7")
    one.override[f"vm/{id}"] = seen(id, "copying")
    ask = {"node": "n2", "bandwidth_mib_s": 1}
    op = (await cloud.admin.do("POST", f"/vms/{id}/actions/migrate", ask))["operation"]
    assert op["deadline_at"] - op["created_at"] == 3600 + 1024 + 10, "an hour, its memory and the disk that is copied"


async def test_a_switch_that_does_not_follow_is_named(cloud: Cloud) -> None:
    one, two, vm = await rig(cloud)
    three = await cloud.node("n3")
    nics = [{"subnet": "lan"}]
    other = await cloud.admin.create("vms", "other", image="micro", node="n3", nics=nics)
    await cloud.until(cloud.admin, f"/vms/{other['id']}", "running")
    await cloud.lose(three)
    await copying(cloud, one, two, vm["id"])
    events = await cloud.admin.list("/events", resource=vm["id"])
    told = [event["message"] for event in events if "not every switch follows" in event["message"]]
    assert len(told) == 1 and "VMs on n3 reach it at node n2 only when the agents there are back" in told[0]


async def unsure(cloud: Cloud) -> tuple[ScriptedNode, ScriptedNode, str, dict[str, Any]]:
    """A VM with a disk in its node's own storage, whose migration broke off while n2 is away."""
    one, two, _ = await rig(cloud)
    made = await cloud.admin.create("vms", "own", image="micro", node="n1")
    id = str(made["id"])
    await cloud.until(cloud.admin, f"/vms/{id}", "running")
    answer = await copying(cloud, one, two, id)
    await cloud.lose(two)
    await one.say(seen(id, "gone", reason="the host was without power"))
    await cloud.until(cloud.admin, f"/vms/{id}", "unknown")
    return one, two, id, answer


async def test_where_only_a_silent_target_knows_the_vm_is_not_said_to_run(cloud: Cloud) -> None:
    one, _, id, answer = await unsure(cloud)
    status = (await cloud.admin.get(f"/vms/{id}"))["status"]
    assert "whether it has come to node n2 only that node can say" in status["reason"]
    assert told(one, id).move_out is not None, "its disks at n1 are kept"
    cloud.clock.advance(3700)

    async def cancelled() -> bool:
        return bool((await cloud.admin.get(f"/vms/{id}"))["status"]["migration"]["cancel"])

    await cloud.eventually(cancelled)
    assert (await cloud.admin.get(f"/operations/{answer['operation']['id']}"))["state"] == "running"
    cloud.clock.advance(100)
    failed = await cloud.admin.wait(answer, "failed")
    assert "did not end in its time" in failed["message"]
    assert (await cloud.admin.get(f"/vms/{id}"))["status"]["migration"] is not None


async def test_a_silent_target_that_is_removed_for_ever_leaves_the_source_what_it_has(cloud: Cloud) -> None:
    one, _, id, answer = await unsure(cloud)
    await cloud.admin.end("DELETE", "/nodes/n2?force=true")
    failed = await cloud.admin.wait(answer, "failed")
    assert "node n2 was lost; it stays where it was" in failed["message"]
    await one.until(lambda: told(one, id).move_out is None and told(one, id).power == "on")
    one.override.pop(f"vm/{id}")
    await one.release()
    assert (await cloud.until(cloud.admin, f"/vms/{id}", "running"))["status"]["node"] == "n1"


@pytest.mark.parametrize(("arrived", "words"), [("complete", ""), ("ready", "rebuild it on another node")])
async def test_a_source_that_is_removed_for_ever_waits_for_the_target_to_say_whether_it_has_come(
    cloud: Cloud, arrived: str, words: str
) -> None:
    """It may have, with the only copy of its disk that is left."""
    one, two, id, disk = await local(cloud)
    await copying(cloud, one, two, id)
    await cloud.lose(one)
    asked = await cloud.admin.do("DELETE", "/nodes/n1?powered_off=true")

    async def waits() -> bool:
        op = await cloud.admin.get(f"/operations/{asked['operation']['id']}")
        assert op["state"] == "running", op
        return "waiting for node n2 to say whether vm 'a' has come to it" in op["message"]

    await cloud.eventually(waits)
    await two.until(lambda: (move := told(two, id).move_in) is not None and move.asked == 1)
    await two.say(seen(id, arrived, asked=1, **({"address": "192.0.2.2:7"} if arrived == "ready" else {})))
    await cloud.admin.wait(asked)
    vm = (await cloud.admin.get("/vms/a"))["status"]
    assert vm["node"] == ("n2" if arrived == "complete" else None) and words in vm["reason"]
    assert vm["migration"] is None
    lost = (await cloud.admin.get(f"/disks/{disk}"))["status"]["lost"]
    assert lost is (arrived != "complete")


async def test_a_target_that_is_removed_before_the_source_has_said_how_it_ended(cloud: Cloud) -> None:
    one, two, vm = await rig(cloud)
    answer = await copying(cloud, one, two, vm["id"])
    await cloud.lose(two)
    await cloud.admin.end("DELETE", "/nodes/n2?force=true")
    one.override.pop(f"vm/{vm['id']}")
    await one.say(seen(vm["id"], "stays", reason="the connection broke off"))
    assert "it stays where it was" in (await cloud.admin.wait(answer, "failed"))["message"]
    await one.until(lambda: told(one, vm["id"]).move_out is None)


async def test_a_nic_that_is_let_go_of_on_the_way_ends_on_both_nodes(cloud: Cloud) -> None:
    """It outlives its VM, of which the target, too, has made a tap."""
    one, two, vm = await rig(cloud)
    nic = await cloud.admin.create("nics", "kept", subnet="lan")
    await cloud.admin.end("POST", "/nics/kept/actions/attach", {"vm": vm["id"]})
    await copying(cloud, one, two, vm["id"])
    key = f"port/{nic['id']}"
    two.override[key] = Observed(key=key, generation=9, state="working", settled=False, reason="its tap stays")
    del one.override[f"vm/{vm['id']}"], two.override[f"vm/{vm['id']}"]
    gone = await cloud.admin.do("DELETE", f"/vms/{vm['id']}")
    await one.say(seen(vm["id"], "stays"))
    await cloud.admin.wait(gone)
    await cloud.until_gone(vm["id"])
    item = two.objects[key]
    assert isinstance(item, DesiredPort) and item.absent
    assert (await cloud.admin.get("/nics/kept"))["status"]["state"] == "updating"
    del two.override[key]
    await two.say(Observed(key=key, generation=item.generation, state="absent", settled=True))
    await cloud.until(cloud.admin, "/nics/kept", "ready")
    assert key not in one.objects and key not in two.objects


async def test_what_cannot_move_says_why(cloud: Cloud) -> None:
    one, _two, vm = await rig(cloud)
    problem = await cloud.admin.fail(
        "POST", f"/vms/{vm['id']}/actions/migrate", {"node": "n1"}, status=409, code="conflict"
    )
    assert "runs there already" in problem["detail"]
    local = await cloud.admin.create("vms", "b", image="micro", node="n1")
    await cloud.until(cloud.admin, f"/vms/{local['id']}", "running")
    problem = await cloud.admin.fail("POST", "/vms/b/actions/migrate", {}, status=409, code="conflict")
    assert "was asked onto node n1 alone" in problem["detail"] and "vm migrate b --to NODE" in problem["detail"]
    post_copy = {"node": "n2", "stuck": "post-copy"}
    problem = await cloud.admin.fail("POST", "/vms/b/actions/migrate", post_copy, status=409, code="conflict")
    assert "its node's own storage, and is copied" in problem["detail"]
    await cloud.admin.end("POST", "/snapshots", {"name": "kept", "spec": {"disk": "b-system"}})
    problem = await cloud.admin.fail("POST", "/vms/b/actions/migrate", {"node": "n2"}, status=409, code="conflict")
    assert "has snapshots, which cannot go with it: kept" in problem["detail"]
    await cloud.lose(one)
