"""Whom a node asks whether it is let in: the OSDs of other machines, each of which may die; on a real cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from rbd_bench import RbdBench

from scloud.drivers.storage import rbd_elsewhere
from scloud.drivers.storage import rbd_names as names
from scloud.model.errors import CloudError, ErrorKind
from support.ceph_rig import CephRig

pytestmark = pytest.mark.engine

OTHER = "nod-2"
OSDS = 3


@pytest.fixture
async def bench(ceph: CephRig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RbdBench]:
    async with RbdBench(ceph, "rbd", monkeypatch) as made:
        try:
            yield made
        finally:
            ceph.thaw()


async def test_while_any_osd_of_another_machine_answers_a_node_knows_that_it_is_let_in(
    bench: RbdBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All OSDs of the rig are on one machine: the one that has the list of those that are cut off is called ours."""
    rig = bench.rig
    own = int(rig.mon("osd map", pool="rbd", object=names.FENCED)["acting_primary"])
    first, second = sorted(set(range(OSDS)) - {own})
    where = rbd_elsewhere._address
    monkeypatch.setattr(rbd_elsewhere, "_address", lambda found: where(found) if found["osd"] == own else "192.0.2.1")
    monkeypatch.setattr(rbd_elsewhere, "PATIENCE_S", 1.0)
    node = bench.driver(OTHER, "scloud-n2")
    assert not await node.is_refused(), "it has not asked the monitors yet whom to ask: the list of the fenced is read"
    assert await node.show("dsk-none") is None and not await node.is_cut_off()
    async with asyncio.timeout(30):
        while node._elsewhere.due():
            await asyncio.sleep(0.05)

    rig.freeze(own)
    listed = asyncio.ensure_future(node.is_fenced(OTHER))
    assert not await node.is_refused()
    assert not listed.done()
    rig.freeze(first)
    assert not await node.is_refused() and not await node.is_refused(), "who does not answer is not waited for"
    rig.freeze(second)
    for _ in range(2):
        with pytest.raises(CloudError, match="no OSD of another machine answers") as silent:
            await node.is_refused()
        assert silent.value.kind == ErrorKind.UNAVAILABLE
    assert not listed.done()
    await asyncio.to_thread(rig.thaw)
    assert not await listed
    monkeypatch.setattr(rbd_elsewhere, "PATIENCE_S", 30.0)
    assert not await node.is_refused(), "what was asked before they stood still does not count, and they are asked anew"

    await bench.storage.fence(OTHER)
    with pytest.raises(CloudError, match="cut off") as refused:
        await node.is_refused()
    assert refused.value.kind == ErrorKind.CONFLICT
    assert await node.is_refused(), "without a session it reads the list"
    await bench.storage.unfence(OTHER)
    assert not await node.is_refused()
