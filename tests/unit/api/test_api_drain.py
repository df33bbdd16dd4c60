"""Maintenance: a node is emptied a few VMs at a time, says what cannot leave, and is open again when asked."""

from __future__ import annotations

from typing import Any

from scloud.model.desired import DesiredVm
from scloud.model.migrations import MoveSeen
from scloud.model.observed import Observed
from support.cloud import Cloud
from support.node import ScriptedNode
from support.pools import make_pool

SHARED = {"image": "micro", "disk_type": "standard"}


async def rig(cloud: Cloud, *names: str) -> list[ScriptedNode]:
    nodes = [await cloud.node(name) for name in names]
    await cloud.image()
    await cloud.store.write(lambda tx: make_pool(tx, [node.id for node in nodes]))
    return nodes


async def vm(cloud: Cloud, name: str, on: ScriptedNode, state: str = "running", **spec: Any) -> str:
    """One that is on a node, though it was not asked onto it."""
    others = [node for node in cloud.nodes.values() if node.id != on.id]
    for node in others:
        await cloud.admin.end("POST", f"/nodes/{node.id}/actions/cordon")
    made = await cloud.admin.create("vms", name, **{**SHARED, **spec})
    for node in others:
        await cloud.admin.end("POST", f"/nodes/{node.id}/actions/uncordon")
    await cloud.until(cloud.admin, f"/vms/{made['id']}", state)
    return str(made["id"])


def seen(id: str, state: str, number: int = 1, **more: Any) -> Observed:
    move = MoveSeen.model_validate({"number": number, "state": state, **more})
    return Observed(key=f"vm/{id}", generation=1, state="running", settled=False, move=move)


def scripted(source: ScriptedNode, target: ScriptedNode, id: str, number: int = 1) -> None:
    """The migration gets as far as copying, and stays there until a test lets it end."""
    target.override[f"vm/{id}"] = seen(id, "ready", number, address="192.0.2.2:7")
    source.override[f"vm/{id}"] = seen(id, "copying", number)


async def arrive(source: ScriptedNode, target: ScriptedNode, id: str, number: int = 1) -> None:
    await source.until(lambda: _leaves(source, id))
    for node in (source, target):
        node.override.pop(f"vm/{id}", None)
    await source.say(seen(id, "left", number))


def _leaves(node: ScriptedNode, id: str) -> bool:
    item = node.objects.get(f"vm/{id}")
    return isinstance(item, DesiredVm) and item.move_out is not None


def _comes(node: ScriptedNode, id: str, number: int) -> bool:
    item = node.objects.get(f"vm/{id}")
    return isinstance(item, DesiredVm) and item.move_in is not None and item.move_in.number == number


async def account_of(cloud: Cloud, node: str = "n1") -> dict[str, Any]:
    return dict(await cloud.admin.get(f"/nodes/{node}/drain"))


async def states(cloud: Cloud) -> dict[str, str]:
    drain = (await account_of(cloud))["drain"]
    return {move["name"]: move["state"] for move in drain["moves"]}


async def test_vms_leave_a_few_at_once_and_nothing_new_comes(cloud: Cloud) -> None:
    one, two = await rig(cloud, "n1", "n2")
    spec = {"relocation": {"per_node": 1}}
    await cloud.admin.end("PATCH", "/clusters/default", {"spec": spec})
    small, large = await vm(cloud, "small", one), await vm(cloud, "large", one, memory_mib=1024)
    off = await vm(cloud, "off", one, "stopped", power="off")
    for id in (small, large):
        scripted(one, two, id)
    assert await account_of(cloud) == {"node": "n1", "draining": False, "drain": None}
    answer = await cloud.admin.do("POST", "/nodes/n1/actions/drain")
    again = await cloud.admin.do("POST", "/nodes/n1/actions/drain")
    assert again["operation"]["id"] == answer["operation"]["id"]
    await one.until(lambda: _leaves(one, large))
    assert await states(cloud) == {"small": "waiting", "large": "moving", "off": "moved"}
    assert not _leaves(one, small), "one at a time, the larger first"
    await one.until(lambda: f"vm/{off}" not in one.objects)
    await arrive(one, two, large)
    await arrive(one, two, small)
    done = await cloud.admin.wait(answer)
    assert done["message"] == "3 VMs have left, nothing runs on it any more"
    for id in (small, large, off):
        assert (await cloud.admin.get(f"/vms/{id}"))["status"]["node"] == "n2"
    node = await cloud.admin.get("/nodes/n1")
    assert node["spec"]["draining"] and node["spec"]["cordoned"]
    await cloud.admin.end("POST", f"/vms/{off}/actions/start")
    await cloud.admin.end("POST", "/nodes/n1/actions/undrain", {})
    node = await cloud.admin.get("/nodes/n1")
    assert not node["spec"]["draining"] and not node["spec"]["cordoned"]
    assert (await account_of(cloud))["drain"]["state"] == "ended"


async def test_one_that_is_on_its_way_to_the_node_is_waited_for(cloud: Cloud) -> None:
    one, two = await rig(cloud, "n1", "n2")
    id = await vm(cloud, "late", two)
    scripted(two, one, id)
    await cloud.admin.do("POST", f"/vms/{id}/actions/migrate", {"node": "n1"})
    await two.until(lambda: _leaves(two, id))
    answer = await cloud.admin.do("POST", "/nodes/n1/actions/drain")

    async def noticed() -> bool:
        return await states(cloud) == {"late": "waiting"}

    await cloud.eventually(noticed)
    assert (await cloud.admin.get(f"/operations/{answer['operation']['id']}"))["state"] == "running"
    await arrive(two, one, id)
    await two.until(lambda: _comes(two, id, 2))
    one.override[f"vm/{id}"] = seen(id, "copying", 2)
    await two.say(seen(id, "ready", 2, address="192.0.2.2:7"))
    await arrive(one, two, id, number=2)
    done = await cloud.admin.wait(answer)
    assert done["message"] == "1 VM has left, nothing runs on it any more"
    assert (await cloud.admin.get(f"/vms/{id}"))["status"]["node"] == "n2"


async def test_one_that_leaves_by_hand_already_is_waited_for(cloud: Cloud) -> None:
    one, two = await rig(cloud, "n1", "n2")
    id = await vm(cloud, "early", one)
    scripted(one, two, id)
    await cloud.admin.do("POST", f"/vms/{id}/actions/migrate", {"node": "n2"})
    await one.until(lambda: _leaves(one, id))
    answer = await cloud.admin.do("POST", "/nodes/n1/actions/drain")

    async def noticed() -> bool:
        return await states(cloud) == {"early": "moving"}

    await cloud.eventually(noticed)
    assert (await cloud.admin.get(f"/operations/{answer['operation']['id']}"))["state"] == "running"
    await arrive(one, two, id)
    done = await cloud.admin.wait(answer)
    assert done["message"] == "1 VM has left, nothing runs on it any more"


async def test_who_cannot_leave_is_told_and_leaves_when_it_can(cloud: Cloud) -> None:
    one, two = await rig(cloud, "n1", "n2")
    await vm(cloud, "rooted", one, disk_type=None)
    await cloud.admin.end("POST", "/snapshots", {"name": "kept", "spec": {"disk": "rooted-system"}})
    id = await vm(cloud, "big", one, memory_mib=8192)
    filler = await vm(cloud, "filler", two, memory_mib=12288, disk_type=None)
    failed = await cloud.admin.end("POST", "/nodes/n1/actions/drain", state="failed")
    assert "rooted: disk rooted-system is in this node's own storage" in failed["error"]["message"]
    assert "big: no other node can take it" in failed["error"]["message"]
    assert "too little memory" in failed["error"]["message"]
    assert (await account_of(cloud))["drain"]["state"] == "blocked"
    scripted(one, two, id)
    await cloud.admin.end("DELETE", f"/vms/{filler}")
    await arrive(one, two, id)
    await cloud.admin.end("POST", "/vms/rooted/actions/stop", {"force": True})
    problem = await cloud.admin.fail("POST", "/vms/rooted/actions/start", status=409, code="conflict")
    assert "is being drained" in problem["detail"]
    again = await cloud.admin.end("POST", "/nodes/n1/actions/drain")
    assert again["message"] == "1 VM has left, nothing runs on it any more; 1 that cannot leave is off: rooted"
    await cloud.admin.end("POST", "/nodes/n1/actions/uncordon")
    await cloud.admin.end("POST", "/vms/rooted/actions/start")


async def test_undone_in_the_middle_what_moves_goes_on_or_is_cancelled(cloud: Cloud) -> None:
    one, two = await rig(cloud, "n1", "n2")
    await cloud.admin.end("PATCH", "/clusters/default", {"spec": {"relocation": {"at_once": 1}}})
    first, second = await vm(cloud, "first", one, memory_mib=1024), await vm(cloud, "second", one)
    scripted(one, two, first)
    answer = await cloud.admin.do("POST", "/nodes/n1/actions/drain")
    await one.until(lambda: _leaves(one, first))
    await cloud.admin.end("POST", "/nodes/n1/actions/undrain", {})
    ended = await cloud.admin.wait(answer, "cancelled")
    assert "1 under way go on" in ended["message"]
    await arrive(one, two, first)

    async def moved() -> bool:
        return bool((await cloud.admin.get(f"/vms/{first}"))["status"]["node"] == "n2")

    await cloud.eventually(moved)
    scripted(one, two, second)
    answer = await cloud.admin.do("POST", "/nodes/n1/actions/drain")
    await one.until(lambda: _leaves(one, second))
    await cloud.admin.end("POST", "/nodes/n1/actions/undrain", {"cancel": True})
    del one.override[f"vm/{second}"], two.override[f"vm/{second}"]
    await one.say(seen(second, "stays", reason="canceled by client"))
    await cloud.admin.wait(answer, "cancelled")

    async def stays() -> bool:
        row = await cloud.admin.get(f"/vms/{second}")
        return row["status"]["migration"] is None and row["status"]["node"] == "n1"

    await cloud.eventually(stays)


async def test_a_manager_that_starts_goes_on_and_a_failed_try_is_made_again(cloud: Cloud) -> None:
    one, two = await rig(cloud, "n1", "n2")
    id = await vm(cloud, "a", one)
    scripted(one, two, id)
    answer = await cloud.admin.do("POST", "/nodes/n1/actions/drain")
    await one.until(lambda: _leaves(one, id))
    del one.override[f"vm/{id}"], two.override[f"vm/{id}"]
    await one.say(seen(id, "stays", reason="the cable is cut"))

    async def told() -> bool:
        move = (await account_of(cloud))["drain"]["moves"][0]
        return move["tries"] == 1 and "the cable is cut" in move["reason"] and "tried again" in move["reason"]

    await cloud.eventually(told)
    await two.until(lambda: f"vm/{id}" not in two.objects)
    await cloud.restart()
    scripted(one, two, id, number=2)
    cloud.clock.advance(20.0)
    await arrive(one, two, id, number=2)
    await cloud.admin.wait(answer)


async def test_two_nodes_at_once_share_the_limit_and_none_goes_to_the_other(cloud: Cloud) -> None:
    one, two, three = await rig(cloud, "n1", "n2", "n3")
    await cloud.admin.end("PATCH", "/clusters/default", {"spec": {"relocation": {"at_once": 1}}})
    first, second = await vm(cloud, "first", one), await vm(cloud, "second", two)
    scripted(one, three, first)
    scripted(two, three, second)
    answers = [await cloud.admin.do("POST", f"/nodes/{name}/actions/drain") for name in ("n1", "n2")]
    most = 0

    async def begun() -> bool:
        nonlocal most
        moving = [_leaves(one, first), _leaves(two, second)]
        most = max(most, sum(moving))
        return any(moving)

    for _ in range(2):
        await cloud.eventually(begun)
        source, id = (one, first) if _leaves(one, first) else (two, second)
        await arrive(source, three, id)
        await source.until(lambda source=source, id=id: not _leaves(source, id))  # type: ignore[misc]
    for answer in answers:
        await cloud.admin.wait(answer)
    assert most == 1
    assert {(await cloud.admin.get(f"/vms/{id}"))["status"]["node"] for id in (first, second)} == {"n3"}


async def test_a_node_that_is_taken_out_takes_its_drain_along(cloud: Cloud) -> None:
    one, _two = await rig(cloud, "n1", "n2")
    answer = await cloud.admin.end("POST", "/nodes/n1/actions/drain")
    assert answer["message"] == "0 VMs have left, nothing runs on it any more"
    await cloud.lose(one)
    await cloud.admin.end("DELETE", "/nodes/n1", None)
    assert cloud.rows("relocation") == []
