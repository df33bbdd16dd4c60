"""Nodes: joining, connections, epochs, full synchronisation, loss and removal; a manager that is replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from scloud.controllers import placement
from scloud.model.base import Value
from scloud.model.desired import DesiredVm
from scloud.model.observed import NodeLoad, Observed
from scloud.model.wire import (
    CaAnswer,
    CaRequest,
    Enroll,
    Enrolled,
    Refused,
    ca_answer,
    enroll_answer,
    welcome_answer,
)
from scloud.store import nodes, operations
from support.cloud import QUICK, Cloud
from support.node import ScriptedNode
from support.pools import make_pool


async def enrol(cloud: Cloud, node: str, secret: str) -> Enrolled | Refused:
    channel = await cloud.listener.dial("")
    await channel.send(CaRequest())
    assert isinstance(await channel.receive(ca_answer), CaAnswer)
    await channel.send(Enroll(node=node, secret=secret, csr="csr"))
    return await channel.receive(enroll_answer)


async def test_a_join_token_is_good_once_for_its_node(cloud: Cloud) -> None:
    made = await cloud.admin.do("POST", "/nodes", {"name": "n1"})
    other = await cloud.admin.do("POST", "/nodes", {"name": "n2"})
    id, secret, pin = made["join"]["token"].split(".")
    assert id == made["resource"]["id"] and pin == "f" * 64
    assert made["join"]["command"].endswith(f"--manager cloud:7781 --token {made['join']['token']}")
    assert made["resource"]["status"]["state"] == "joining"
    assert secret not in repr(cloud.rows("token"))
    for node, wrong in (
        (id, "wrong"),
        (other["resource"]["id"], secret),
        (id, cloud.admin.secret),
        ("nod-none", secret),
    ):
        answer = await enrol(cloud, node, wrong)
        assert isinstance(answer, Refused) and answer.error[0] == "unauthenticated"
    assert await enrol(cloud, id, secret) == Enrolled(certificate=f"certificate of {id} for csr", ca="test ca")
    again = await enrol(cloud, id, secret)
    assert isinstance(again, Refused) and "ask for a new one" in again.error[1]
    fresh = (await cloud.admin.do("POST", "/nodes/n1/actions/join-token"))["join"]["token"].split(".")[1]
    assert isinstance(await enrol(cloud, id, fresh), Enrolled)


async def test_a_join_token_ends_after_a_day(cloud: Cloud) -> None:
    made = await cloud.admin.do("POST", "/nodes", {"name": "n1"})
    id, secret, _pin = made["join"]["token"].split(".")
    cloud.clock.advance(86401)
    assert isinstance(await enrol(cloud, id, secret), Refused)
    await cloud.admin.wait(made, "failed")
    await cloud.admin.end("DELETE", "/nodes/n1")


async def test_a_node_that_joins_tells_what_it_is(cloud: Cloud) -> None:
    node = await cloud.node(cpus=4, memory_mib=1024, disk_mib=2048)
    shown = await cloud.admin.get("/nodes/n1")
    assert shown["status"]["state"] == "ready"
    assert shown["status"]["capacity"] == {"cpus": 4, "memory_mib": 1024, "disk_mib": 2048}
    assert shown["status"]["tunnel_ip"] == node.tunnel_ip
    assert [op["action"] for op in await cloud.admin.list("/operations", state="done")] == ["node.create"]


async def test_strangers_and_unknown_nodes_are_refused(cloud: Cloud) -> None:
    await cloud.node()
    for peer, code in (("", "unauthenticated"), ("nod-none", "forbidden"), (cloud.alice.account, "forbidden")):
        node = ScriptedNode(peer, "x", cloud.listener)
        with pytest.raises(ConnectionRefusedError):
            await node.start()
        assert node.refusals[0].error[0] == code


class Rubbish(Value):
    t: str = "rubbish"


async def test_rubbish_ends_a_connection_and_nothing_else(cloud: Cloud) -> None:
    node, other = await cloud.node("n1"), await cloud.node("n2")
    channel = node._channel
    assert channel is not None
    await channel.send(Rubbish())

    async def gone() -> bool:
        return node.id not in cloud.manager.sessions

    await cloud.eventually(gone)
    assert other.id in cloud.manager.sessions
    stranger = await cloud.listener.dial("")
    await stranger.send(Rubbish())
    answer = await stranger.receive(welcome_answer)
    assert isinstance(answer, Refused) and answer.error[0] == "invalid"
    await node.stop()
    await node.start()
    assert node.id in cloud.manager.sessions


async def test_a_manager_does_not_speak_to_a_node_that_knows_a_later_one(cloud: Cloud) -> None:
    node = await cloud.node()
    await node.stop()
    node.epoch = cloud.epoch + 1
    with pytest.raises(ConnectionRefusedError, match="newer leader"):
        await node.start()
    await cloud.restart_manager()
    await node.start()
    assert node.welcomes[-1].epoch == cloud.epoch


class BusyDatabase:
    """The manager's `report`, which lasts until it is let through."""

    def __init__(self, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.through = asyncio.Event(), asyncio.Event()
        self.taken: list[str] = []
        self._report = cloud.manager.report
        monkeypatch.setattr(cloud.manager, "report", self)

    async def __call__(self, node: str, items: Iterable[Observed]) -> None:
        items = tuple(items)
        self.entered.set()
        await self.through.wait()
        await self._report(node, items)
        self.taken += [item.key for item in items]


def observed(number: int) -> Observed:
    return Observed(key=f"vm/vm-{number}", generation=1, state="running", settled=True)


async def test_heartbeats_are_heard_while_a_report_waits_for_the_database(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await cloud.node()
    session = cloud.manager.sessions.get(node.id)
    assert session is not None
    busy = BusyDatabase(cloud, monkeypatch)
    await node.say(observed(1))
    await busy.entered.wait()
    node.load = NodeLoad(cpu=0.75)

    async def heard() -> bool:
        return session.load is not None and session.load.cpu == 0.75

    await cloud.eventually(heard)
    assert not busy.taken
    busy.through.set()


async def test_what_a_node_said_before_it_left_counts(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    node = await cloud.node()
    await node.until(lambda: any(message.full for message in node.messages))
    busy = BusyDatabase(cloud, monkeypatch)
    for number in range(3):
        await node.say(observed(number))
    await busy.entered.wait()
    await node.stop()
    busy.through.set()

    async def gone() -> bool:
        return node.id not in cloud.manager.sessions

    await cloud.eventually(gone)
    assert busy.taken == ["vm/vm-0", "vm/vm-1", "vm/vm-2"]


async def test_what_it_said_before_it_came_anew_does_not(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    node = await cloud.node()
    first = cloud.manager.sessions.get(node.id)
    busy = BusyDatabase(cloud, monkeypatch)
    for number in range(3):
        await node.say(observed(number))
    await busy.entered.wait()
    twin = ScriptedNode(node.id, "n1", cloud.listener)
    await twin.start()

    async def replaced() -> bool:
        return cloud.manager.sessions.get(node.id) not in (None, first)

    await cloud.eventually(replaced)
    await twin.say(observed(9))
    busy.through.set()

    async def told() -> bool:
        return "vm/vm-9" in busy.taken

    await cloud.eventually(told)
    assert "vm/vm-2" not in busy.taken
    await twin.stop()


async def test_a_node_that_dials_again_replaces_its_connection(cloud: Cloud) -> None:
    node = await cloud.node()
    twin = ScriptedNode(node.id, "n1", cloud.listener)
    await twin.start()
    assert len(cloud.manager.sessions) == 1
    assert (await cloud.admin.get("/audit"))["nodes_asked"] == ["n1"]
    await twin.stop()


async def test_a_silent_node_is_down_and_what_it_ran_is_unknown(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    await cloud.alice.create("vms", "a", image="micro")
    await cloud.lose(node)
    shown = await cloud.until(cloud.admin, "/nodes/n1", "down")
    assert "has not answered" in shown["status"]["reason"]
    vm = await cloud.until(cloud.alice, "/vms/a", "unknown")
    assert "n1" in vm["status"]["reason"]
    status = await cloud.admin.get("/status")
    assert status["connected"] == 0 and (await cloud.alice.get("/status"))["connected"] is None
    assert not status["healthy"] and any("n1 does not answer" in c["message"] for c in status["conditions"])
    op = await cloud.alice.end("POST", "/vms", {"name": "b", "spec": {"image": "micro"}}, state="failed")
    assert "is down" in op["message"]
    await node.start()
    await cloud.until(cloud.admin, "/nodes/n1", "ready")
    await cloud.until(cloud.alice, "/vms/a", "running")


async def test_a_returning_node_is_sent_what_differs_and_no_more(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    kept = await cloud.alice.create("vms", "kept", image="micro")
    changed = await cloud.alice.create("vms", "changed", image="micro")
    await cloud.alice.create("vms", "gone", image="micro")
    await cloud.lose(node)
    await cloud.alice.do("POST", "/vms/changed/actions/stop")
    await cloud.alice.do("DELETE", "/vms/gone")
    await cloud.alice.create("disks", "loose", size_mib=1)
    stray = DesiredVm(**{**node.objects[f"vm/{kept['id']}"].model_dump(), "id": "vm-stray"})
    node.objects["vm/vm-stray"] = stray
    node.messages.clear()
    await node.start()
    await node.until(lambda: any(message.full for message in node.messages))
    first = node.messages[0]
    sent = {f"{item.kind}/{item.id}": item for item in first.set}
    assert f"vm/{kept['id']}" not in sent and first.drop == ("vm/vm-stray",)
    assert sent[f"vm/{changed['id']}"].power == "off"  # type: ignore[union-attr]
    assert sorted(getattr(item, "power", "") for item in sent.values()) == ["", "absent", "off"]
    revisions = [message.revision for message in node.messages]
    assert revisions == sorted(set(revisions)) and {m.epoch for m in node.messages} == {cloud.epoch}
    await cloud.until(cloud.alice, "/vms/changed", "stopped")

    async def deleted() -> bool:
        return [vm["name"] for vm in await cloud.alice.list("/vms")] == ["kept", "changed"]

    await cloud.eventually(deleted)


async def test_a_cordoned_node_keeps_what_it_has_and_gets_no_more(cloud: Cloud) -> None:
    await cloud.node()
    await cloud.image()
    await cloud.alice.create("vms", "a", image="micro")
    await cloud.admin.end("POST", "/nodes/n1/actions/cordon")
    assert (await cloud.admin.end("POST", "/nodes/n1/actions/cordon"))["message"] == "it is so already"
    op = await cloud.alice.end("POST", "/vms", {"name": "b", "spec": {"image": "micro"}}, state="failed")
    assert "cordoned" in op["message"]
    assert (await cloud.alice.get("/vms/a"))["status"]["state"] == "running"
    await cloud.admin.end("POST", "/nodes/n1/actions/uncordon")
    await cloud.alice.end("POST", "/vms/b/actions/start")


async def test_a_node_is_removed_when_empty_and_then_refused(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    await cloud.alice.create("vms", "a", image="micro")
    problem = await cloud.admin.fail("DELETE", "/nodes/n1", status=409, code="in_use")
    assert problem["users"] == ["vm a", "disk a-system"]
    await cloud.admin.fail("DELETE", "/nodes/n1", params={"force": "true"}, status=409, code="conflict")
    await cloud.alice.end("DELETE", "/vms/a")
    await cloud.admin.end("DELETE", "/nodes/n1")
    assert cloud.rows("node_usage") == []
    await cloud.lose(node)
    with pytest.raises(ConnectionRefusedError, match="removed from the cloud"):
        await node.start()
    assert node.removed
    await cloud.store.write(lambda tx: operations.forget_old(tx, events_before=0.0, operations_before=tx.now + 1.0))
    # Nobody is known any more to have said that what it runs is lost.
    with pytest.raises(ConnectionRefusedError, match="does not know this node"):
        await node.start()


async def test_a_lost_node_is_removed_by_force(cloud: Cloud) -> None:
    node = await cloud.node("n1")
    await cloud.image()
    await cloud.alice.create("vpcs", "net")
    await cloud.alice.create("subnets", "lan", vpc="net", cidr="10.0.0.0/24")
    await cloud.alice.create("nics", "loose", subnet="lan")
    await cloud.alice.create("vms", "a", image="micro", nics=[{"subnet": "lan"}, {"nic": "loose"}])
    leaving = await cloud.alice.create("vms", "leaving", image="micro")
    await cloud.lose(node)
    made = await cloud.alice.do("DELETE", "/vms/leaving")
    await cloud.admin.end("DELETE", "/nodes/n1?force=true")
    await cloud.alice.wait(made)
    assert cloud.rows("resource", id=leaving["id"]) == []
    vm = await cloud.alice.get("/vms/a")
    assert vm["status"]["state"] == "error" and "removed as lost" in vm["status"]["reason"]
    assert vm["status"]["node"] is None
    await cloud.node("n2")
    problem = await cloud.alice.fail("POST", "/vms/a/actions/start", status=409, code="conflict")
    assert "the bytes of disk a-system were lost with its node" in problem["detail"]
    assert "vm rebuild a" in problem["detail"]
    await cloud.alice.end("POST", "/vms/a/actions/rebuild", {})
    assert (await cloud.alice.get("/vms/a"))["status"]["addresses"] == vm["status"]["addresses"]
    await cloud.alice.end("DELETE", "/vms/a")
    assert [row["name"] for row in await cloud.alice.list("/nics")] == ["loose"]


async def test_a_vm_does_not_find_an_empty_disk_where_one_was_lost_with_its_node(cloud: Cloud) -> None:
    """Its system disk is in a pool, and goes on elsewhere; its data disk was a file of the node."""
    node = await cloud.node("n1")
    other = await cloud.node("n2")
    await cloud.image()
    await cloud.store.write(lambda tx: make_pool(tx, [node.id, other.id]))
    vm = await cloud.admin.create("vms", "a", image="micro", disk_type="standard", node="n1")
    await cloud.until(cloud.admin, f"/vms/{vm['id']}", "running")
    await cloud.admin.create("disks", "data", size_mib=8)
    await cloud.admin.end("POST", "/disks/data/actions/attach", {"vm": "a"})
    await cloud.lose(node)
    await cloud.admin.end("DELETE", "/nodes/n1?powered_off=true")
    reason = (await cloud.admin.get("/vms/a"))["status"]["reason"]
    assert "and disk data with it; detach that, then start it" in reason
    for action, body in (("start", None), ("rebuild", {})):
        problem = await cloud.admin.fail("POST", f"/vms/a/actions/{action}", body, status=409, code="conflict")
        assert "the bytes of disk data were lost with its node; detach it first" in problem["detail"]
    await cloud.admin.end("POST", "/disks/data/actions/detach")
    problem = await cloud.admin.fail("POST", "/disks/data/actions/attach", {"vm": "a"}, status=409, code="conflict")
    assert "its bytes with it; delete it and make another" in problem["detail"]
    await cloud.admin.end("DELETE", "/disks/data")


async def test_what_is_under_way_on_a_disk_that_is_lost_ends_at_once_and_its_snapshots_are_lost_too(
    cloud: Cloud,
) -> None:
    node = await cloud.node("n1")
    await cloud.image()
    await cloud.alice.create("vms", "a", image="micro")
    await cloud.alice.create("snapshots", "taken", disk="a-system")
    await cloud.lose(node)
    body = {"name": "late", "spec": {"disk": "a-system"}}
    asked = [await cloud.alice.do("POST", "/snapshots", body), await cloud.alice.do("POST", "/vms/a/actions/stop")]
    await cloud.admin.end("DELETE", "/nodes/n1?powered_off=true")
    for operation in asked:
        ended = await cloud.alice.get(f"/operations/{operation['operation']['id']}")
        assert ended["state"] == "failed" and ended["error"]["code"] == "conflict", ended
        assert "its node was removed as lost" in ended["error"]["message"]
    for name in ("taken", "late"):
        status = (await cloud.alice.get(f"/snapshots/{name}"))["status"]
        assert status["state"] == "error" and "its bytes with it" in status["reason"], status
        await cloud.alice.end("DELETE", f"/snapshots/{name}")


async def test_reports_of_other_nodes_things_are_left_aside(cloud: Cloud) -> None:
    await cloud.node("n1")
    await cloud.image()
    vm = await cloud.alice.create("vms", "a", image="micro")
    liar = await cloud.node("n2")
    await liar.say(Observed(key=f"vm/{vm['id']}", generation=99, state="error", settled=True, reason="no"))
    await cloud.admin.get("/audit")
    assert (await cloud.alice.get("/vms/a"))["status"]["state"] == "running"


# --- a manager that is replaced


@pytest.mark.parametrize("moment", ["before", "creating", "reported"])
async def test_another_manager_goes_on_where_one_was_killed(cloud: Cloud, moment: str) -> None:
    node = await cloud.node()
    await cloud.image()
    await cloud.alice.create("vms", "old", image="micro")
    node.holding = True
    made = await cloud.alice.do("POST", "/vms", {"name": "a", "count": 3, "spec": {"image": "micro"}})
    gone = await cloud.alice.do("DELETE", "/vms/old")
    if moment == "creating":
        await cloud.until(cloud.alice, "/vms/a-3", "creating")
    if moment == "reported":
        await cloud.until(cloud.alice, "/vms/a-3", "creating")
        await node.release()
        await asyncio.sleep(0)
    epoch = cloud.epoch
    node.holding = False
    await cloud.restart()
    assert cloud.epoch == epoch + 1 and node.epoch == epoch + 1
    for op in made["operations"]:
        await cloud.alice.wait(op)
    await cloud.alice.wait(gone)
    assert {vm["name"]: vm["status"]["state"] for vm in await cloud.alice.list("/vms")} == {
        f"a-{number}": "running" for number in (1, 2, 3)
    }
    assert len([key for key in node.existing if key.startswith("vm/")]) == 3
    assert cloud.rows("node_usage") == [{"node": node.id, "cpus": 3, "memory_mib": 768, "disk_mib": 30}]
    assert (await cloud.admin.get("/audit"))["clean"]


async def test_deadlines_go_on_while_no_manager_runs(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    node.holding = True
    made = await cloud.alice.do("POST", "/vms", {"name": "a", "spec": {"image": "micro"}})
    await cloud.until(cloud.alice, "/vms/a", "creating")
    await cloud.stop()
    await node.stop()
    cloud.clock.advance(301)
    await cloud.start()
    await cloud.alice.wait(made, "failed")
    await cloud.until(cloud.admin, "/nodes/n1", "down")


async def test_everything_is_there_after_a_restart_with_a_database_in_a_file(tmp_path: Path) -> None:
    async with Cloud(tmp_path, database=tmp_path / "db" / "scloud.db") as cloud:
        node = await cloud.node()
        await cloud.image()
        body = {"name": "a", "count": 10, "spec": {"image": "micro"}}
        made = await cloud.alice.do("POST", "/vms", body)
        await cloud.restart()
        for op in made["operations"]:
            await cloud.alice.wait(op)
        assert len(node.existing) == 20
        assert {vm["status"]["state"] for vm in await cloud.alice.list("/vms")} == {"running"}


async def test_one_bad_vm_holds_up_no_other(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    await cloud.image()
    made = await cloud.alice.do("POST", "/vms", {"name": "a", "count": 3, "spec": {"image": "micro"}})
    for op in made["operations"]:
        await cloud.alice.wait(op, "failed")  # there is no node yet: they will wait for one together
    await cloud.node()
    real, broken = placement.settle, [True]

    def settle(tx: Any, vm: Any, *rest: Any) -> None:
        if vm.name == "a-2" and broken[0]:
            raise RuntimeError("a defect")
        real(tx, vm, *rest)

    monkeypatch.setattr(placement, "settle", settle)
    started = await asyncio.gather(*(cloud.alice.do("POST", f"/vms/a-{number}/actions/start") for number in (1, 2, 3)))
    for number in (0, 2):
        await cloud.alice.wait(started[number])
    assert (await cloud.alice.get("/vms/a-2"))["status"]["state"] == "pending"
    broken[0] = False
    await cloud.alice.wait(started[1])


# --- audit, trace


async def test_audit_finds_strays_doubles_and_what_is_missing(cloud: Cloud) -> None:
    one, two = await cloud.node("n1"), await cloud.node("n2")
    await cloud.image()
    vm = await cloud.alice.create("vms", "a", image="micro", node="n1")
    off = await cloud.alice.create("vms", "off", image="micro", node="n1", power="off")
    assert await cloud.admin.get("/audit") == {
        "clean": True, "findings": [], "nodes_asked": ["n1", "n2"], "nodes_silent": []
    }  # fmt: skip
    two.existing[f"vm/{vm['id']}"] = "running"
    two.existing["disk/dsk-stray"] = "ready"
    one.existing[f"vm/{off['id']}"] = "running"
    [disk] = [d for d in await cloud.alice.list("/disks") if d["name"] == "a-system"]
    one.existing.pop(f"disk/{disk['id']}")
    found = await cloud.admin.get("/audit")
    assert not found["clean"]
    messages = {(finding["node"], finding["message"]) for finding in found["findings"]}
    assert messages == {
        ("n1, n2", "vm 'a' runs more than once"),
        ("n2", "a domain without an owner; its owner is on n1"),
        ("n2", "a disk without an owner"),
        ("n1", "vm 'off' should be off and runs"),
        ("n1", "disk 'a-system' has no bytes on its node"),
    }
    await cloud.lose(two)
    found = await cloud.admin.get("/audit")
    assert found["nodes_silent"] == ["n2"] and found["nodes_asked"] == ["n1"]


async def test_trace_says_which_rule_lets_it_through_or_none(cloud: Cloud) -> None:
    await cloud.node("n1")
    await cloud.node("n2")
    await cloud.image()
    await cloud.alice.create("vpcs", "net")
    await cloud.alice.create("subnets", "lan", vpc="net", cidr="10.0.0.0/24")
    await cloud.alice.create("security-groups", "db")
    await cloud.alice.create("vms", "a", image="micro", node="n1", nics=[{"subnet": "lan"}])
    await cloud.alice.create("vms", "b", image="micro", node="n2", nics=[{"subnet": "lan", "security_groups": ["db"]}])
    ask = {"from": "a", "to": "b", "protocol": "tcp", "port": 22}
    closed = (await cloud.alice.ask("POST", "/network/trace", json=ask)).json()
    assert closed["verdict"] == "dropped" and closed["summary"]
    rule = {"direction": "inbound", "protocol": "tcp", "port_min": 22, "port_max": 22, "cidr": "10.0.0.0/24"}
    await cloud.alice.end("POST", "/security-groups/db/rules", rule)
    for to in ("b", "b-nic0", "10.0.0.4"):
        opened = (await cloud.alice.ask("POST", "/network/trace", json={**ask, "to": to})).json()
        assert opened["verdict"] == "delivered", opened
    assert {step["node"] for step in opened["steps"]} >= {"n1", "n2"}
    for bad in ({"port": None}, {"protocol": "icmp"}, {"to": "none"}, {"from": "none"}, {"port": 0}):
        await cloud.alice.fail("POST", "/network/trace", {**ask, **bad}, status=422, code="invalid")


# --- what the writer remembers


async def test_what_is_remembered_for_placing_is_what_the_database_says(cloud: Cloud) -> None:
    """Through creations, a conflict in the middle of a transaction, moves of the books and a cordon."""
    for name in ("n1", "n2"):
        await cloud.node(name, cpus=4, memory_mib=4096, disk_mib=4096)
    await cloud.image()

    def check(tx: Any) -> None:
        view = placement.view_of(tx, {})
        assert view.fleet.snapshots() == sorted(placement.snapshot(tx, {}), key=lambda node: node.id)
        account = cloud.alice.account
        fresh = view.fleet.counts(nodes.vms_by_account(tx, account))
        assert (view.account(tx, account) == fresh).all()

    await cloud.alice.create("vms", "a", image="micro")
    cloud.store.write_now(check)
    await cloud.alice.create("vms", "b", image="micro", cpus=2)
    body = {"name": "a", "spec": {"image": "micro", "memory_mib": 512}}
    await cloud.alice.fail("POST", "/vms", body, status=409, code="conflict")
    cloud.store.write_now(check)
    await cloud.alice.end("POST", "/vms/b/actions/stop", {})
    await cloud.alice.end("POST", "/vms/b/actions/resize", {"cpus": 1})
    cloud.store.write_now(check)
    await cloud.alice.end("DELETE", "/vms/a")
    cloud.store.write_now(check)
    await cloud.admin.end("POST", "/nodes/n1/actions/cordon")
    made = await cloud.alice.create("vms", "c", image="micro")
    assert made["status"]["node"] == "n2"
    cloud.store.write_now(check)


async def test_a_new_leader_calls_no_node_lost_while_others_still_come(tmp_path: Path) -> None:
    """Thousands take longer than the grace to dial; what they run is known, and is not called unknown meanwhile."""
    grace = 1.0
    async with Cloud(tmp_path, settings=QUICK.model_copy(update={"node_grace_s": grace})) as cloud:
        late = await cloud.node("late")
        others = [await cloud.node(f"n{number}") for number in range(4)]
        await cloud.stop()
        for node in (late, *others):
            await node.stop()
        await cloud.start()
        for node in others:  # each within the grace of the one before, all together longer
            await asyncio.sleep(0.6 * grace)
            await node.start()
        status = await cloud.admin.get("/status")
        assert (status["nodes"], status["connected"]) == ({"ready": 5}, 4)
        await cloud.until(cloud.admin, "/nodes/late", "down")
