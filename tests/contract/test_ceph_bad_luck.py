"""What really happens to clusters, on a real one: rot. And pools over many hosts, racks and datacenters. 45 s."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from bad_luck_rig import DATACENTER_OF, RACK_OF, SSDS, Adopted, groups, names, rot

from scloud.drivers.storage.rbd import RadosPool, RbdStorage
from scloud.drivers.storage.rbd_cluster import Cluster, ClusterAccess

pytestmark = pytest.mark.engine
MIB = 1 << 20
PIECE = 4 * MIB


async def test_pools_over_hosts_racks_and_datacenters_are_made(adopted: Adopted) -> None:
    for name, spec in (
        ("p1", {"redundancy": "replica:3"}),
        ("p2", {"redundancy": "ec:4+2"}),
        ("p3", {"redundancy": "replica:3", "fault_domain": "rack"}),
        ("p4", {"redundancy": "replica:3", "fault_domain": "datacenter"}),
    ):
        began = time.monotonic()
        await adopted.pool(name, **spec)
        print(name, spec, f"{time.monotonic() - began:.1f} s")
    made = {item["pool_name"]: item["pool"] for item in adopted.rig.mon("osd dump")["pools"]}
    for name, place_of in (("scloud.p3", RACK_OF), ("scloud.p4", DATACENTER_OF)):
        for group in groups(adopted.rig, made[name]):
            assert len({place_of[osd] for osd in group}) == 3, group
    for name in ("p1", "p2", "p3", "p4"):
        await adopted.cloud.admin.end("DELETE", f"/pools/{name}")


@pytest.mark.parametrize("redundancy", ["replica:3", "ec:2+1"])
async def test_rot_is_found_named_and_mended(adopted: Adopted, redundancy: str) -> None:
    rig = adopted.rig
    pool = await adopted.pool("p", redundancy=redundancy, media="hdd")
    storage = driver(adopted, pool)
    adopted.node.answers["pool_owners"] = owners(storage)
    await adopted.cloud.admin.create("disk-types", "t", pool="p")
    disk = await adopted.disk("accounts", "t")
    await storage.create(disk, 16, None)
    image = adopted.opened(f"{disk}.0", "scloud.p")
    data = os.urandom(PIECE)
    await image.write(8 * MIB, data)
    spoiled = 0
    for number in range(SSDS.start):
        spoiled = rot(rig.block(number), data[8192:12288])
        if spoiled:
            break
    assert spoiled
    admin = adopted.cloud.admin
    began = time.monotonic()
    await admin.end("POST", "/storage-clusters/old/actions/deep-scrub", {"pools": ["p"]})
    seen = await adopted.shown(lambda seen: seen["damaged"], "the rot is found")
    print(f"{redundancy}: found after {time.monotonic() - began:.1f} s: {seen['damaged']}")
    (group,) = seen["inconsistent"]
    (name,) = seen["inconsistent_objects"][group]
    assert seen["damaged"] == {name: "disk accounts, from 8 MiB on"} and name.startswith("rbd_data.")
    (said,) = [item["message"] for item in seen["conditions"] if item["name"] == "rot"]
    assert "disk accounts, from 8 MiB on" in said and "scloud storage-cluster repair old" in said
    assert await image.read(8 * MIB, PIECE) == data
    began = time.monotonic()
    await admin.wait(await admin.do("POST", "/storage-clusters/old/actions/repair", {}), seconds=60.0)
    seen = await adopted.shown(lambda seen: not names(seen) & {"rot", "damaged", "scrub-errors"}, "it is mended")
    print(f"{redundancy}: mended after {time.monotonic() - began:.1f} s")
    assert not seen["inconsistent"] and not seen["damaged"]
    assert await image.read(8 * MIB, PIECE) == data
    image.image.close()
    await storage.close()


def driver(adopted: Adopted, pool: dict[str, Any]) -> RbdStorage:
    """As the node's agent has it, once the cluster lets it in."""
    spec, rig = pool["spec"], adopted.rig
    key = rig.mon("auth get-key", entity="client.scloud-n1")["key"]
    access = ClusterAccess("n1", "old", rig.mon_host, "scloud-n1", key)
    return RbdStorage(Cluster(access), RadosPool(spec["rados_name"], spec.get("data_name")), rig.conf)


def owners(storage: RbdStorage) -> Any:
    async def answer(params: dict[str, Any]) -> Any:
        return await storage.owners(params["objects"])

    return answer
