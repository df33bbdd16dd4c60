"""An agent outlives pools: one that was deleted, and another one of the same name."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import pytest
from rbd_bench import NODE

from scloud.drivers.storage.rbd import RadosPool, RbdStorage
from scloud.drivers.storage.rbd_cluster import Cluster, ClusterAccess, Session, omap
from scloud.drivers.storage.rbd_names import SESSIONS
from scloud.model.errors import CloudError, ErrorKind
from support.ceph_rig import MON_CAPS, CephRig

pytestmark = pytest.mark.engine
STAYS, GOES = "again-stays", "again-goes"
CLIENT, LATER, ANEW, OTHER = "scloud-again", "scloud-later", "scloud-anew", "nod-2"


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


def allow(ceph: CephRig, client: str, *pools: str) -> None:
    osd = ", ".join(f"profile rbd pool={pool}" for pool in pools)
    ceph.mon("auth caps", entity=f"client.{client}", caps=["mon", MON_CAPS, "osd", osd])


async def test_a_pool_that_the_key_reaches_only_now_is_used_at_once(ceph: CephRig) -> None:
    """OSDs go by what a key was allowed when its session began. What the former session does is not broken off."""
    ceph.make_pool(STAYS)
    key = ceph.make_client(LATER, STAYS)
    cluster = Cluster(ClusterAccess(NODE, "test", ceph.mon_host, LATER, key))
    old = RbdStorage(cluster, RadosPool(STAYS), ceph.conf)
    await old.create("dsk-1", 4, None)
    ceph.make_pool(GOES)
    allow(ceph, LATER, STAYS, GOES)
    begun, go_on = threading.Event(), threading.Event()

    def slow(session: Session) -> str:
        begun.set()
        assert go_on.wait(30)
        session.open(STAYS).get_stats()
        return session.address

    under_way = asyncio.ensure_future(cluster.run("be slow", slow))
    try:
        await asyncio.to_thread(begun.wait, 30)
        new = RbdStorage(cluster, RadosPool(GOES), ceph.conf)
        await new.create("dsk-2", 4, None)
        told = await cluster.run("look", lambda session: omap(session.open(GOES), SESSIONS))
        go_on.set()
        former = await under_way
        assert former in told[NODE].split(), "it could not be cut off otherwise"
        assert len(told[NODE].split()) == 2
        assert [fact.disk for fact in await old.disks()] == ["dsk-1"]
    finally:
        go_on.set()
        await asyncio.gather(under_way, return_exceptions=True)
    await new.close()
    await old.close()
    for name in (STAYS, GOES):
        ceph.delete_pool(name)


async def test_a_key_that_was_allowed_too_little_is_tried_anew(ceph: CephRig) -> None:
    ceph.make_pool(STAYS)
    ceph.make_pool(GOES)
    key = ceph.make_client(ANEW, STAYS)
    cluster = Cluster(ClusterAccess(NODE, "test", ceph.mon_host, ANEW, key))
    refused = RbdStorage(cluster, RadosPool(GOES), ceph.conf)
    with pytest.raises(CloudError) as caught:
        await refused.create("dsk-2", 4, None)
    assert caught.value.kind is ErrorKind.FORBIDDEN
    allow(ceph, ANEW, STAYS, GOES)
    await refused.create("dsk-2", 4, None)
    await refused.close()
    for name in (STAYS, GOES):
        ceph.delete_pool(name)
