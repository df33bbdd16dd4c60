"""The life of storage clusters and pools, against a fake of the cluster behind the agents' `ceph_command`."""

from __future__ import annotations

from typing import Any

import pytest

from scloud.controllers.storage import controller
from scloud.model.desired import DesiredStore, MgrDaemon, MonDaemon, OsdDaemon
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.observed import Observed
from scloud.reconcile.ceph import laggy
from support.ceph import FakeCeph
from support.cloud import Cloud
from support.node import ScriptedNode


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks follow one another at once."""
    for name in ("SOON_S", "MOVING_S", "CALM_S", "AWAY_S"):
        monkeypatch.setattr(controller, name, 0.02)


async def three_nodes(cloud: Cloud, count: int = 3) -> tuple[FakeCeph, list[ScriptedNode]]:
    nodes = [await cloud.node(f"n{number}") for number in range(1, count + 1)]
    ceph = FakeCeph()
    ceph.join(*nodes)
    return ceph, nodes


def devices(count: int = 2, nodes: int = 3, media: str = "ssd") -> list[dict[str, Any]]:
    return [
        {"node": f"n{node}", "path": f"/osd/{number}", "size_mib": 10240, "media": media}
        for node in range(1, nodes + 1)
        for number in range(count)
    ]


def store_of(node: ScriptedNode, cluster: str) -> DesiredStore:
    item = node.objects[f"store/{cluster}.{node.id}"]
    assert isinstance(item, DesiredStore)
    return item


async def deployed(cloud: Cloud, count: int = 3, per_node: int = 2) -> tuple[FakeCeph, list[ScriptedNode], str]:
    ceph, nodes = await three_nodes(cloud, count)
    made = await cloud.admin.create("storage-clusters", "c1", devices=devices(per_node, count))
    return ceph, nodes, made["id"]


async def shown(cloud: Cloud, true: Any, path: str = "/storage-clusters/c1") -> dict[str, Any]:
    """The resource once something is so of it."""
    seen: dict[str, Any] = {}

    async def so() -> bool:
        nonlocal seen
        seen = await cloud.admin.get(path)
        return bool(true(seen["status"]))

    try:
        await cloud.eventually(so)
    except TimeoutError:
        raise AssertionError(f"it never became so: {seen['status']}") from None
    return seen


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
    await cloud.eventually(_is(lambda: ceph.looks >= looks + 5))
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


async def test_a_device_is_added_and_removed_with_its_data_moved_away_first(cloud: Cloud) -> None:
    ceph, nodes, id = await deployed(cloud)
    await cloud.admin.end(
        "POST", "/storage-clusters/c1/actions/device-add", {"node": "n1", "path": "/osd/new", "size_mib": 10240}
    )
    assert len(ceph.osds) == 7
    await cloud.admin.create("pools", "p", cluster="c1")
    ceph.moving = 40
    asked = await cloud.admin.do("POST", "/storage-clusters/c1/actions/device-remove", {"device": "n1:/osd/new"})
    seen = await shown(cloud, lambda status: status["removing"])
    assert list(seen["status"]["removing"].items()) == [("osd.6 (n1:/osd/new)", "40 objects left")]
    await cloud.eventually(_is(lambda: ceph._osd(6)["in"] == 0))
    assert len(ceph.osds) == 7
    op = await cloud.admin.get(f"/operations/{asked['operation']['id']}")
    assert (op["state"], op["message"]) == ("running", "40 objects left")
    ceph.moving = 10
    await shown(cloud, lambda status: "10 objects left" in next(iter(status["removing"].values())))
    assert (await cloud.admin.get(f"/operations/{asked['operation']['id']}"))["progress"] == 75
    ceph.moving = 0
    await cloud.admin.wait(asked)
    await nodes[0].until(lambda: len(store_of(nodes[0], id).daemons) == 4)
    assert len(ceph.osds) == 6
    assert [command for command in ceph.commands if command.startswith("osd purge")] == [
        "osd purge id=6 force=True yes_i_really_mean_it=True"
    ]


async def test_a_removal_can_be_taken_back(cloud: Cloud) -> None:
    ceph, _, _ = await deployed(cloud)
    ceph.moving = 5
    removal = await cloud.admin.do("POST", "/storage-clusters/c1/actions/device-remove", {"device": "osd.0"})
    await shown(cloud, lambda status: status["removing"])
    await cloud.admin.end("POST", "/storage-clusters/c1/actions/device-keep", {"device": "0"})
    assert ceph._osd(0)["in"] == 1
    await shown(cloud, lambda status: not status["removing"])
    assert (await cloud.admin.get(f"/operations/{removal['operation']['id']}"))["state"] != "running"


async def test_what_would_lose_redundancy_or_room_is_refused(cloud: Cloud) -> None:
    ceph, _, _ = await deployed(cloud, per_node=1)
    await cloud.admin.create("pools", "p", cluster="c1")
    problem = await cloud.admin.fail(
        "POST", "/storage-clusters/c1/actions/device-remove", {"device": "osd.1"}, status=409, code="conflict"
    )
    assert "pool 'p' would lose redundancy" in problem["detail"] and "device replace" in problem["detail"]
    problem = await cloud.admin.fail(
        "POST", "/storage-clusters/c1/actions/node-remove", {"node": "n2"}, status=409, code="conflict"
    )
    assert "would lose redundancy" in problem["detail"]
    await cloud.admin.end("DELETE", "/pools/p")
    ceph.full = 0.6
    await shown(cloud, lambda status: status["osds"][0]["used_mib"] > 6000)
    problem = await cloud.admin.fail(
        "POST", "/storage-clusters/c1/actions/device-remove", {"device": "osd.1"}, status=409, code="no_capacity"
    )
    assert "80% full" in problem["detail"]


async def test_a_broken_device_is_replaced_by_an_empty_one(cloud: Cloud) -> None:
    ceph, nodes, id = await deployed(cloud, per_node=1)
    await cloud.admin.create("pools", "p", cluster="c1")
    old = next(uuid for uuid, osd in ceph.osds.items() if osd["host"] == "n2")
    ceph.dead.add(old)
    ceph.moving = 3  # what it had is missing, and there is no fourth host for it
    await cloud.admin.end("POST", "/storage-clusters/c1/actions/device-replace", {"device": "n2:/osd/0"})
    assert old not in ceph.osds and len(ceph.osds) == 3
    (fresh,) = [daemon for daemon in store_of(nodes[1], id).daemons if isinstance(daemon, OsdDaemon)]
    assert fresh.uuid != old and fresh.path == "/osd/0" and ceph.osds[fresh.uuid]["up"]


async def test_a_device_that_cannot_be_drained_goes_when_all_others_are_whole(cloud: Cloud) -> None:
    ceph, _, _ = await deployed(cloud, per_node=1)
    await cloud.admin.create("pools", "p", cluster="c1")
    ceph.moving = 3
    asked = await cloud.admin.do("POST", "/storage-clusters/c1/actions/device-replace", {"device": "n2:/osd/0"})
    seen = await shown(cloud, lambda status: status["removing"])
    assert "every other copy is whole" in str(seen["status"]["removing"])
    looks = ceph.looks
    await cloud.eventually(_is(lambda: ceph.looks > looks + 4))
    assert len(ceph.osds) == 3 and not [command for command in ceph.commands if command.startswith("osd out")]
    ceph.moving = 0
    await cloud.admin.wait(asked)
    assert len(ceph.osds) == 3


async def test_a_device_with_room_beside_it_is_drained_before_it_is_replaced(cloud: Cloud) -> None:
    ceph, _, _ = await deployed(cloud, count=4, per_node=1)
    await cloud.admin.create("pools", "p", cluster="c1")
    ceph.moving = 3
    asked = await cloud.admin.do("POST", "/storage-clusters/c1/actions/device-replace", {"device": "n2:/osd/0"})
    await shown(cloud, lambda status: "3 objects left" in str(status["removing"]))
    ceph.moving = 0
    await cloud.admin.wait(asked)
    kinds = [command.split(" ")[1] for command in ceph.commands if command.startswith(("osd out", "osd purge"))]
    assert kinds == ["out", "purge"] and len(ceph.osds) == 4


async def test_a_node_leaves_with_its_daemons_and_another_takes_its_part(cloud: Cloud) -> None:
    ceph, nodes, id = await deployed(cloud, count=4, per_node=1)
    await cloud.admin.create("pools", "p", cluster="c1")
    await cloud.admin.end("POST", "/storage-clusters/c1/actions/node-remove", {"node": "n1"})
    spec = (await cloud.admin.get("/storage-clusters/c1"))["spec"]
    assert nodes[0].id not in spec["nodes"] and len(spec["monitors"]) == 3 and len(spec["devices"]) == 3
    assert any(isinstance(daemon, MonDaemon) for daemon in store_of(nodes[3], id).daemons)
    assert any(isinstance(daemon, MgrDaemon) for daemon in store_of(nodes[2], id).daemons)
    await cloud.eventually(_is(lambda: ceph.monitors == {"n2", "n3", "n4"}))
    await cloud.eventually(_is(lambda: not {"client.scloud-n1", "mgr.n1"} & ceph.auth.keys()))
    await cloud.eventually(_is(lambda: f"store/{id}.{nodes[0].id}" not in nodes[0].objects))
    await cloud.eventually(_is(lambda: "n1" not in ceph.places))
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


def _is(true: Any) -> Any:
    async def asked() -> bool:
        return bool(true())

    return asked


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


async def test_a_device_that_vanishes_while_it_is_added_ends_in_its_reason(cloud: Cloud) -> None:
    ceph, nodes, _ = await deployed(cloud)
    usual = nodes[0].stores

    def vanished(item: DesiredStore) -> Observed:
        said = usual(item)
        if not any(isinstance(daemon, OsdDaemon) and daemon.path == "/dev/sdz" for daemon in item.daemons):
            return said
        reason = "there is no device /dev/sdz on this node"
        return said.model_copy(update={"state": "error", "reason": reason})

    nodes[0].stores = vanished  # type: ignore[method-assign]
    add = ("POST", "/storage-clusters/c1/actions/device-add", {"node": "n1", "path": "/dev/sdz"})
    ceph.broken.add("/dev/sdz")
    op = await cloud.admin.end(*add, state="failed")
    assert "no device /dev/sdz" in op["message"] and "device remove" in op["message"]
    await cloud.admin.end("POST", "/storage-clusters/c1/actions/device-remove", {"device": "n1:/dev/sdz"})
    assert len((await cloud.admin.get("/storage-clusters/c1"))["spec"]["devices"]) == 6
    nodes[0].stores = usual  # type: ignore[method-assign]
    ceph.broken.clear()
    await cloud.admin.end(*add)
    assert len(ceph.osds) == 7


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
        await cloud.eventually(_is(lambda looks=looks: ceph.looks > looks + 3))
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
    await cloud.admin.wait(asked)
    assert await cloud.admin.list("/storage-clusters") == [] and len(cloud.rows("resource", id=id)) == 1
    await cloud.admin.end("DELETE", "/nodes/n3?force=true")
    await cloud.until_gone(id)


async def test_a_dead_node_that_is_removed_is_purged_from_its_cluster(cloud: Cloud) -> None:
    ceph, nodes, _ = await deployed(cloud, count=4)
    await cloud.lose(nodes[3])
    nodes[3].objects.clear()
    await cloud.admin.end("DELETE", "/nodes/n4?force=true")
    await shown(cloud, lambda status: len(status["osds"]) == 6)
    assert len((await cloud.admin.get("/storage-clusters/c1"))["spec"]["devices"]) == 6
    await cloud.eventually(_is(lambda: "client.scloud-n4" not in ceph.auth and "n4" not in ceph.places))


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


# --- adopted


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
