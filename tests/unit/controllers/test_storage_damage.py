"""What storage clusters tell of damage and pauses, and what is done about it."""

from __future__ import annotations

from typing import Any

import pytest

from scloud.model.errors import CloudError, ErrorKind
from scloud.reconcile.ceph import laggy
from support.cloud import Cloud
from support.storage_clusters import deployed, is_, look_at_once, shown


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    look_at_once(monkeypatch)


async def test_damage_is_shown_with_its_objects_and_repaired(cloud: Cloud) -> None:
    ceph, _, _ = await deployed(cloud)
    pool = await cloud.admin.create("pools", "p", cluster="c1")
    assert pool["spec"]["rados_name"] == "scloud.p"
    ceph.log = ["2.1 shard 3 soid 2:8a7c9e11:::rbd_data.10ab.0000:head : candidate had a read error"]
    ceph.inconsistent = ["2.1"]
    await shown(cloud, lambda status: status["inconsistent"] == ["2.1"])
    status = (await cloud.admin.get("/storage-clusters/c1"))["status"]
    assert status["inconsistent_objects"] == {"2.1": ["rbd_data.10ab.0000"]}
    bad = {"placement_groups": ["2.2"]}
    await cloud.admin.fail("POST", "/storage-clusters/c1/actions/repair", bad, status=422, code="invalid")
    await cloud.admin.end("POST", "/storage-clusters/c1/actions/repair", {})
    await shown(cloud, lambda status: status["inconsistent"] == [])
    await cloud.admin.end("POST", "/storage-clusters/c1/actions/deep-scrub", {"pools": ["p"]})
    assert ceph.commands[-1] == "osd pool deep-scrub who=['scloud.p']"


async def test_placement_groups_that_wait_for_a_lease_are_told_of_and_made_to_begin_anew(
    cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    ceph, _, _ = await deployed(cloud)
    await cloud.admin.create("pools", "p", cluster="c1")
    ceph.laggy = {"2.1": 1, "2.3": 1, "2.5": 0}
    waits = await shown(cloud, lambda status: any(item["name"] == "paused" for item in status["conditions"]))
    said = next(item["message"] for item in waits["status"]["conditions"] if item["name"] == "paused")
    assert said.startswith("3 placement groups answer nobody, after a pause of osd.0, osd.1: reads and writes of some")
    assert not any(command.startswith("osd down") for command in ceph.commands)
    monkeypatch.setattr(laggy, "STUCK_S", 0.1)
    await shown(cloud, lambda status: not any(item["name"] == "paused" for item in status["conditions"]))
    assert sorted(command for command in ceph.commands if command.startswith("osd down")) == [
        "osd down ids=['0']",
        "osd down ids=['1']",
    ]


async def test_a_damaged_object_is_named_by_its_disk(cloud: Cloud) -> None:
    ceph, nodes, _ = await deployed(cloud)
    await cloud.admin.create("pools", "p", cluster="c1")
    await cloud.admin.create("disk-types", "t", pool="p")
    disk = await cloud.alice.create("disks", "accounts", size_mib=64, type="t")
    for node in nodes:
        node.answers["pool_owners"] = lambda params: dict.fromkeys(params["objects"], (f"disk/{disk['id']}", 8))
    ceph.log = ["1.3 shard 2 soid 1:8a7c9e11:::rbd_data.ab.02:head : candidate had a read error"]
    ceph.inconsistent = ["1.3"]
    seen = (await shown(cloud, lambda status: status["damaged"]))["status"]
    assert seen["damaged"] == {"rbd_data.ab.02": "disk accounts, from 8 MiB on"}
    (said,) = [item["message"] for item in seen["conditions"] if item["name"] == "rot"]
    assert "disk accounts" in said and "scloud storage-cluster repair c1" in said


async def test_what_nobody_tells_of_damage_for_a_while_is_as_it_was(cloud: Cloud) -> None:
    ceph, nodes, _ = await deployed(cloud)
    await cloud.admin.create("pools", "p", cluster="c1")
    await cloud.admin.create("disk-types", "t", pool="p")
    disk = await cloud.alice.create("disks", "accounts", size_mib=64, type="t")
    silent = False

    def owners(params: dict[str, Any]) -> Any:
        if silent:
            raise CloudError(ErrorKind.TIMED_OUT, "no answer within 6 s")
        return dict.fromkeys(params["objects"], (f"disk/{disk['id']}", 8))

    for node in nodes:
        node.answers["pool_owners"] = owners
    ceph.log = ["1.3 shard 2 soid 1:8a7c9e11:::rbd_data.ab.02:head : candidate had a read error"]
    ceph.inconsistent = ["1.3"]
    before = (await shown(cloud, lambda status: status["damaged"]))["status"]
    ceph.refuse["pg repair"] = CloudError(ErrorKind.ENGINE, "the OSD is busy")
    asked = await cloud.admin.do("POST", "/storage-clusters/c1/actions/repair", {})

    async def looked_at_anew() -> None:
        looks = ceph.looks
        await cloud.eventually(is_(lambda: ceph.looks > looks + 3))

    timed_out = CloudError(ErrorKind.TIMED_OUT, "no answer within 6 s")
    for prefix in ("pg ls", "log last", "", "pg ls"):
        silent = not prefix
        ceph.refuse = {"pg repair": ceph.refuse["pg repair"], **({prefix: timed_out} if prefix else {})}
        await looked_at_anew()
        seen = await cloud.admin.get("/storage-clusters/c1")
        for name in ("inconsistent", "inconsistent_objects", "damaged"):
            assert seen["status"][name] == before[name], (prefix, name)
        assert any(item["name"] == "rot" for item in seen["status"]["conditions"]), prefix
        assert seen["spec"]["repairs"] == ["1.3"]
        assert (await cloud.admin.get(f"/operations/{asked['operation']['id']}"))["state"] == "running"
    # What has been all but repaired is seen by a manager that has only just begun, and does not know of all groups.
    ceph.inconsistent, ceph.unknown = [], 3
    await looked_at_anew()
    assert (await cloud.admin.get("/storage-clusters/c1"))["spec"]["repairs"] == ["1.3"]
    ceph.refuse, ceph.unknown = {}, 0
    await cloud.admin.wait(asked)
    after = await shown(cloud, lambda status: not status["conditions"])
    assert after["status"]["damaged"] == {}
    told = await cloud.admin.list("/events", resource="c1", all_accounts=True)
    assert [event["message"] for event in told if "rot" in event["message"]] == ["rot is over"]


async def test_a_pause_is_not_over_because_nobody_tells_of_it(cloud: Cloud) -> None:
    ceph, _, _ = await deployed(cloud)
    ceph.laggy = {"2.1": 1}
    await shown(cloud, lambda status: any(item["name"] == "paused" for item in status["conditions"]))
    ceph.refuse["pg ls"] = CloudError(ErrorKind.TIMED_OUT, "no answer within 6 s")
    looks = ceph.looks
    await cloud.eventually(is_(lambda: ceph.looks > looks + 3))
    status = (await cloud.admin.get("/storage-clusters/c1", fresh=True))["status"]
    assert [item["name"] for item in status["conditions"]] == ["paused"]
