"""Storage clusters that somebody else made."""

from __future__ import annotations

from typing import Any

import pytest

from scloud.model.errors import CloudError, ErrorKind
from support.ceph import FakeCeph
from support.cloud import Cloud
from support.storage_clusters import is_, look_at_once, shown


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    look_at_once(monkeypatch)


KEY = "AQBSdFhnAAAAABAAQ1ihzvQ8gmv7PCPDBNPIBA=="
OTHER_KEY = "AQBSdFhnAAAAABAAQ1ihzvQ8gmv7PCPDBNPIBB=="
CONF = "[global]\nfsid = 941620dc-12d4-4ca1-895e-b8740192dcf8\nmon host = [v2:10.0.0.1:3300]\n"


def keyring(key: str) -> str:
    return f'[client.admin]\n\tkey = {key}\n\tcaps mon = "allow *"\n'


async def adopted(cloud: Cloud) -> FakeCeph:
    node = await cloud.node("n1")
    ceph = FakeCeph(admin_key=KEY)
    for number in range(3):
        uuid = f"uuid-{number}"
        osd = {"osd": number, "uuid": uuid, "in": 1, "up": 1, "class": "hdd", "host": f"h{number}", "fixed": True}
        ceph.osds[uuid] = osd
        ceph.places[f"h{number}"] = {"host": f"h{number}"}
    ceph.join(node)
    return ceph


async def test_a_cluster_is_adopted_and_nothing_of_it_is_changed_but_our_keys(cloud: Cloud) -> None:
    ceph = await adopted(cloud)
    spec = {"mode": "adopted", "conf": CONF, "keyring": keyring(KEY)}
    made = await cloud.admin.create("storage-clusters", "old", **spec)
    assert made["status"]["state"] == "ready" and len(made["status"]["osds"]) == 3
    assert [command.split(" ")[:2] for command in ceph.commands] == [["auth", "import"]]
    assert KEY not in str(await cloud.admin.get("/storage-clusters/old"))
    await cloud.admin.create("pools", "p", cluster="old", media="hdd")
    assert "scloud.p" in ceph.pools
    problem = await cloud.admin.fail(
        "POST", "/storage-clusters/old/actions/device-remove", {"device": "osd.0"}, status=409, code="conflict"
    )
    assert "was adopted" in problem["detail"]
    await cloud.admin.end("DELETE", "/pools/p")
    await cloud.admin.end("DELETE", "/storage-clusters/old")
    assert "client.scloud-n1" not in ceph.auth and len(ceph.osds) == 3


async def test_a_wrong_key_or_silent_monitors_fail_the_adoption(cloud: Cloud) -> None:
    ceph = await adopted(cloud)
    for name, key, silent, said in (
        ("wrong", OTHER_KEY, False, "does not take the key"),
        ("silent", KEY, True, "no monitor of the conf answers"),
    ):
        ceph.silent = silent
        spec = {"mode": "adopted", "conf": CONF, "keyring": keyring(key)}
        op = await cloud.admin.end("POST", "/storage-clusters", {"name": name, "spec": spec}, state="failed")
        assert said in op["message"]
        status = (await cloud.admin.get(f"/storage-clusters/{name}"))["status"]
        assert status["state"] == "error" and said in status["reason"]
        assert ceph.commands == [] and ceph.auth == {}
        body = {"name": "p", "spec": {"cluster": name}}
        problem = await cloud.admin.fail("POST", "/pools", body, status=409, code="conflict")
        assert said in problem["detail"]
        await cloud.admin.end("DELETE", f"/storage-clusters/{name}")


async def with_pool(cloud: Cloud) -> FakeCeph:
    ceph = await adopted(cloud)
    await cloud.admin.create("storage-clusters", "old", mode="adopted", conf=CONF, keyring=keyring(KEY))
    await cloud.admin.create("pools", "p", cluster="old", media="hdd")
    return ceph


async def test_a_pool_that_its_cluster_does_not_delete_stays_and_says_why(cloud: Cloud) -> None:
    ceph = await with_pool(cloud)
    words = "pool deletion is disabled; you must first set the mon_allow_pool_delete config option to true"
    ceph.refuse["osd pool delete"] = CloudError(ErrorKind.FORBIDDEN, words)
    asked = await cloud.admin.do("DELETE", "/pools/p")
    seen = await shown(cloud, lambda status: status["reason"] != "being deleted", "/pools/p")
    assert words in seen["status"]["reason"]
    assert "`ceph config set mon mon_allow_pool_delete true`" in seen["status"]["reason"]
    told = (await cloud.admin.get(f"/operations/{asked['operation']['id']}"))["message"]
    assert told == seen["status"]["reason"]
    cloud.clock.advance(121)
    op = await cloud.admin.wait(asked, "failed")
    assert "the pool stays in `deleting`" in op["message"] and words in op["message"]
    assert "node" not in op["message"] and "address" not in op["message"]
    assert (await cloud.admin.get("/pools/p"))["status"]["state"] == "deleting"
    again = await cloud.admin.do("DELETE", "/pools/p")
    ceph.refuse.clear()
    await cloud.admin.wait(again)
    assert ceph.pools == {} and await cloud.admin.list("/pools") == []


async def test_a_cluster_is_let_go_though_it_does_not_delete_a_pool(cloud: Cloud) -> None:
    ceph = await with_pool(cloud)
    ceph.silent = True
    await cloud.admin.fail("DELETE", "/storage-clusters/old", status=409, code="in_use")
    asked = await cloud.admin.do("DELETE", "/pools/p")
    await shown(cloud, lambda status: "the cluster does not answer" in status["reason"], "/pools/p")
    await cloud.admin.end("DELETE", "/storage-clusters/old")
    op = await cloud.admin.wait(asked, "failed")
    assert "was let go before it had deleted the pool, which stays in it: scloud.p" in op["message"]
    assert await cloud.admin.list("/pools") == [] and cloud.rows("resource", kind="pool") == []


def of_another_cloud(ceph: FakeCeph) -> dict[str, Any]:
    """A pool of another cloud, and its node n1's key."""
    made = {"pool": "scloud.theirs", "pool_type": "replicated", "pg_num": 8, "autoscale_mode": "off"}
    ceph._do_osd_pool_create({**made, "rule": "replicated_rule"}, "")
    ceph.pools["scloud.theirs"]["application_metadata"] = {"rbd": {"scloud": "pol-theirs"}}
    reach = "profile rbd pool=scloud.theirs"
    return {"key": OTHER_KEY, "caps": {"mon": "profile rbd", "osd": reach, "mgr": reach}}


async def test_another_clouds_key_of_the_same_name_is_left_alone(cloud: Cloud) -> None:
    ceph = await adopted(cloud)
    theirs = ceph.auth["client.scloud-n1"] = of_another_cloud(ceph)
    before = {**theirs}
    spec = {"mode": "adopted", "conf": CONF, "keyring": keyring(KEY)}
    op = await cloud.admin.end("POST", "/storage-clusters", {"name": "old", "spec": spec}, state="failed")
    assert "reaches pools that are not this cloud's (scloud.theirs)" in op["message"]
    seen = await shown(cloud, lambda status: status["state"] == "error", "/storage-clusters/old")
    assert seen["status"]["reason"] == op["message"]
    assert [item["name"] for item in seen["status"]["conditions"]] == ["client-scloud-n1"]
    await cloud.admin.end("DELETE", "/storage-clusters/old")
    assert ceph.auth["client.scloud-n1"] == before and ceph.commands == []
    # Once that cloud is gone, the name is ours.
    await cloud.admin.end("POST", "/storage-clusters", {"name": "old", "spec": spec}, state="failed")
    del ceph.auth["client.scloud-n1"]
    await shown(cloud, lambda status: status["state"] == "ready", "/storage-clusters/old")


async def test_a_key_that_another_cloud_has_taken_over_is_not_fought_for(cloud: Cloud) -> None:
    ceph = await with_pool(cloud)
    second = await cloud.node("n2")
    ceph.join(second)
    theirs = ceph.auth["client.scloud-n1"] = of_another_cloud(ceph)
    ceph.auth["client.scloud-n2"] = {**theirs}
    before, looks = len(ceph.commands), ceph.looks
    asked = await cloud.admin.do("POST", "/storage-clusters/old/actions/node-add", {"node": "n2"})
    seen = await shown(cloud, lambda status: len(status["conditions"]) == 2, "/storage-clusters/old")
    assert all("another cloud has a node of that name" in item["message"] for item in seen["status"]["conditions"])
    assert seen["status"]["state"] == "ready"
    cloud.clock.advance(301)
    assert "another cloud has a node of that name" in (await cloud.admin.wait(asked, "failed"))["message"]
    # Nor is it taken away with the node.
    await cloud.admin.end("POST", "/storage-clusters/old/actions/node-remove", {"node": "n2"})
    await cloud.eventually(is_(lambda: ceph.looks > looks + 5))
    assert ceph.commands[before:] == [] and ceph.auth["client.scloud-n2"] == theirs
    assert cloud.rows("secret", name=f"client/{second.id}") == []
