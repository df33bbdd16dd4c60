"""Giving the VMs of a lost node to others: who comes first, who waits, who stays."""

from __future__ import annotations

from typing import Any

import pytest

from scloud.controllers.ha import recovery, room
from scloud.model.ha import Incident
from scloud.scheduler.snapshot import Plan
from scloud.store import incidents
from support.cloud import Cloud
from support.lost import Storage, declare, make_reached_pool
from support.node import ScriptedNode


async def _cloud(cloud: Cloud, *, memory_mib: int) -> tuple[ScriptedNode, ScriptedNode]:
    """n1, which is to be lost, and n2 with so much memory, cordoned."""
    lost, other = await cloud.node("n1"), await cloud.node("n2", memory_mib=memory_mib)
    Storage([lost, other])
    await cloud.image()
    await cloud.store.write(lambda tx: make_reached_pool(tx, [lost.id, other.id]))
    await cloud.admin.end("POST", "/nodes/n2/actions/cordon")
    return lost, other


async def _vm(cloud: Cloud, name: str, memory_mib: int, **spec: Any) -> None:
    await cloud.admin.create("vms", name, image="micro", disk_type="standard", memory_mib=memory_mib, **spec)


async def _lose(cloud: Cloud, node: ScriptedNode) -> None:
    await cloud.admin.end("POST", "/nodes/n2/actions/uncordon")
    await cloud.lose(node)
    await cloud.store.write(lambda tx: declare(tx, node))


async def _until(cloud: Cloud, state: str) -> Incident:
    seen: list[Incident] = []

    async def reached() -> bool:
        seen[:] = await cloud.store.read(incidents.open_ones)
        return seen[0].state == state

    await cloud.eventually(reached)
    return seen[0]


async def test_with_little_room_the_important_run_and_the_others_say_why_not_until_there_is_more(cloud: Cloud) -> None:
    lost, _ = await _cloud(cloud, memory_mib=4096)
    await _vm(cloud, "low", 2048, ha_priority=10)
    await _vm(cloud, "stays", 512, ha=False, ha_priority=100)
    await _vm(cloud, "high", 2048, ha_priority=90)
    await cloud.admin.end("POST", "/nodes/n1/actions/cordon")
    await cloud.admin.end("POST", "/nodes/n2/actions/uncordon")
    await _vm(cloud, "before", 1024)
    await _lose(cloud, lost)
    incident = await _until(cloud, "waiting")
    assert (await cloud.until(cloud.admin, "/vms/high", "running"))["status"]["node"] == "n2"
    vm = await cloud.admin.get("/vms/low")
    assert vm["status"]["node"] == "n1" and vm["status"]["state"] == "unknown"
    assert "waits for room" in vm["status"]["reason"] and "too little memory" in vm["status"]["reason"]
    assert "no room for low" in incident.reason
    assert {item.name: item.state for item in incident.vms if item.name != "high"} == {
        "low": "waiting",
        "stays": "left",
    }
    kept = await cloud.admin.get("/vms/stays")
    assert kept["status"]["node"] == "n1" and "high availability is off" in kept["status"]["reason"]

    await cloud.admin.end("DELETE", "/vms/before")
    assert (await cloud.until(cloud.admin, "/vms/low", "running"))["status"]["node"] == "n2"
    incident = await _until(cloud, "recovered")
    placed = [moment.text for moment in incident.moments if moment.what == "placed"]
    assert placed == ["high on n2", "low on n2"]
    assert [moment.text.split(":")[0] for moment in incident.moments if moment.what == "waiting"] == ["low"]
    assert (await cloud.admin.get("/vms/stays"))["status"]["node"] == "n1"


async def test_of_many_that_wait_a_few_are_explained_at_once_and_all_in_the_end(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    explained: list[int] = []
    looks: list[int] = []
    real, of = room.place, room.Reasons.of

    def place(nodes: Any, request: Any) -> Plan:
        explained.append(request.memory_mib)
        return real(nodes, request)

    def counting(self: room.Reasons, *arguments: Any) -> Any:
        before = len(explained)
        try:
            return of(self, *arguments)
        finally:
            looks.append(len(explained) - before)

    monkeypatch.setattr(room, "place", place)
    monkeypatch.setattr(room.Reasons, "of", counting)
    lost, _ = await _cloud(cloud, memory_mib=256)
    sizes = [512 + 64 * number for number in range(room.EXPLAINED * 2)]
    for number, size in enumerate([*sizes, *sizes]):
        await _vm(cloud, f"vm-{number}", size)
    await _lose(cloud, lost)

    async def told() -> bool:
        found = await cloud.admin.list("/vms")
        return all("too little memory" in vm["status"]["reason"] for vm in found)

    await cloud.eventually(told)
    assert sorted(explained) == sizes, "what asks for the same is told the same"
    assert max(looks) == room.EXPLAINED
    done = len(looks)

    async def looked() -> bool:
        return len(looks) >= done + 3

    await cloud.eventually(looked)
    assert len(explained) == len(sizes), "and for a while not again"


async def test_no_transaction_places_all_of_a_large_node(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "AT_ONCE", 2)
    monkeypatch.setattr("scloud.controllers.ha.controller.AGAIN_S", 60.0)
    lost, _ = await _cloud(cloud, memory_mib=16384)
    for number in range(5):
        await _vm(cloud, f"vm-{number}", 512)
    await _lose(cloud, lost)
    incident = await _until(cloud, "recovered")
    times = [moment.at for moment in incident.moments if moment.what == "placed"]
    assert len(times) == 5 and max(map(times.count, times)) == 2


async def test_after_a_look_that_took_long_others_may_write(cloud: Cloud) -> None:
    waiting = Incident(id="inc-1", node="nod-1", node_name="n1", state="waiting", began_at=0.0)
    ha = cloud.manager.ha
    quick = ha._pause(waiting)
    ha._took["inc-1"] = 1.0
    assert quick < 1.0 and ha._pause(waiting) == pytest.approx(20.0)
