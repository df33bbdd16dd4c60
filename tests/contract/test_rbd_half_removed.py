"""A snapshot that librbd was removing when its process was killed: it has another name by then, and is still there."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator

import pytest
import rbd
from rbd_bench import NODE

from scloud.drivers.storage.rbd import RadosPool, RbdStorage
from scloud.drivers.storage.rbd_cluster import Cluster, ClusterAccess
from scloud.drivers.storage.rbd_names import disk_image
from support.ceph_rig import CephRig

pytestmark = pytest.mark.engine
POOL, CLIENT = "half-removed", "scloud-half"


@pytest.fixture
async def storage(ceph: CephRig) -> AsyncIterator[RbdStorage]:
    ceph.make_pool(POOL)
    access = ClusterAccess(NODE, "test", ceph.mon_host, CLIENT, ceph.make_client(CLIENT, POOL))
    made = RbdStorage(Cluster(access), RadosPool(POOL), ceph.conf)
    await made.create("dsk-1", 4, None)
    for name in ("snp-1", "snp-2"):
        await made.snapshot("dsk-1", name)
    yield made
    await made.close()
    ceph.delete_pool(POOL)


def begin_to_remove(ceph: CephRig, snapshot: str) -> None:
    """librbd's first step, and no other."""
    ceph.admin.wait_for_latest_osdmap()  # the pool of the test before had the same name
    with ceph.admin.open_ioctx(POOL) as io:
        with rbd.Image(io, disk_image("dsk-1", 0), read_only=True) as image:
            header = f"rbd_header.{image.id()}"
            number = next(snap["id"] for snap in image.list_snaps() if snap["name"] == snapshot)
        io.execute(header, "rbd", "snapshot_trash_add", struct.pack("<Q", number))
        with rbd.Image(io, disk_image("dsk-1", 0), read_only=True) as image:
            assert snapshot not in {snap["name"] for snap in image.list_snaps()}


async def names(storage: RbdStorage) -> list[str]:
    facts = await storage.show("dsk-1")
    assert facts is not None
    return [name for name, _ in facts.snapshots]


async def test_it_is_still_called_what_it_was_and_removed_when_asked_again(ceph: CephRig, storage: RbdStorage) -> None:
    begin_to_remove(ceph, "snp-1")
    assert await names(storage) == ["snp-1", "snp-2"]
    await storage.delete_snapshot("dsk-1", "snp-1")
    assert await names(storage) == ["snp-2"]
    await storage.delete_snapshot("dsk-1", "snp-2")
    assert await names(storage) == []


async def test_a_disk_goes_with_it(ceph: CephRig, storage: RbdStorage) -> None:
    begin_to_remove(ceph, "snp-1")
    await storage.delete("dsk-1")
    assert await storage.disks() == []
