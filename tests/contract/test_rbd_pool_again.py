"""An agent outlives pools: one that was deleted, and another one of the same name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from rbd_bench import NODE

from scloud.drivers.storage.rbd import RadosPool, RbdStorage
from scloud.drivers.storage.rbd_cluster import Cluster, ClusterAccess
from support.ceph_rig import CephRig

pytestmark = pytest.mark.engine
STAYS, GOES = "again-stays", "again-goes"
CLIENT, OTHER = "scloud-again", "nod-2"


@pytest.fixture
def pools(ceph: CephRig) -> Iterator[CephRig]:
    for name in (STAYS, GOES):
        ceph.make_pool(name)
    yield ceph
    for name in (STAYS, GOES):
        ceph.delete_pool(name)


@pytest.fixture
async def cluster(pools: CephRig) -> AsyncIterator[Cluster]:
    """An agent's connection, kept open by a pool that stays."""
    key = pools.make_client(CLIENT, STAYS, GOES)
    made = Cluster(ClusterAccess(NODE, "test", pools.mon_host, CLIENT, key))
    staying = RbdStorage(made, RadosPool(STAYS), pools.conf)
    await staying.disks()
    yield made
    await staying.close()


async def test_another_pool_of_the_same_name_is_another(pools: CephRig, cluster: Cluster) -> None:
    first = RbdStorage(cluster, RadosPool(GOES), pools.conf)
    await first.create("dsk-1", 4, None)
    pools.delete_pool(GOES)
    pools.make_pool(GOES)
    # The agent may open the new one before it has closed the old one.
    second = RbdStorage(cluster, RadosPool(GOES), pools.conf)
    assert await second.disks() == []
    await first.close()
    await second.create("dsk-2", 4, None)
    assert [fact.disk for fact in await second.disks()] == ["dsk-2"]
    await second.fence(OTHER)
    assert await second.is_fenced(OTHER)
    await second.close()


async def test_a_pool_that_is_gone_keeps_nobody_from_being_cut_off(pools: CephRig, cluster: Cluster) -> None:
    going, staying = (RbdStorage(cluster, RadosPool(name), pools.conf) for name in (GOES, STAYS))
    await going.create("dsk-1", 4, None)
    pools.delete_pool(GOES)
    await staying.fence(OTHER)  # the node has not heard yet that the pool is gone
    assert await staying.is_fenced(OTHER)
    await staying.unfence(OTHER)
    await going.close()
    await staying.fence(OTHER)
    await staying.close()
    pools.make_pool(GOES)
