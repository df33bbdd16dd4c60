"""The audit names what dead processes and nodes that are gone have left in pools and storage clusters."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from scloud.controllers.storage import controller
from support.ceph import FakeCeph
from support.cloud import Cloud
from support.pools import make_pool

GONE = "nod-00000000000gone0"
DEAD = "10.0.0.9:0/1"


async def findings(cloud: Cloud) -> dict[str, dict[str, Any]]:
    """But for that a cluster, of which there is nothing but a row, does not answer."""
    found: list[dict[str, Any]] = (await cloud.admin.get("/audit"))["findings"]
    found = [item for item in found if "did not say" not in item["message"]]
    assert len({item["key"] for item in found}) == len(found), "each is told of once"
    return {item["key"]: item for item in found}


async def test_what_is_left_in_a_pool_is_named_with_what_becomes_of_it(cloud: Cloud) -> None:
    ids = [(await cloud.node(name)).id for name in ("n1", "n2")]
    await cloud.image()
    pool = await cloud.store.write(lambda tx: make_pool(tx, ids))
    disk = (await cloud.alice.create("disks", "data", size_mib=100, type="standard"))["id"]
    unfinished = f".tmp.{GONE}.dsk-1.0.0badcafe.7"
    assert await findings(cloud) == {}
    for node in cloud.nodes.values():
        node.pool_left = [
            {
                "pool": pool,
                "partials": [(GONE, unfinished), (ids[0], f".tmp.{ids[0]}.dsk-2.0.0badcafe.8")],
                "half_removed": ["disk/dsk-0000000000000000"],
                "trash": ["somebodys"],
                "locks": [(f"disk/{disk}", DEAD)],
            }
        ]
    found = await findings(cloud)
    assert {key: item["severity"] for key, item in found.items()} == {
        f"partial/{pool}/{unfinished}": "error",
        "disk/dsk-0000000000000000": "error",
        f"trash/{pool}/somebodys": "warning",
        f"disk/{disk}": "warning",
    }
    assert f"`rbd rm p/{unfinished}`" in found[f"partial/{pool}/{unfinished}"]["message"]
    assert "by itself" in found["disk/dsk-0000000000000000"]["message"]
    assert f"locked by {DEAD}, which is gone" in found[f"disk/{disk}"]["message"]
    assert "pool 'p-standard'" in found[f"trash/{pool}/somebodys"]["message"]


async def test_what_is_being_removed_now_is_no_finding(cloud: Cloud) -> None:
    node = await cloud.node("n1")
    await cloud.image()
    pool = await cloud.store.write(lambda tx: make_pool(tx, [node.id]))
    disk = (await cloud.alice.create("disks", "data", size_mib=100, type="standard"))["id"]
    node.pool_left = [{"pool": pool, "half_removed": [f"disk/{disk}"]}]
    found = await findings(cloud)
    assert "what it was before" in found[f"disk/{disk}"]["message"], "nobody is at work on a disk that is ready"
    node.holding = True
    await cloud.alice.do("DELETE", f"/disks/{disk}?now=true")
    assert await findings(cloud) == {}


def until(years: float) -> str:
    end = datetime.fromtimestamp(datetime.now(UTC).timestamp() + years * 365 * 86400, UTC)
    return end.strftime("%Y-%m-%dT%H:%M:%S.%f+0000")


async def test_who_is_cut_off_for_nothing_is_named(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SOON_S", "MOVING_S", "CALM_S", "AWAY_S"):
        monkeypatch.setattr(controller, name, 0.02)
    nodes = [await cloud.node(f"n{number}") for number in (1, 2, 3)]
    ceph = FakeCeph()
    ceph.join(*nodes)
    devices = [{"node": f"n{number}", "path": "/osd/0", "size_mib": 10240, "media": "ssd"} for number in (1, 2, 3)]
    cluster = (await cloud.admin.create("storage-clusters", "c1", devices=devices))["id"]
    pool = (await cloud.admin.create("pools", "p1", cluster="c1"))["id"]
    rados = (await cloud.admin.get("/pools/p1"))["spec"]["rados_name"]
    osds = (await cloud.admin.get("/storage-clusters/c1"))["status"]["osds"]
    fenced: list[tuple[str, list[str]]] = []
    for node in nodes:
        have = [f"{cluster}/mon.{node.name}"]
        have += [f"{cluster}/mgr.{node.name}"] if node is not nodes[2] else []
        have += [f"{cluster}/osd.{osd['osd']}" for osd in osds if osd["node"] == node.name]
        left = {"pool": pool, "fenced": fenced}
        node.answers["inventory"] = lambda _, have=have, left=left: {"daemons": have, "pool_left": [left]}
    ceph.blocklist = {"10.0.0.7:0/7": until(1 / 365), "10.0.0.8:0/8": until(1 / 365 / 24)}
    assert await findings(cloud) == {}, "Ceph's own entries end soon"
    fenced += [(nodes[2].id, ["10.0.0.3:0/3"]), (GONE, [DEAD])]
    ceph.blocklist |= {"10.0.0.3:0/3": until(10), DEAD: until(9), "10.0.0.4:0/4": until(9)}
    found = await findings(cloud)
    assert found.keys() == {f"{cluster}/fenced/{GONE}", f"{cluster}/blocklist/10.0.0.4:0/4"}
    gone = found[f"{cluster}/fenced/{GONE}"]["message"]
    assert f"`ceph osd blocklist rm {DEAD}`" in gone and f"`rados -p {rados} rmomapkey scloud.fenced {GONE}`" in gone
    assert "off for certain" in gone
    nodes[0].answers["inventory"] = nodes[1].answers["inventory"] = nodes[2].answers["inventory"] = lambda _: {}
    assert not any("blocklist" in key for key in await findings(cloud)), "nobody said who is cut off in the pool"
