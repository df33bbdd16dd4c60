"""Nodes that are cut off from a real cluster: in the middle of writing, and when they come back."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator

import pytest
from rbd_bench import RbdBench

from scloud.model.errors import CloudError, ErrorKind
from support.ceph_rig import CephRig

pytestmark = pytest.mark.engine

OTHER = "nod-2"
BLOCK = 4096

# A guest: numbered blocks, one after the other, each flushed before it is told of.
_WRITER = """
import sys, rados, rbd
user, key, hosts, pool, name = sys.argv[1:]
conf = {"mon_host": hosts, "key": key, "objecter_timeout": "1", "objecter_tick_interval": "0.5"}
cluster = rados.Rados(rados_id=user, conf=conf)
cluster.connect()
image = rbd.Image(cluster.open_ioctx(pool), name)
number = 0
try:
    while True:
        number += 1
        image.write(number.to_bytes(8, "big") * (4096 // 8), number % 1024 * 4096)
        image.flush()
        print(number, flush=True)
except rbd.Error as error:
    print("refused", abs(error.errno), flush=True)
    import os
    os._exit(0)
except KeyboardInterrupt:
    image.close()
    cluster.shutdown()
"""


class Writer:
    """A QEMU of the other node, as far as the cluster can tell."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.written = 0
        self.refused = ""

    @classmethod
    async def start(cls, bench: RbdBench, image: str) -> Writer:
        key = bench.rig.make_client("scloud-n2", "rbd", "rbd-ec", "rbd-ec-data")
        argv = ["scloud-n2", key, bench.rig.mon_host, bench.pool, image]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _WRITER, *argv, stdout=asyncio.subprocess.PIPE
        )
        return cls(process)

    async def until(self, number: int) -> None:
        while self.written < number:
            assert await self.read(), f"it stopped at {self.written}: {self.refused}"

    async def read(self) -> bool:
        """One more block; False when it could not write."""
        assert self.process.stdout is not None
        async with asyncio.timeout(60):
            line = (await self.process.stdout.readline()).decode().split()
        if line and line[0] != "refused":
            self.written = int(line[0])
            return True
        self.refused = " ".join(line)
        return False

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGINT)  # one that is killed counts as watching for 30 s
        await self.process.wait()


@pytest.fixture(params=["rbd", "rbd-ec"])
async def bench(
    request: pytest.FixtureRequest,
    ceph: CephRig,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[RbdBench]:
    async with RbdBench(ceph, request.param, monkeypatch) as made:
        yield made


async def last_of(bench: RbdBench, disk: str) -> int:
    """The highest number on the disk; every block must be whole."""
    data = bench.read(disk, 0, 1024 * BLOCK)
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    assert all(block == block[:8] * (BLOCK // 8) for block in blocks)
    return max(int.from_bytes(block[:8], "big") for block in blocks)


async def test_a_writer_is_cut_off_in_the_middle_of_writing(bench: RbdBench) -> None:
    mine, theirs = bench.storage, bench.driver(OTHER, "scloud-n2")
    await theirs.create("dsk-1", 8, None)
    await theirs.create("dsk-2", 8, None)
    place = await theirs.locate("dsk-1")
    own = await mine.locate("dsk-2")
    victim, bystander = await Writer.start(bench, place.image), await Writer.start(bench, own.image)
    try:
        await victim.until(50)
        await bystander.until(5)
        assert mine.answer_s() == 0.0
        assert not await mine.is_fenced(OTHER) and not await theirs.is_cut_off()
        assert not await mine.is_refused() and not await theirs.is_refused()
        assert 0.0 < mine.answer_s() < 30.0
        await mine.fence(OTHER)
        after = await last_of(bench, "dsk-1")
        assert await mine.is_fenced(OTHER)
        assert await theirs.is_cut_off() and not await mine.is_cut_off(), "the monitors say so to who is on their list"
        while await victim.read():
            pass
        assert victim.refused == "refused 108", "ESHUTDOWN: the cluster took nothing of it any more"
        assert victim.written <= after, "what was acknowledged is there"
        assert await last_of(bench, "dsk-1") == after, "nothing came after the fence had returned"
        await bystander.until(bystander.written + 20)
    finally:
        await victim.end()
        await bystander.end()
    bench.write("dsk-1", 4 * 2**20, b"the next owner writes at once")


async def test_a_fenced_node_stays_away_until_it_is_let_back_in(bench: RbdBench) -> None:
    mine, theirs = bench.storage, bench.driver(OTHER, "scloud-n2")
    await theirs.create("dsk-1", 8, None)
    await theirs.locate("dsk-1")
    await mine.fence(OTHER)
    await mine.fence(OTHER)
    for call in (theirs.locate("dsk-1"), theirs.create("dsk-2", 8, None), theirs.snapshot("dsk-1", "snp-1")):
        with pytest.raises(CloudError, match="cut off") as caught:
            await call
        assert caught.value.kind == ErrorKind.CONFLICT
    restarted = bench.driver(OTHER, "scloud-n2")
    with pytest.raises(CloudError, match="no pool yet"):
        await restarted.is_cut_off()  # it was not there when the node was, and is not on the list
    with pytest.raises(CloudError, match="cut off"):
        await restarted.show("dsk-1")
    with pytest.raises(CloudError, match="no pool yet"):
        await restarted.is_cut_off()
    facts = await mine.show("dsk-1")
    assert facts is not None and facts.snapshots == ()
    # By a driver on the fenced node itself: when every node was cut off, one of them has to be the first.
    await bench.driver(OTHER, "scloud-n2").unfence(OTHER)
    assert not await mine.is_fenced(OTHER)
    for storage in (theirs, restarted):
        await storage.locate("dsk-1")
    await restarted.create("dsk-2", 8, None)


async def test_a_disk_that_a_guest_is_taking_along_is_cut_off_where_it_comes_from(bench: RbdBench) -> None:
    """Its new node has said that it is to come; its old one, where it is open still, is lost."""
    mine, theirs = bench.storage, bench.driver(OTHER, "scloud-n2")
    await theirs.create("dsk-1", 8, None)
    await theirs.locate("dsk-1")
    place = await mine.locate("dsk-1", beside=OTHER)
    victim = await Writer.start(bench, place.image)
    try:
        await victim.until(10)
        await bench.driver("nod-3", "scloud-n3").fence(OTHER)
        while await victim.read():
            pass
        assert victim.refused == "refused 108"
    finally:
        await victim.end()


async def test_a_disk_that_has_moved_is_not_its_former_nodes(bench: RbdBench) -> None:
    """The new owner goes on when the old one is fenced."""
    mine, theirs = bench.storage, bench.driver(OTHER, "scloud-n2")
    await theirs.create("dsk-1", 8, None)
    await theirs.locate("dsk-1")
    place = await mine.locate("dsk-1")
    writer = await Writer.start(bench, place.image)
    try:
        await writer.until(10)
        await bench.driver("nod-3", "scloud-n3").fence(OTHER)
        await writer.until(writer.written + 20)
    finally:
        await writer.end()
