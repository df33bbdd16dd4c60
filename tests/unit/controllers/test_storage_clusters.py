"""The life of storage clusters and pools, against a fake of the cluster behind the agents' `ceph_command`."""

from __future__ import annotations

from typing import Any

import pytest

from scloud.controllers.storage import controller
from scloud.model.desired import MgrDaemon, MonDaemon
from scloud.model.errors import CloudError, ErrorKind
from support.cloud import Cloud
from support.storage_clusters import deployed, devices, is_, look_at_once, shown, store_of, three_nodes


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    look_at_once(monkeypatch)


async def test_a_cluster_is_deployed_and_each_node_has_a_key_of_its_own(cloud: Cloud) -> None:
    ceph, nodes, id = await deployed(cloud)
    status = (await cloud.admin.get("/storage-clusters/c1"))["status"]
    assert status["state"] == "ready" and status["monitors_up"] == ["n1", "n2", "n3"]
    assert status["version"] == "16.2.15"
    assert [osd["node"] for osd in status["osds"]] == ["n1", "n1", "n2", "n2", "n3", "n3"]
    assert status["conditions"] == []
    assert ceph.config["osd", "osd_max_backfills"] == "1"
    keys = {store_of(node, id).client_key for node in nodes}
    assert len(keys) == 3 and "" not in keys
    for node in nodes:
        entry = ceph.auth[f"client.scloud-{node.name}"]
        assert entry == {"key": store_of(node, id).client_key, "caps": {"mon": "profile rbd"}}
    # Nothing is left to be done: looking again and again changes nothing.
    before, looks = len(ceph.commands), ceph.looks
    await cloud.eventually(is_(lambda: ceph.looks >= looks + 5))
    assert ceph.commands[before:] == []


async def test_pools_are_made_their_nodes_told_and_their_users_protected(cloud: Cloud) -> None:
    ceph, nodes, id = await deployed(cloud)
    pool = await cloud.admin.create("pools", "fast", cluster="c1", redundancy="replica:3", media="ssd")
    inside = ceph.pools["scloud.fast"]
    assert (inside["size"], inside["min_size"], inside["application_metadata"]) == (
        3,
        2,
        {"rbd": {"scloud": pool["id"]}},
    )
    assert ceph.rules["scloud-host-ssd"] == inside["crush_rule"]
    assert (pool["status"]["state"], pool["status"]["accepts_new"]) == ("ready", True)
    for node in nodes:
        key = f"store/{id}.{node.id}"
        await node.until(lambda key=key, node=node: bool(node.objects[key].pools))  # type: ignore[misc,union-attr]
        assert [(item.id, item.name) for item in store_of(node, id).pools] == [(pool["id"], "scloud.fast")]
        assert ceph.auth[f"client.scloud-{node.name}"]["caps"]["osd"] == "profile rbd pool=scloud.fast"
    await cloud.admin.create("disk-types", "performance", pool="fast")
    used = await cloud.admin.fail("DELETE", "/pools/fast", status=409, code="in_use")
    assert used["users"] == ["disk-type performance"]
    used = await cloud.admin.fail("DELETE", "/storage-clusters/c1", status=409, code="in_use")
    assert used["users"] == ["pool fast"]
    await cloud.admin.end("DELETE", "/disk-types/performance")
    await cloud.admin.end("DELETE", "/pools/fast")
    assert ceph.pools == {} and await cloud.admin.list("/pools") == []
    await nodes[0].until(lambda: store_of(nodes[0], id).pools == ())


async def test_an_erasure_coded_pool_has_metadata_of_its_own(cloud: Cloud) -> None:
    ceph, nodes, id = await deployed(cloud, count=6, per_node=1)
    await cloud.admin.create("pools", "wide", cluster="c1", redundancy="ec:4+2")
    data, metadata = ceph.pools["scloud.wide.data"], ceph.pools["scloud.wide"]
    assert (data["type"], data["min_size"], data["flags_names"]) == (3, 5, ",ec_overwrites")
    assert (metadata["type"], metadata["size"], metadata["min_size"]) == (1, 3, 2)
    store = store_of(nodes[0], id)
    await nodes[0].until(lambda: bool(store_of(nodes[0], id).pools))
    store = store_of(nodes[0], id)
    assert (store.pools[0].name, store.pools[0].data_name) == ("scloud.wide", "scloud.wide.data")
    assert "scloud.wide.data" in ceph.auth["client.scloud-n1"]["caps"]["osd"]
    await cloud.admin.end("DELETE", "/pools/wide")
    assert ceph.pools == {} and ceph.profiles == {"default"} and "scloud.wide.data" not in ceph.rules


async def test_one_additional_chunk_is_warned_of_and_its_metadata_have_three_copies(cloud: Cloud) -> None:
    ceph, _, _ = await deployed(cloud, per_node=1)
    pool = await cloud.admin.create("pools", "thin", cluster="c1", redundancy="ec:2+1")
    assert (ceph.pools["scloud.thin"]["size"], ceph.pools["scloud.thin"]["min_size"]) == (3, 2)
    (said,) = pool["status"]["conditions"]
    assert said["name"] == "thin-redundancy" and "only while all 3 chunks are there" in said["message"]
    # One that was made with two copies is brought to three.
    ceph.pools["scloud.thin"] |= {"size": 2, "min_size": 1}
    await cloud.eventually(is_(lambda: ceph.pools["scloud.thin"]["size"] == 3))
    await cloud.eventually(is_(lambda: ceph.pools["scloud.thin"]["min_size"] == 2))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"redundancy": "ec:4+2"}, ["has 3 (n1, n2, n3)", "ec:2+1 over hosts", "replica:3", "3 more hosts"]),
        ({"fault_domain": "rack"}, ["3 copies on different racks", "fault domain host", "rack=NAME"]),
        ({"media": "hdd"}, ["no hdd devices, only ssd"]),
        ({"redundancy": "replica:5"}, ["5 copies", "replica:3", "2 more hosts"]),
    ],
)
async def test_what_the_cluster_cannot_keep_is_refused_with_what_would_do(
    cloud: Cloud, spec: dict[str, str], said: list[str]
) -> None:
    ceph, _, _ = await deployed(cloud, per_node=1)
    body = {"name": "p", "spec": {"cluster": "c1", **spec}}
    problem = await cloud.admin.fail("POST", "/pools", body, status=409, code="conflict")
    for part in said:
        assert part in problem["detail"], problem["detail"]
    assert await cloud.admin.list("/pools") == [] and ceph.pools == {}


async def test_somebody_elses_pool_of_that_name_is_left_alone(cloud: Cloud) -> None:
    ceph, _, _ = await deployed(cloud, per_node=1)
    ceph.rules["theirs"] = 7
    made = {"pool": "scloud.p", "pool_type": "replicated", "rule": "theirs", "pg_num": 8, "autoscale_mode": "on"}
    ceph._do_osd_pool_create(made, "")
    ceph.pools["scloud.p"]["application_metadata"] = {"rgw": {}}
    before = dict(ceph.pools["scloud.p"])
    body = {"name": "p", "spec": {"cluster": "c1"}}
    op = await cloud.admin.end("POST", "/pools", body, state="failed")
    assert "somebody else made" in op["message"]
    await cloud.admin.end("DELETE", "/pools/p")
    assert ceph.pools["scloud.p"] == before


async def test_a_node_leaves_with_its_daemons_and_another_takes_its_part(cloud: Cloud) -> None:
    ceph, nodes, id = await deployed(cloud, count=4, per_node=1)
    await cloud.admin.create("pools", "p", cluster="c1")
    await cloud.admin.end("POST", "/storage-clusters/c1/actions/node-remove", {"node": "n1"})
    spec = (await cloud.admin.get("/storage-clusters/c1"))["spec"]
    assert nodes[0].id not in spec["nodes"] and len(spec["monitors"]) == 3 and len(spec["devices"]) == 3
    assert any(isinstance(daemon, MonDaemon) for daemon in store_of(nodes[3], id).daemons)
    assert any(isinstance(daemon, MgrDaemon) for daemon in store_of(nodes[2], id).daemons)
    await cloud.eventually(is_(lambda: ceph.monitors == {"n2", "n3", "n4"}))
    await cloud.eventually(is_(lambda: not {"client.scloud-n1", "mgr.n1"} & ceph.auth.keys()))
    await cloud.eventually(is_(lambda: f"store/{id}.{nodes[0].id}" not in nodes[0].objects))
    await cloud.eventually(is_(lambda: "n1" not in ceph.places))
    await cloud.admin.end("POST", "/storage-clusters/c1/actions/node-add", {"node": "n1"})
    assert "client.scloud-n1" in ceph.auth


async def test_the_only_monitor_is_not_stopped_before_its_successor_leads(cloud: Cloud) -> None:
    ceph, nodes, _ = await deployed(cloud, count=2, per_node=1)
    assert ceph.monitors == {"n1"}
    await cloud.admin.end("POST", "/storage-clusters/c1/actions/node-remove", {"node": "n1"})
    assert ceph.monitors == {"n2"} and [command for command in ceph.commands if command.startswith("mon ")] == [
        "mon remove name=n1"
    ]
    spec = (await cloud.admin.get("/storage-clusters/c1"))["spec"]
    assert spec["monitors"] == [nodes[1].id] and spec["mon_host"] == "[v2:192.0.2.2:7000]"
    problem = await cloud.admin.fail(
        "POST", "/storage-clusters/c1/actions/node-remove", {"node": "n2"}, status=409, code="conflict"
    )
    assert "the last of cluster" in problem["detail"]
    await cloud.admin.end("POST", "/storage-clusters/c1/actions/node-add", {"node": "n1"})
    await shown(cloud, lambda status: status["state"] == "ready")


async def test_disks_of_a_node_that_leaves_are_looked_after_by_another(cloud: Cloud) -> None:
    _, nodes, _ = await deployed(cloud, count=4, per_node=1)
    await cloud.admin.create("pools", "p", cluster="c1")
    await cloud.admin.create("disk-types", "shared", pool="p")
    disks = [await cloud.alice.create("disks", f"d{number}", size_mib=64, type="shared") for number in range(8)]
    assert cloud.rows("node_usage", node=(await cloud.admin.get("/pools/p"))["id"])[0]["disk_mib"] == 8 * 64
    await shown(cloud, lambda status: status["capacity"]["provisioned_mib"] == 512, "/pools/p")
    await cloud.admin.fail("DELETE", "/pools/p", status=409, code="in_use")
    await cloud.admin.end("POST", "/storage-clusters/c1/actions/node-remove", {"node": "n1"})
    for disk in disks:
        (row,) = cloud.rows("resource", id=disk["id"])
        assert row["node"] not in (None, nodes[0].id)


async def test_maintenance_concerns_one_host_and_settings_all(cloud: Cloud) -> None:
    ceph, _, _ = await deployed(cloud)
    await cloud.admin.end("POST", "/storage-clusters/c1/actions/maintenance", {"node": "n2", "on": True})
    assert ceph.noout == {"n2"}
    await cloud.admin.end("POST", "/storage-clusters/c1/actions/maintenance", {"node": "n2", "on": False})
    assert ceph.noout == set()
    settings = {"recovery_profile": "recovery", "scrub_begin_hour": 22, "scrub_end_hour": 6, "deep_scrub_days": 3}
    await cloud.admin.end("PATCH", "/storage-clusters/c1", {"spec": settings})
    assert ceph.config["osd", "osd_max_backfills"] == "8" and ceph.config["osd", "osd_scrub_begin_hour"] == "22"
    assert ceph.config["osd", "osd_deep_scrub_interval"] == "259200.0"


async def test_who_asks_for_a_fresh_look_gets_one(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    ceph, _, _ = await deployed(cloud)
    for name in ("SOON_S", "MOVING_S", "CALM_S"):
        monkeypatch.setattr(controller, name, 3600.0)
    await cloud.admin.get("/storage-clusters/c1", fresh=True)
    ceph.full = 0.100001  # a change that is not worth a write
    looks = ceph.looks
    before = (await cloud.admin.get("/storage-clusters/c1"))["status"]["observed_at"]
    cloud.clock.advance(5.0)
    assert (await cloud.admin.get("/storage-clusters/c1"))["status"]["observed_at"] == before
    seen = await cloud.admin.get("/storage-clusters/c1", fresh=True)
    assert seen["status"]["observed_at"] > before and ceph.looks == looks + 1


async def test_a_pool_near_full_takes_nothing_new_and_says_so_before(cloud: Cloud) -> None:
    ceph, _, _ = await deployed(cloud)
    await cloud.admin.create("pools", "p", cluster="c1")
    ceph.full = 0.81
    seen = await shown(cloud, lambda status: status["conditions"], "/pools/p")
    assert seen["status"]["conditions"][0]["name"] == "filling-up" and seen["status"]["accepts_new"]
    ceph.full = 0.86
    seen = await shown(cloud, lambda status: not status["accepts_new"], "/pools/p")
    assert "no new disks are made" in seen["status"]["conditions"][0]["message"]
    ceph.full = 0.84
    await shown(cloud, lambda status: "84%" in status["conditions"][0]["message"], "/pools/p")
    assert not (await cloud.admin.get("/pools/p"))["status"]["accepts_new"]
    ceph.full = 0.5
    await shown(cloud, lambda status: status["accepts_new"], "/pools/p")


async def test_a_cluster_that_is_silent_hurts_only_itself(cloud: Cloud) -> None:
    ceph, _, _ = await deployed(cloud)
    await cloud.admin.create("pools", "p", cluster="c1")
    ceph.silent = True
    seen = await shown(cloud, lambda status: status["state"] == "unknown")
    assert seen["status"]["conditions"][0]["name"] == "unreachable"
    await shown(cloud, lambda status: not status["accepts_new"], "/pools/p")
    await cloud.image()
    await cloud.alice.create("vms", "a", image="micro")
    ceph.silent = False
    await shown(cloud, lambda status: status["state"] == "ready" and not status["conditions"])
    await shown(cloud, lambda status: status["accepts_new"], "/pools/p")


async def test_a_node_that_does_not_answer_is_passed_over(cloud: Cloud) -> None:
    ceph, nodes, _ = await deployed(cloud)

    def deaf(params: dict[str, Any]) -> Any:
        raise CloudError(ErrorKind.UNAVAILABLE, "this node reaches no monitor")

    for node in nodes[:2]:
        working, node.answers["ceph_command"] = node.answers["ceph_command"], deaf
        looks = ceph.looks
        await cloud.eventually(is_(lambda looks=looks: ceph.looks > looks + 3))
        node.answers["ceph_command"] = working
    status = (await cloud.admin.get("/storage-clusters/c1"))["status"]
    assert status["state"] == "ready"
    told = await cloud.admin.list("/events", resource="c1", all_accounts=True)
    assert not any(event["level"] == "error" for event in told)


async def test_a_refused_command_is_told_and_tried_again(cloud: Cloud) -> None:
    ceph, _, _ = await deployed(cloud)
    ceph.refuse["osd pool create"] = CloudError(ErrorKind.ENGINE, "pg_num 64 is too large")
    await cloud.admin.do("POST", "/pools", {"name": "p", "spec": {"cluster": "c1"}})
    seen = await shown(cloud, lambda status: status["state"] == "error", "/pools/p")
    assert "pg_num 64 is too large" in seen["status"]["reason"]
    ceph.refuse.clear()
    await shown(cloud, lambda status: status["state"] == "ready", "/pools/p")


async def test_deleting_a_cluster_removes_it_from_its_nodes(cloud: Cloud) -> None:
    _, nodes, id = await deployed(cloud)
    nodes[2].holding = True
    asked = await cloud.admin.do("DELETE", "/storage-clusters/c1")
    await shown(cloud, lambda status: status["reason"].startswith("waiting for n3"))
    assert store_of(nodes[0], id).absent and len(store_of(nodes[0], id).daemons) > 0
    await nodes[2].release()
    await cloud.admin.wait(asked)
    await cloud.until_gone(id)
    assert cloud.rows("secret") == [] and cloud.rows("sample") == [] and cloud.rows("claim", scope="ceph-ports") == []


async def test_a_deletion_ends_though_a_node_is_dead(cloud: Cloud) -> None:
    _, nodes, id = await deployed(cloud)
    await cloud.lose(nodes[2])
    asked = await cloud.admin.do("DELETE", "/storage-clusters/c1")
    await shown(cloud, lambda status: status["reason"].startswith("waiting for n3"))
    cloud.clock.advance(3600)
    op = await cloud.admin.wait(asked)
    assert op["message"].startswith("deleted; waiting for n3") and "its ports stay reserved" in op["message"]
    assert "address" not in op["message"]
    assert await cloud.admin.list("/storage-clusters") == [] and len(cloud.rows("resource", id=id)) == 1
    await cloud.admin.end("DELETE", "/nodes/n3?force=true")
    await cloud.until_gone(id)


async def test_a_pool_goes_out_of_sight_with_its_cluster(cloud: Cloud) -> None:
    ceph, nodes, id = await deployed(cloud)
    pool = await cloud.admin.create("pools", "p", cluster="c1")
    ceph.silent = True
    of_pool = await cloud.admin.do("DELETE", "/pools/p")
    await cloud.lose(nodes[2])
    asked = await cloud.admin.do("DELETE", "/storage-clusters/c1")
    await shown(cloud, lambda status: status["reason"].startswith("waiting for n3"))
    cloud.clock.advance(3600)
    await cloud.admin.wait(asked)
    await cloud.eventually(is_(lambda: cloud.rows("operation", id=of_pool["operation"]["id"])[0]["finished_at"]))
    assert await cloud.admin.list("/pools") == [] and len(cloud.rows("resource", id=pool["id"])) == 1
    await cloud.admin.end("DELETE", "/nodes/n3?force=true")
    await cloud.until_gone(id)
    assert cloud.rows("resource", id=pool["id"]) == []


async def test_a_dead_node_that_is_removed_is_purged_from_its_cluster(cloud: Cloud) -> None:
    ceph, nodes, _ = await deployed(cloud, count=4)
    await cloud.lose(nodes[3])
    nodes[3].objects.clear()
    await cloud.admin.end("DELETE", "/nodes/n4?force=true")
    await shown(cloud, lambda status: len(status["osds"]) == 6)
    assert len((await cloud.admin.get("/storage-clusters/c1"))["spec"]["devices"]) == 6
    await cloud.eventually(is_(lambda: "client.scloud-n4" not in ceph.auth and "n4" not in ceph.places))


async def test_the_manager_may_die_at_any_moment(cloud: Cloud) -> None:
    ceph, _ = await three_nodes(cloud)
    made = await cloud.admin.do("POST", "/storage-clusters", {"name": "c1", "spec": {"devices": devices()}})
    await cloud.restart()
    await shown(cloud, lambda status: status["state"] == "ready")
    await cloud.admin.wait(made)
    ceph.moving = 7
    await cloud.admin.do("POST", "/storage-clusters/c1/actions/device-remove", {"device": "osd.0"})
    await cloud.restart()
    ceph.moving = 0
    await shown(cloud, lambda status: len(status["osds"]) == 5)
    await cloud.admin.do("DELETE", "/storage-clusters/c1")
    await cloud.restart()
    await cloud.until_gone(made["resource"]["id"])


async def test_audit_knows_storage_daemons(cloud: Cloud) -> None:
    _, nodes, id = await deployed(cloud, per_node=1)
    status = (await cloud.admin.get("/storage-clusters/c1"))["status"]
    number = next(osd["osd"] for osd in status["osds"] if osd["node"] == "n1")
    have = {node.name: [f"{id}/mon.{node.name}"] for node in nodes}
    for node in nodes[:2]:
        have[node.name].append(f"{id}/mgr.{node.name}")
    for osd in status["osds"]:
        have[osd["node"]].append(f"{id}/osd.{osd['osd']}")
    for node in nodes:
        node.answers["inventory"] = lambda _, name=node.name: {"daemons": have[name]}
    assert (await cloud.admin.get("/audit"))["findings"] == []
    have["n1"].remove(f"{id}/osd.{number}")
    have["n2"] += [f"{id}/osd.77", "stc-none/mon.a"]
    found = (await cloud.admin.get("/audit"))["findings"]
    assert {(item["node"], item["key"]) for item in found} == {
        ("n1", f"{id}/osd.{number}"),
        ("n2", f"{id}/osd.77"),
        ("n2", "stc-none/mon.a"),
    }


async def test_audit_names_keys_of_nobody(cloud: Cloud) -> None:
    ceph, nodes, id = await deployed(cloud, per_node=1)
    for node in nodes:
        mine = [name for name in ("mon", "mgr") if name == "mon" or node is not nodes[2]]
        osds = (await cloud.admin.get("/storage-clusters/c1"))["status"]["osds"]
        have = [f"{id}/{name}.{node.name}" for name in mine]
        have += [f"{id}/osd.{osd['osd']}" for osd in osds if osd["node"] == node.name]
        node.answers["inventory"] = lambda _, have=have: {"daemons": have}
    number = next(iter(ceph.osds.values()))["osd"]
    ceph.auth[f"osd.{number}"] = ceph.auth["client.bootstrap-mds"] = {"key": "k", "caps": {}}
    assert (await cloud.admin.get("/audit"))["findings"] == []
    for name in ("client.scloud-n9", "osd.77", "client.friend"):
        ceph.auth[name] = {"key": "k", "caps": {}}
    found = {item["key"]: item for item in (await cloud.admin.get("/audit"))["findings"]}
    assert {key: item["severity"] for key, item in found.items()} == {
        f"{id}/client.scloud-n9": "error",
        f"{id}/osd.77": "error",
        f"{id}/client.friend": "warning",
    }
    assert "'c1'" in found[f"{id}/osd.77"]["message"]
    for key, item in found.items():
        assert f"ceph auth del {key.split('/')[1]}" in item["message"]
    ceph.silent = True
    (silent,) = (await cloud.admin.get("/audit"))["findings"]
    assert silent["key"] == id and "did not say" in silent["message"]
