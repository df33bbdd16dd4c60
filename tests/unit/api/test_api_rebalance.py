"""Rebalancing carried out: on request, by schedule, a few moves at once, each judged again before it begins."""

from __future__ import annotations

from typing import Any

from test_api_drain import _leaves, arrive, rig, scripted, vm

from scloud.model.relocations import RelocationSettings
from support.cloud import Cloud
from support.node import ScriptedNode

LESS_THAN_A_TENTH = "not worth it any more"


async def crowded(cloud: Cloud, number: int = 3) -> tuple[ScriptedNode, ScriptedNode, list[str]]:
    """All VMs are on n1."""
    one, two = await rig(cloud, "n1", "n2")
    return one, two, [await vm(cloud, f"v{index}", one, memory_mib=2048) for index in range(number)]


async def last_run(cloud: Cloud) -> dict[str, Any]:
    return dict((await cloud.admin.get("/clusters/default/rebalance"))["runs"][0])


async def test_moves_are_made_one_after_the_other_and_the_gain_is_told(cloud: Cloud) -> None:
    one, two, ids = await crowded(cloud)
    await cloud.admin.end("PATCH", "/clusters/default", {"spec": {"relocation": {"at_once": 1}}})
    found = await cloud.admin.get("/clusters/default/rebalance")
    assert len(found["moves"]) == 1 and found["runs"] == [] and found["next_at"] is None
    [move] = found["moves"]
    for id in ids:
        scripted(one, two, id)
    answer = await cloud.admin.do("POST", "/clusters/default/actions/rebalance", {})
    again = await cloud.admin.do("POST", "/clusters/default/actions/rebalance", {})
    assert again["operation"]["id"] == answer["operation"]["id"]
    await one.until(lambda: _leaves(one, move["vm"]))
    await arrive(one, two, move["vm"])
    done = await cloud.admin.wait(answer)
    assert done["message"] == f"1 of 1 moved, gain {move['gain']:.2f}"
    run = await last_run(cloud)
    assert (run["state"], run["by"], run["gained"], run["counts"]["moved"]) == ("done", "boss", move["gain"], 1)
    nothing = await cloud.admin.end("POST", "/clusters/default/actions/rebalance", {})
    assert nothing["message"] == "nothing is worth moving"


async def test_a_move_that_gains_too_little_by_then_is_left_out(cloud: Cloud) -> None:
    one, two, ids = await crowded(cloud, 5)
    await cloud.admin.end("PATCH", "/clusters/default", {"spec": {"relocation": {"at_once": 1}}})
    for id in ids:
        scripted(one, two, id)
    moves = (await cloud.admin.get("/clusters/default/rebalance"))["moves"]
    assert len(moves) == 2
    answer = await cloud.admin.do("POST", "/clusters/default/actions/rebalance", {})
    first, second = (move["vm"] for move in moves)
    await one.until(lambda: _leaves(one, first))
    for name in ("x", "y"):  # meanwhile the other node fills up
        await vm(cloud, name, two, memory_mib=2048)
    await arrive(one, two, first)
    done = await cloud.admin.wait(answer)
    assert done["message"].startswith("1 of 2 moved")
    reasons = {move["vm"]: move["reason"] for move in (await last_run(cloud))["moves"]}
    assert LESS_THAN_A_TENTH in reasons[second]
    assert (await cloud.admin.get(f"/vms/{second}"))["status"]["node"] == "n1"


async def test_by_schedule_and_stopped(cloud: Cloud) -> None:
    one, two, ids = await crowded(cloud, 5)
    for id in ids:
        scripted(one, two, id)
    settings = {"rebalance_every_s": 3600, "at_once": 1}
    await cloud.admin.end("PATCH", "/clusters/default", {"spec": {"relocation": settings}})
    shown = (await cloud.admin.get("/clusters/default"))["spec"]["relocation"]
    assert shown == {**RelocationSettings().model_dump(), **settings}

    async def begun() -> bool:
        return any(_leaves(one, id) for id in ids)

    await cloud.eventually(begun)
    run = await last_run(cloud)
    assert (run["by"], run["state"], run["counts"]["moving"], run["counts"]["waiting"]) == ("schedule", "moving", 1, 1)
    stopped = await cloud.admin.end("POST", "/clusters/default/actions/rebalance", {"stop": True})
    assert "1 moved" not in stopped["message"]
    [moving] = [move["vm"] for move in run["moves"] if move["state"] == "moving"]
    await arrive(one, two, moving)

    async def over() -> bool:
        return bool((await last_run(cloud))["state"] == "done")

    await cloud.eventually(over)
    found = await cloud.admin.get("/clusters/default/rebalance")
    assert found["runs"][0]["counts"] == {"waiting": 0, "moving": 0, "moved": 1, "stays": 1, "gone": 0}
    assert found["next_at"] == found["runs"][0]["began_at"] + 3600
    problem = await cloud.admin.fail(
        "PATCH",
        "/clusters/default",
        {"spec": {"relocation": {"rebalance_window": "at night"}}},
        status=422,
        code="invalid",
    )
    assert "22:00-06:00" in problem["detail"]
