"""Agents that are killed while librbd removes an image for them: its name is gone by then, and its bytes are not."""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, ClassVar

import pytest
import rbd
from rbd_bench import CLIENT, NODE, RbdBench

from scloud.drivers.storage import rbd as driver
from scloud.drivers.storage import rbd_direct, rbd_images, rbd_trash
from scloud.drivers.storage.protocol import StillOpen
from support.ceph_rig import CephRig

pytestmark = pytest.mark.engine

MIB = 1024 * 1024
OTHER = "scloud-n2"

# An agent that is killed once the first of an image's objects are removed.
_REMOVAL = """
import asyncio, pathlib, sys, time
import rbd
from scloud.drivers.storage.rbd import RadosPool, RbdStorage
from scloud.drivers.storage.rbd_cluster import Cluster, ClusterAccess
node, client, key, hosts, pool, data, call = sys.argv[1:]
def stop(done, total):
    if done:
        print("begun", flush=True)
        time.sleep(120)
    return 0
class Slow(rbd.RBD):
    def remove(self, context, name):
        super().remove(context, name, on_progress=stop)
rbd.RBD = Slow
access = ClusterAccess(node, "test", hosts, client, key)
storage = RbdStorage(Cluster(access), RadosPool(pool, data), pathlib.Path("conf"))
asyncio.run(storage.delete("dsk-1") if call == "delete" else storage.create("dsk-1", 96, None, 1))
"""


@pytest.fixture
async def bench(ceph: CephRig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RbdBench]:
    monkeypatch.setattr(driver, "SWEEP_AGAIN_S", 1.0)
    monkeypatch.setattr(rbd_images, "BROKEN_OFF_S", 1.0)
    made = RbdBench(ceph, "rbd-ec", monkeypatch)
    try:
        yield made
    finally:
        while Removal.begun:
            await Removal.begun.pop().kill()
        async with asyncio.timeout(60):
            while found := rbd_trash.trashed(made.context):
                for one in found:
                    with suppress(rbd.ImageBusy):
                        rbd_trash.finish(made.context, one)
                await asyncio.sleep(0.2)
        await made.clean()


async def fill(bench: RbdBench) -> None:
    await bench.storage.create("dsk-1", 96, None)
    for number in range(24):
        bench.write("dsk-1", number * 4 * MIB, b"x" * 4096)


class Removal:
    """Another process of this node, in the middle of it. All that were `begun` are killed at the end of a test."""

    begun: ClassVar[list[Removal]] = []

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.begun.append(self)

    @classmethod
    async def begin(cls, bench: RbdBench, call: str) -> Removal:
        key = bench.rig.make_client(CLIENT, "rbd", "rbd-ec", "rbd-ec-data")
        argv = [NODE, CLIENT, key, bench.rig.mon_host, bench.pool, "rbd-ec-data", call]
        made = cls(
            await asyncio.create_subprocess_exec(sys.executable, "-c", _REMOVAL, *argv, stdout=asyncio.subprocess.PIPE)
        )
        assert made.process.stdout is not None
        async with asyncio.timeout(30):
            assert await made.process.stdout.readline() == b"begun\n"
        return made

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


def objects(bench: RbdBench) -> list[str]:
    """RADOS objects of images: their bytes and what describes them."""
    contexts = [bench.context, bench.rig.admin.open_ioctx("rbd-ec-data")]
    kinds = ("rbd_data.", "rbd_header.", "rbd_object_map.", "rbd_id.")
    return [one.key for context in contexts for one in context.list_objects() if one.key.startswith(kinds)]


def left(bench: RbdBench) -> list[str]:
    return [one.name for one in rbd_trash.trashed(bench.context)]


async def test_a_disk_whose_removal_was_broken_off_is_there_until_it_is_deleted(bench: RbdBench) -> None:
    await fill(bench)
    await bench.storage.close()  # nothing of this process finds it by chance
    removal = await Removal.begin(bench, "delete")
    restarted = bench.driver(NODE)
    assert await restarted.show("dsk-1") is None and await restarted.remains("dsk-1")
    assert list(rbd.RBD().trash_list(bench.context)) == [], "librbd itself does not tell of it"
    with pytest.raises(StillOpen):  # that one is alive
        await restarted.delete("dsk-1")
    await removal.kill()
    assert len(objects(bench)) > 20
    async with asyncio.timeout(60):
        while True:
            try:
                await restarted.delete("dsk-1")
                break
            except StillOpen:
                await asyncio.sleep(0.5)
    assert not await restarted.remains("dsk-1")
    assert objects(bench) == [] and left(bench) == [] and rbd.RBD().list(bench.context) == []


async def test_any_two_nodes_end_what_one_that_stays_away_was_removing(bench: RbdBench) -> None:
    await fill(bench)
    await bench.storage.close()
    removal = await Removal.begin(bench, "delete")
    others = [bench.driver("nod-2", OTHER), bench.driver("nod-3", "scloud-n3")]
    for other in others:
        assert await other.disks() == []
    await asyncio.sleep(4)  # several of their looks: the one that removes it is alive
    assert left(bench) == ["dsk-1.0"] and len(objects(bench)) > 20
    await removal.kill()
    async with asyncio.timeout(60):
        while left(bench):
            await asyncio.sleep(0.5)
    assert objects(bench) == []


async def test_what_a_disk_was_before_it_was_made_anew_goes_although_that_was_broken_off(bench: RbdBench) -> None:
    await fill(bench)
    await bench.storage.close()
    removal = await Removal.begin(bench, "create")
    await removal.kill()
    restarted = bench.driver(NODE)
    facts = await restarted.show("dsk-1")
    assert facts is not None and facts.incarnation == 1 and await restarted.remains("dsk-1")
    async with asyncio.timeout(60):
        while True:
            try:
                await restarted.clear("dsk-1")
                break
            except StillOpen:
                await asyncio.sleep(0.5)
    assert not await restarted.remains("dsk-1")
    assert left(bench) == [] and rbd.RBD().list(bench.context) == ["dsk-1.1"]


async def test_an_older_version_that_was_not_begun_to_be_removed_goes_too(bench: RbdBench) -> None:
    """The agent died when the new one had its name."""
    await bench.storage.create("dsk-1", 8, None, 1)
    rbd.RBD().create(bench.context, "dsk-1.0", 8 * MIB, None, False, 61)
    with rbd.Image(bench.context, "dsk-1.0") as image:
        image.create_snap("snp-1")
    restarted = bench.restart()
    assert await restarted.remains("dsk-1")
    await restarted.clear("dsk-1")
    assert not await restarted.remains("dsk-1") and rbd.RBD().list(bench.context) == ["dsk-1.1"]


@pytest.mark.parametrize("deleted", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 3])
async def test_a_removal_that_died_before_the_image_was_in_the_trash_is_ended(
    bench: RbdBench, steps: int, deleted: bool
) -> None:
    """librbd notes it in the trash, takes its name away, takes it off the directory, and then calls it trash."""
    await bench.storage.create("dsk-1", 8, None)
    identity = str(rbd_direct.identity_of(bench.context, "dsk-1.0"))
    entry = _trashed("dsk-1.0")
    bench.context.execute("rbd_trash", "rbd", "trash_add", rbd_direct._text(identity) + entry)
    if steps > 1:
        rbd_direct.forget_name(bench.context, "dsk-1.0")
    if steps > 2:
        rbd_direct.unlist(bench.context, "dsk-1.0", identity)
    (found,) = rbd_trash.trashed(bench.context)
    assert (found.name, found.identity, found.removing, found.moving) == ("dsk-1.0", identity, True, True)
    restarted = bench.restart()
    assert await restarted.remains("dsk-1")
    if deleted:
        await restarted.delete("dsk-1")
    async with asyncio.timeout(30):
        while await restarted.remains("dsk-1"):
            await asyncio.sleep(0.2)
    assert objects(bench) == [] and left(bench) == [] and rbd.RBD().list(bench.context) == []


def _trashed(name: str) -> bytes:
    """As librbd encodes what is being moved into the trash to be removed at once."""
    body = bytes([3]) + rbd_direct._text(name) + bytes(16) + bytes([1])
    return struct.pack("<BBI", 2, 1, len(body)) + body


async def test_a_cluster_that_keeps_removed_images_keeps_none_of_ours(bench: RbdBench) -> None:
    bench.rig.mon("config set", who="client", name="rbd_move_to_trash_on_remove", value="true")
    try:
        storage: Any = bench.restart()
        await storage.create("dsk-1", 8, None)
        await storage.delete("dsk-1")
        assert left(bench) == [] and objects(bench) == []
    finally:
        bench.rig.mon("config rm", who="client", name="rbd_move_to_trash_on_remove")
