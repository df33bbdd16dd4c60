"""Devices of storage clusters: added, drained, replaced, kept; what is refused for want of redundancy or room."""

from __future__ import annotations

import pytest

from scloud.model.desired import DesiredStore, OsdDaemon
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.observed import Observed
from support.cloud import Cloud
from support.storage_clusters import deployed, is_, look_at_once, shown, store_of


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    look_at_once(monkeypatch)


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
    await cloud.eventually(is_(lambda: ceph._osd(6)["in"] == 0))
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
    op = await cloud.admin.wait(removal, "cancelled")
    assert op["message"] == "taken back: the device is kept"


async def test_what_was_asked_of_a_device_ends_cancelled_when_something_else_is_asked(cloud: Cloud) -> None:
    ceph, nodes, _ = await deployed(cloud, count=4)
    ceph.moving = 5
    actions = "/storage-clusters/c1/actions"
    ceph.broken.add("/osd/new")
    add = await cloud.admin.do("POST", f"{actions}/device-add", {"node": "n1", "path": "/osd/new", "size_mib": 10240})
    await cloud.admin.do("POST", f"{actions}/device-remove", {"device": "n1:/osd/new"})
    assert (await cloud.admin.wait(add, "cancelled"))["message"] == "replaced by storage-cluster.device-remove"

    replacing = await cloud.admin.do("POST", f"{actions}/device-replace", {"device": "osd.0"})
    removal = await cloud.admin.do("POST", f"{actions}/device-remove", {"device": "osd.0"})
    assert (await cloud.admin.wait(replacing, "cancelled"))["message"] == "replaced by storage-cluster.device-remove"
    replacing = await cloud.admin.do("POST", f"{actions}/device-replace", {"device": "osd.0"})
    assert (await cloud.admin.wait(removal, "cancelled"))["message"] == "replaced by storage-cluster.device-replace"

    leaving = await cloud.admin.do("POST", f"{actions}/node-remove", {"node": "n1"})
    assert (await cloud.admin.wait(replacing, "cancelled"))["message"] == "replaced by storage-cluster.node-remove"
    await cloud.admin.do("POST", f"{actions}/device-keep", {"device": "osd.0"})
    op = await cloud.admin.wait(leaving, "cancelled")
    assert op["message"].startswith("taken back: the device is kept, and its node stays; the other devices of its node")

    # What is asked of a device goes with its node, unless that was to go anyway.
    replacing = await cloud.admin.do("POST", f"{actions}/device-replace", {"device": "n4:/osd/0"})
    removal = await cloud.admin.do("POST", f"{actions}/device-remove", {"device": "n4:/osd/1"})
    await cloud.lose(nodes[3])
    nodes[3].objects.clear()
    await cloud.admin.end("DELETE", "/nodes/n4?force=true")
    assert "its node was removed from the cloud" in (await cloud.admin.wait(replacing, "cancelled"))["message"]
    assert (await cloud.admin.wait(removal))["message"] == "removed"


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


async def test_what_must_stay_on_its_host_needs_room_there(cloud: Cloud) -> None:
    ceph, _, _ = await deployed(cloud)
    await cloud.admin.create("pools", "p", cluster="c1")
    ceph.full = 0.6
    await shown(cloud, lambda status: status["osds"][0]["used_mib"] > 6000)
    actions = "/storage-clusters/c1/actions"
    for verb in ("device-remove", "device-replace"):
        problem = await cloud.admin.fail(
            "POST", f"{actions}/{verb}", {"device": "osd.0"}, status=409, code="no_capacity"
        )
        assert "stay in host n1 have 10240 MiB, and 12288 MiB would be on them" in problem["detail"]
    # On a third device beside them there is room, for one and not for two, whether the first is seen to leave or not.
    await cloud.admin.end("POST", f"{actions}/device-add", {"node": "n1", "path": "/osd/new", "size_mib": 10240})
    ceph.full = 0.5
    await shown(cloud, lambda status: {osd["used_mib"] for osd in status["osds"]} == {5120})
    ceph.moving = 3
    ceph.refuse["osd out"] = CloudError(ErrorKind.ENGINE, "not now")
    await cloud.admin.do("POST", f"{actions}/device-remove", {"device": "osd.0"})
    for _ in range(2):
        problem = await cloud.admin.fail(
            "POST", f"{actions}/device-remove", {"device": "osd.1"}, status=409, code="no_capacity"
        )
        assert "have 10240 MiB, and 15360 MiB would be on them" in problem["detail"]
        ceph.refuse.clear()
        await shown(cloud, lambda status: [osd["osd"] for osd in status["osds"] if not osd["taken_in"]] == [0])


async def test_what_is_filled_in_place_needs_no_room_but_another_copy(cloud: Cloud) -> None:
    ceph, _, _ = await deployed(cloud, per_node=1)
    await cloud.admin.create("pools", "p", cluster="c1")
    await cloud.admin.create("pools", "single", cluster="c1", redundancy="replica:1")
    ceph.full = 0.8
    await shown(cloud, lambda status: status["osds"][0]["used_mib"] > 8000)
    replace = ("POST", "/storage-clusters/c1/actions/device-replace", {"device": "n2:/osd/0"})
    problem = await cloud.admin.fail(*replace, status=409, code="conflict")
    assert "pool 'single' has one copy of everything" in problem["detail"]
    await cloud.admin.end("DELETE", "/pools/single")
    ceph.moving = 3
    asked = await cloud.admin.do(*replace)
    problem = await cloud.admin.fail(
        "POST", "/storage-clusters/c1/actions/device-remove", {"device": "n2:/osd/0"}, status=409, code="conflict"
    )
    assert "would lose redundancy" in problem["detail"]
    ceph.moving = 0
    await cloud.admin.wait(asked)
    assert len(ceph.osds) == 3


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


async def test_a_dead_device_whose_data_find_no_room_is_replaced_all_the_same(cloud: Cloud) -> None:
    """Two devices a node, and a pool that needs every node: what one had can only go to its neighbour."""
    ceph, _, _ = await deployed(cloud)
    await cloud.admin.create("pools", "p", cluster="c1")
    old = next(uuid for uuid, osd in ceph.osds.items() if osd["host"] == "n2")
    number = ceph.osds[old]["osd"]
    ceph.dead.add(old)
    ceph.moving = 3
    await shown(cloud, lambda status: not next(osd for osd in status["osds"] if osd["osd"] == number)["up"])
    asked = await cloud.admin.do("POST", "/storage-clusters/c1/actions/device-replace", {"device": f"osd.{number}"})
    await shown(cloud, lambda status: "3 objects left" in str(status["removing"]))
    looks = ceph.looks
    await cloud.eventually(is_(lambda: ceph.looks > looks + 4))
    assert old in ceph.osds, "its data are still being made whole on others"
    ceph.toofull = True
    await cloud.admin.wait(asked)
    assert old not in ceph.osds and len(ceph.osds) == 6 and ceph.moving == 3


@pytest.mark.parametrize("taken_in", [True, False])
async def test_a_dead_device_whose_data_have_no_room_beside_it_is_replaced_at_once(
    cloud: Cloud, taken_in: bool
) -> None:
    """Nothing is moved meanwhile: its neighbour would be filled to the brim by what soon goes back."""
    ceph, _, _ = await deployed(cloud)
    await cloud.admin.create("pools", "p", cluster="c1")
    ceph.full = 0.6
    await shown(cloud, lambda status: status["osds"][0]["used_mib"] > 6000)
    old = next(uuid for uuid, osd in ceph.osds.items() if osd["host"] == "n2")
    number = ceph.osds[old]["osd"]
    ceph.dead.add(old)
    ceph.osds[old]["in"] = int(taken_in)
    ceph.moving = 3
    await shown(cloud, lambda status: not next(osd for osd in status["osds"] if osd["osd"] == number)["up"])
    await cloud.admin.end("POST", "/storage-clusters/c1/actions/device-replace", {"device": f"osd.{number}"})
    assert old not in ceph.osds and len(ceph.osds) == 6 and ceph.moving == 3


async def test_the_only_copy_on_a_dead_device_is_not_given_up_for_want_of_room(cloud: Cloud) -> None:
    ceph, _, _ = await deployed(cloud)
    await cloud.admin.create("pools", "p", cluster="c1")
    await cloud.admin.create("pools", "single", cluster="c1", redundancy="replica:1")
    ceph.full = 0.6
    await shown(cloud, lambda status: status["osds"][0]["used_mib"] > 6000)
    old = next(uuid for uuid, osd in ceph.osds.items() if osd["host"] == "n2")
    ceph.dead.add(old)
    await shown(cloud, lambda status: not all(osd["up"] for osd in status["osds"]))
    body = {"device": f"osd.{ceph.osds[old]['osd']}"}
    await cloud.admin.fail("POST", "/storage-clusters/c1/actions/device-replace", body, status=409, code="no_capacity")
    assert old in ceph.osds


async def test_a_device_that_cannot_be_drained_goes_when_all_others_are_whole(cloud: Cloud) -> None:
    ceph, _, _ = await deployed(cloud, per_node=1)
    await cloud.admin.create("pools", "p", cluster="c1")
    ceph.moving = 3
    asked = await cloud.admin.do("POST", "/storage-clusters/c1/actions/device-replace", {"device": "n2:/osd/0"})
    seen = await shown(cloud, lambda status: status["removing"])
    assert "every other copy is whole" in str(seen["status"]["removing"])
    looks = ceph.looks
    await cloud.eventually(is_(lambda: ceph.looks > looks + 4))
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
