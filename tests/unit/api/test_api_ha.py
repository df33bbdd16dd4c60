"""High availability through the API: settings, what a VM wants of it, and a node's BMC."""

from __future__ import annotations

import pytest

from support.cloud import Cloud


async def test_a_profile_sets_all_numbers_and_each_can_be_changed(cloud: Cloud) -> None:
    await cloud.node()
    before = (await cloud.admin.get("/ha"))["clusters"][0]
    assert before["settings"]["misses"] == 50 and before["detection_s"] == 54.0
    await cloud.admin.end("PATCH", "/clusters/default", {"spec": {"ha": {"profile": "fast"}}})
    fast = (await cloud.admin.get("/ha"))["clusters"][0]
    assert fast["detection_s"] < 10.0 and fast["settings"]["lease_s"] < fast["detection_s"]
    await cloud.admin.end("PATCH", "/clusters/default", {"spec": {"ha": {"misses": 20, "enabled": False}}})
    after = (await cloud.admin.get("/ha"))["clusters"][0]["settings"]
    assert after == {**fast["settings"], "misses": 20, "enabled": False}


async def test_a_lease_that_outlives_the_verdict_is_refused(cloud: Cloud) -> None:
    await cloud.node()
    body = {"spec": {"ha": {"lease_s": 60.0}}}
    problem = await cloud.admin.fail("PATCH", "/clusters/default", body, status=422, code="invalid")
    assert problem["fields"][0]["field"] == "spec.ha.lease_s" and "54 s" in problem["detail"]


async def test_a_vm_says_whether_and_when_it_is_restarted(cloud: Cloud) -> None:
    await cloud.node()
    await cloud.image()
    await cloud.alice.create("vms", "db", image="micro", ha_priority=90)
    spec = (await cloud.alice.get("/vms/db"))["spec"]
    assert (spec["ha"], spec["ha_priority"]) == (True, 90)
    await cloud.alice.end("PATCH", "/vms/db", {"spec": {"ha": False}})
    spec = (await cloud.alice.get("/vms/db"))["spec"]
    assert (spec["ha"], spec["ha_priority"]) == (False, 90)
    await cloud.alice.fail("PATCH", "/vms/db", {}, status=422, code="invalid")
    await cloud.alice.fail("PATCH", "/vms/db", {"spec": {"ha_priority": 101}}, status=422, code="invalid")


async def test_a_bmc_and_its_password(cloud: Cloud) -> None:
    await cloud.node()
    bmc = {"url": "https://192.0.2.7", "user": "admin"}
    await cloud.admin.end("POST", "/nodes/n1/actions/bmc", {"bmc": bmc, "password": "hush-hush"})
    node = await cloud.admin.get("/nodes/n1")
    assert node["spec"]["bmc"]["url"] == "https://192.0.2.7" and "hush-hush" not in str(node)
    await cloud.admin.end("POST", "/nodes/n1/actions/bmc", {})
    assert (await cloud.admin.get("/nodes/n1"))["spec"]["bmc"] is None
    wrong = {"bmc": {**bmc, "url": "ftp://x"}}
    await cloud.admin.fail("POST", "/nodes/n1/actions/bmc", wrong, status=422, code="invalid")


async def test_it_is_the_administrators(cloud: Cloud) -> None:
    await cloud.alice.fail("GET", "/ha", status=403, code="forbidden")
    await cloud.alice.fail("GET", "/ha/incidents", status=403, code="forbidden")
    assert await cloud.admin.list("/ha/incidents") == []


async def test_a_node_that_has_just_connected_is_not_written_down_as_lost(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The periodic check had found it missing a moment before: its connection stands, so nobody would mend that."""
    node = await cloud.node()
    manager = cloud.manager
    monkeypatch.setattr(manager, "_lost_nodes", lambda tx, now: [node.id])
    await manager._tick()
    assert (await cloud.admin.get("/nodes/n1"))["status"]["state"] == "ready"


@pytest.mark.parametrize(
    ("ask", "field", "words"),
    [
        ({"check_s": 0.2, "misses": 50}, "spec.ha.check_s", "at least 0.5"),
        ({"check_s": 0.5, "misses": 3}, "spec.ha.misses", "1.5 s, and must be at least 2 s"),
    ],
)
async def test_checks_between_two_heartbeats_are_refused(
    cloud: Cloud, ask: dict[str, float], field: str, words: str
) -> None:
    """Every node would be suspected for ever."""
    body = {"spec": {"ha": {**ask, "lease_s": 2.0, "probes": 10}}}
    problem = await cloud.admin.fail("PATCH", "/clusters/default", body, status=422, code="invalid")
    assert problem["fields"][0]["field"] == field and words in problem["detail"]
    await cloud.admin.end("PATCH", "/clusters/default", {"spec": {"ha": {"check_s": 0.5, "misses": 4, "lease_s": 2.0}}})
