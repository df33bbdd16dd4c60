"""Cutting a lost node off: VMs wait for what they need, and for nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scloud.controllers.ha import fencing
from scloud.controllers.ha.fencing import targets
from scloud.model.kinds import Kind, State
from scloud.model.storage import PoolStatus
from scloud.store import incidents
from scloud.store.database import Tx
from scloud.store.resources import all_of, save
from support.cloud import Cloud
from support.lost import Storage, declare, make_reached_pool
from support.node import ScriptedNode


async def _cloud(cloud: Cloud, *types: str, nodes: int = 3) -> tuple[list[ScriptedNode], Storage]:
    """Nodes that reach a pool of each type, each with a VM on n1."""
    made = [await cloud.node(f"n{number}") for number in range(1, nodes + 1)]
    storage = Storage(made)
    await cloud.image()
    for type_ in types:
        await cloud.store.write(lambda tx, type_=type_: make_reached_pool(tx, [node.id for node in made], type_))
    for node in made[1:]:
        await cloud.admin.end("POST", f"/nodes/{node.name}/actions/cordon")
    for type_ in types:
        await cloud.admin.create("vms", f"on-{type_}", image="micro", disk_type=type_)
    for node in made[1:]:
        await cloud.admin.end("POST", f"/nodes/{node.name}/actions/uncordon")
    return made, storage


async def _lose(cloud: Cloud, node: ScriptedNode) -> None:
    await cloud.lose(node)
    await cloud.store.write(lambda tx: declare(tx, node))


async def _runs_elsewhere(cloud: Cloud, vm: str) -> None:
    async def elsewhere() -> bool:
        status = (await cloud.admin.get(f"/vms/{vm}"))["status"]
        return bool(status["state"] == "running" and status["node"] != "n1")

    await cloud.eventually(elsewhere)


async def _has_bmc(cloud: Cloud) -> None:
    access = {"url": "https://192.0.2.99", "user": "root"}
    await cloud.admin.end("POST", "/nodes/n1/actions/bmc", {"bmc": access, "password": "secret"})


async def test_a_bmc_that_does_not_answer_holds_nothing_up(cloud: Cloud) -> None:
    (lost, *others), _ = await _cloud(cloud, "standard")
    await _has_bmc(cloud)
    hanging, over = asyncio.Event(), asyncio.Event()

    async def power(params: dict[str, Any]) -> Any:
        hanging.set()
        await over.wait()

    for node in others:
        node.answers["power"] = power
    try:
        await _lose(cloud, lost)
        await _runs_elsewhere(cloud, "on-standard")
        assert hanging.is_set()
        (incident,) = await cloud.store.read(incidents.open_ones)
        assert incident.fenced and not incident.power_off
    finally:
        over.set()


async def test_a_storage_cluster_that_hangs_holds_up_its_own_vms_alone(cloud: Cloud) -> None:
    (lost, *others), _ = await _cloud(cloud, "well", "sick")
    sick = (await cloud.store.read(lambda tx: all_of(tx, Kind.STORAGE_CLUSTER)))[1]
    assert sick.name == "c-sick"
    hangs, mended = asyncio.Event(), asyncio.Event()
    for node in others:

        async def command(params: dict[str, Any], plain: Any = node.answers["ceph_command"]) -> Any:
            if params["cluster"] == sick.id and params["command"]["prefix"] == "auth del":
                hangs.set()
                await mended.wait()
            return plain(params)

        node.answers["ceph_command"] = command
    try:
        await _lose(cloud, lost)
        await _runs_elsewhere(cloud, "on-well")
        assert hangs.is_set()
        assert (await cloud.admin.get("/vms/on-sick"))["status"]["node"] == "n1"
        (incident,) = await cloud.store.read(incidents.open_ones)
        assert incident.state == "fencing" and not incident.fenced
    finally:
        mended.set()
    await _runs_elsewhere(cloud, "on-sick")


async def test_with_its_key_away_power_off_is_as_good_as_sessions_cut_off(cloud: Cloud) -> None:
    (lost, *_), storage = await _cloud(cloud, "standard")
    await _has_bmc(cloud)
    storage.sessions = storage.bmc = False
    await _lose(cloud, lost)

    async def tried() -> bool:
        return len(set(storage.asked("power"))) == len(set(storage.asked("fence"))) == 2

    await cloud.eventually(tried)  # in turn: one that hangs is not asked for ever
    assert (await cloud.admin.get("/vms/on-standard"))["status"]["node"] == "n1"
    storage.bmc = True
    await _runs_elsewhere(cloud, "on-standard")
    (incident,) = await cloud.store.read(incidents.open_ones)
    assert incident.power_off and incident.keys and not incident.cut and incident.fenced


async def test_power_off_alone_is_not_certain(cloud: Cloud) -> None:
    """Switched on again it would start its VMs."""
    (lost, *_), storage = await _cloud(cloud, "standard")
    await _has_bmc(cloud)
    storage.keys = storage.sessions = False
    await _lose(cloud, lost)

    async def off() -> bool:
        (incident,) = await cloud.store.read(incidents.open_ones)
        return incident.power_off

    await cloud.eventually(off)
    before = len(storage.asked("auth del"))

    async def tried() -> bool:
        return len(storage.asked("auth del")) > before + 2

    await cloud.eventually(tried)
    assert (await cloud.admin.get("/vms/on-standard"))["status"]["node"] == "n1"


async def test_a_key_is_asked_for_by_another_node_when_one_does_not_answer(cloud: Cloud) -> None:
    (lost, second, _), storage = await _cloud(cloud, "standard")
    plain = second.answers["ceph_command"]

    def silent(params: dict[str, Any]) -> Any:
        storage.keys = False
        try:
            return plain(params)
        finally:
            storage.keys = True

    second.answers["ceph_command"] = silent
    await _lose(cloud, lost)
    await _runs_elsewhere(cloud, "on-standard")
    assert storage.asked("auth del") == ["n2", "n3"]


async def test_sessions_are_looked_at_again_until_the_node_is_back(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fencing, "LOOK_S", 0.05)
    (lost, *_), storage = await _cloud(cloud, "standard")
    await _lose(cloud, lost)
    await _runs_elsewhere(cloud, "on-standard")
    before = len(storage.asked("fence"))

    async def looked() -> bool:
        return len(storage.asked("fence")) >= before + 3

    await cloud.eventually(looked)
    (incident,) = await cloud.store.read(incidents.open_ones)
    assert sum(moment.what == "fenced" for moment in incident.moments) == 1, "it is told once"
    await lost.start()
    await cloud.until(cloud.admin, "/nodes/n1", "ready")
    assert not await cloud.store.read(incidents.open_ones)
    assert not cloud.manager.ha._fencer._looks


def test_looks_are_many_at_first_then_few_then_none() -> None:
    looks, now, seen = fencing.Looks(1000.0), 1000.0, []
    while (wait := looks.wait(now)) is not None:
        now += wait
        if looks.due(now):
            seen.append(now - 1000.0)
            looks.looked(now)
    assert seen[:3] == [5.0, 10.0, 15.0] and seen.count(60.0) == 1
    assert len([at for at in seen if at <= 60.0]) == 12
    assert seen[12:14] == [120.0, 180.0] and seen[-1] <= 3600.0


async def test_a_pool_that_is_being_deleted_keeps_no_node_from_being_cut_off(cloud: Cloud) -> None:
    """Nodes are not told it any more, and who is asked about it refuses."""
    (lost, *_), _ = await _cloud(cloud, "standard")

    def leave(tx: Tx) -> tuple[int, int]:
        (pool,) = all_of(tx, Kind.POOL)
        before = sum(len(target.pools) for target in targets(tx, lost.id))
        save(tx, pool, status=pool.status_as(PoolStatus).model_copy(update={"state": State.DELETING}))
        return before, sum(len(target.pools) for target in targets(tx, lost.id))

    assert await cloud.store.write(leave) == (1, 0)


async def test_another_clouds_key_of_the_same_name_stays(cloud: Cloud) -> None:
    """Two clouds use one storage cluster, and each has a node n1: only ours is lost."""
    (lost, *_), storage = await _cloud(cloud, "standard")
    storage.key = "dGhlaXJz"
    await _lose(cloud, lost)
    await _runs_elsewhere(cloud, "on-standard")
    assert storage.asked("auth del") == [] and storage.asked("fence")
    (incident,) = await cloud.store.read(incidents.open_ones)
    (words,) = [moment.text for moment in incident.moments if moment.what == "key"]
    assert "is another cloud's, and stays" in words
