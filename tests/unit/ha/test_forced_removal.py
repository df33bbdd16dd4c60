"""`node remove --force`: what a lost node has open in pools runs nowhere else before it is cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scloud.controllers import settings
from scloud.controllers.ha import recovery
from scloud.model.ha import IncidentState
from scloud.model.kinds import Kind
from scloud.model.specs import ClusterSpec
from scloud.store import incidents
from scloud.store.database import Tx
from scloud.store.resources import all_of, save
from support.cloud import QUICK, Cloud
from support.lost import Storage, make_reached_pool
from support.node import ScriptedNode

FORCED, OFF = "/nodes/n1?force=true", "/nodes/n1?force=true&powered_off=true"


async def _lost(cloud: Cloud, *, ha: bool = True) -> tuple[ScriptedNode, ScriptedNode, Storage]:
    """n1, gone with a VM whose disk is in a pool, and n2, which lives."""
    lost, other = await cloud.node("n1"), await cloud.node("n2")
    storage = Storage([lost, other])
    await cloud.image()
    await cloud.store.write(lambda tx: make_reached_pool(tx, [lost.id, other.id]))
    await cloud.admin.end("POST", "/nodes/n2/actions/cordon")
    await cloud.admin.create("vms", "a", image="micro", disk_type="standard")
    await cloud.admin.end("POST", "/nodes/n2/actions/uncordon")
    if not ha:
        await cloud.store.write(_switch_off)
    await cloud.lose(lost)
    return lost, other, storage


def _switch_off(tx: Tx) -> None:
    for row in all_of(tx, Kind.CLUSTER):
        spec = row.spec_as(ClusterSpec)
        save(tx, row, spec=spec.model_copy(update={"ha": spec.ha.model_copy(update={"enabled": False})}))


async def _told(cloud: Cloud, answer: dict[str, Any], words: str) -> None:
    """Until the operation says so, and goes on."""
    id = answer["operation"]["id"]

    async def said() -> bool:
        op = await cloud.admin.get(f"/operations/{id}")
        assert op["state"] == "running", op
        return words in op["message"]

    await cloud.eventually(said)


async def test_a_node_that_may_run_on_is_cut_off_before_its_vms_are_anybody_elses(cloud: Cloud) -> None:
    _, other, storage = await _lost(cloud)
    storage.sessions = False
    asked = await cloud.admin.do("DELETE", FORCED)
    await _told(cloud, asked, "no OSD answers")
    assert (await cloud.admin.get("/vms/a"))["status"]["node"] == "n1"
    assert not [key for key in other.objects if key.startswith("vm/")], "it may be open on n1"
    seen: list[bool] = []
    fence = other.answers["fence"]

    def look(params: dict[str, Any]) -> Any:
        seen.append(any(key.startswith("vm/") for key in other.objects))
        return fence(params)

    other.answers["fence"] = look
    storage.sessions = True
    await cloud.admin.wait(asked)
    assert seen and not any(seen), "fenced first"
    await cloud.admin.fail("GET", "/nodes/n1", status=404, code="not_found")
    assert (await cloud.until(cloud.admin, "/vms/a", "running"))["status"]["node"] == "n2"
    (incident,) = await cloud.admin.list("/ha/incidents")
    assert incident["state"] == "closed"
    story = [moment["what"] for moment in incident["moments"]]
    assert story.index("declared") < story.index("key") < story.index("fenced") < story.index("placed")


async def test_it_takes_nothing_any_more_from_then_on(tmp_path: Path) -> None:
    """Though it was heard a moment ago, and does not count as down by itself yet."""
    async with Cloud(tmp_path, settings=_with_grace(60.0)) as cloud:
        _, _, storage = await _lost(cloud)
        storage.sessions = False
        asked = await cloud.admin.do("DELETE", FORCED)
        assert (await cloud.admin.get("/nodes/n1"))["status"]["state"] == "down"
        storage.sessions = True
        await cloud.admin.wait(asked)


def _with_grace(seconds: float) -> settings.Settings:
    return QUICK.model_copy(update={"node_grace_s": seconds})


async def test_without_high_availability_its_vms_can_be_started_once_it_is_out(cloud: Cloud) -> None:
    await _lost(cloud, ha=False)
    await cloud.admin.end("DELETE", FORCED)
    vm = await cloud.admin.get("/vms/a")
    assert vm["status"]["state"] == "error" and "start it" in vm["status"]["reason"]
    await cloud.admin.end("POST", "/vms/a/actions/start")
    assert (await cloud.admin.get("/vms/a"))["status"]["node"] == "n2"


async def test_it_is_not_out_before_all_that_can_be_placed_elsewhere_is(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else those for the next transaction would be in error, and nobody would start them."""
    monkeypatch.setattr(recovery, "AT_ONCE", 1)
    lost, other = await cloud.node("n1"), await cloud.node("n2")
    Storage([lost, other])
    await cloud.image()
    await cloud.store.write(lambda tx: make_reached_pool(tx, [lost.id, other.id]))
    await cloud.admin.end("POST", "/nodes/n2/actions/cordon")
    for name in ("a", "b", "c"):
        await cloud.admin.create("vms", name, image="micro", disk_type="standard")
    await cloud.admin.end("POST", "/nodes/n2/actions/uncordon")
    await cloud.lose(lost)
    await cloud.admin.end("DELETE", FORCED)
    for name in ("a", "b", "c"):
        await cloud.until(cloud.admin, f"/vms/{name}", "running")
        assert (await cloud.admin.get(f"/vms/{name}"))["status"]["node"] == "n2"


async def test_storage_that_does_not_answer_is_told_and_a_promise_ends_it(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(settings.ACTION_SECONDS, "node.delete", 30.0)
    _, _, storage = await _lost(cloud)
    storage.keys = storage.sessions = False
    asked = await cloud.admin.do("DELETE", FORCED)
    await _told(cloud, asked, "no quorum")
    cloud.clock.advance(31.0)
    op = await cloud.admin.wait(asked, "failed")
    assert "no quorum" in op["message"] and "--powered-off" in op["message"] and "tried" in op["message"]
    await cloud.until(cloud.admin, "/nodes/n1", "down")
    again = await cloud.admin.do("DELETE", FORCED)
    await cloud.admin.end("DELETE", OFF)
    await cloud.admin.wait(again)
    await cloud.admin.end("POST", "/vms/a/actions/start")
    assert (await cloud.admin.get("/vms/a"))["status"]["node"] == "n2"

    async def closed() -> bool:
        return not await cloud.store.read(incidents.open_ones)

    await cloud.eventually(closed)


async def test_what_was_given_up_in_time_is_taken_out_when_its_storage_answers(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, _, storage = await _lost(cloud)
    storage.sessions = False
    asked = await cloud.admin.do("DELETE", FORCED)
    await _told(cloud, asked, "no OSD answers")
    cloud.clock.advance(settings.seconds_for("node.delete") + 1)
    await cloud.admin.wait(asked, "failed")
    storage.sessions = True
    await cloud.until_gone(asked["resource"]["id"])
    await cloud.until(cloud.admin, "/vms/a", "running")
    with pytest.raises(ConnectionRefusedError):
        await lost.start()
    assert lost.removed, "nobody is asked any more, and it is out of the cloud all the same"


async def test_a_node_that_is_there_again_stays(cloud: Cloud) -> None:
    lost, _, storage = await _lost(cloud)
    storage.sessions = False
    asked = await cloud.admin.do("DELETE", FORCED)
    await _told(cloud, asked, "no OSD answers")
    await lost.start()
    op = await cloud.admin.wait(asked, "failed")
    assert "is not lost" in op["message"]
    await cloud.until(cloud.admin, "/nodes/n1", "ready")
    (incident,) = await cloud.admin.list("/ha/incidents")
    assert incident["state"] == IncidentState.CLOSED
    await cloud.admin.fail("DELETE", FORCED, status=409, code="conflict")
    await cloud.admin.fail("DELETE", OFF, status=409, code="conflict")


async def test_another_manager_goes_on_with_it(cloud: Cloud) -> None:
    _, other, storage = await _lost(cloud)
    storage.sessions = False
    asked = await cloud.admin.do("DELETE", FORCED)
    await _told(cloud, asked, "no OSD answers")
    await cloud.restart_manager()
    storage.sessions = True
    await other.stop()
    await other.start()
    await cloud.admin.wait(asked)


async def test_a_node_with_nothing_in_pools_is_out_at_once(cloud: Cloud) -> None:
    lost, other = await cloud.node("n1"), await cloud.node("n2")
    storage = Storage([other])
    await cloud.image()
    await cloud.store.write(lambda tx: make_reached_pool(tx, [lost.id, other.id]))
    await cloud.admin.create("vms", "local", image="micro", node="n1")
    await cloud.lose(lost)
    answer = await cloud.admin.do("DELETE", FORCED)
    assert answer["operation"]["state"] == "done" and not storage.calls
