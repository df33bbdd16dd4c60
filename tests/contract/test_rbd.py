"""What only RBD can get wrong: several nodes at once, agents that are killed, a cluster that does not answer."""

from __future__ import annotations

import asyncio
import os
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import rbd
from rbd_bench import CLIENT, NODE, RbdBench

from scloud.drivers.storage import rbd_direct
from scloud.drivers.storage import rbd_names as names
from scloud.drivers.storage.protocol import FromImage, FromSnapshot, StillOpen
from scloud.drivers.storage.rbd_cluster import OPTIONS
from scloud.model.errors import CloudError, ErrorKind
from support.ceph_rig import CephRig

pytestmark = pytest.mark.engine

MIB = 1024 * 1024
OTHER = "scloud-n2"

# An agent that is killed once its image is half written.
_IMPORT = """
import asyncio, pathlib, sys, time
from scloud.drivers.storage import extents
from scloud.drivers.storage.protocol import FromImage
from scloud.drivers.storage.rbd import RadosPool, RbdStorage
from scloud.drivers.storage.rbd_cluster import Cluster, ClusterAccess
node, client, key, hosts, pool, file = sys.argv[1:]
def data_of(source):
    yield 0, b"half" * 1024
    print("begun", flush=True)
    time.sleep(60)
extents.data_of = data_of
storage = RbdStorage(Cluster(ClusterAccess(node, "test", hosts, client, key)), RadosPool(pool), pathlib.Path("conf"))
asyncio.run(storage.create("dsk-1", 20, FromImage("img", pathlib.Path(file))))
"""


@pytest.fixture
async def bench(ceph: CephRig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RbdBench]:
    async with RbdBench(ceph, "rbd", monkeypatch) as made:
        yield made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(os.urandom(6 * MIB))
    os.truncate(path, 16 * MIB)
    return path


async def test_nodes_that_make_disks_of_a_new_image_at_once_share_one_base(bench: RbdBench, image: Path) -> None:
    nodes = [bench.driver(f"nod-{number}", f"scloud-n{number}") for number in (1, 2, 3)]
    await asyncio.gather(*(node.create(f"dsk-{n}", 20, FromImage("img", image)) for n, node in enumerate(nodes)))
    assert sorted(rbd.RBD().list(bench.context)) == ["dsk-0.0", "dsk-1.0", "dsk-2.0", "image-img"]
    for number in range(3):
        assert bench.read(f"dsk-{number}", 0, 8 * MIB) == image.read_bytes()[: 8 * MIB]
        facts = await bench.storage.show(f"dsk-{number}")
        assert facts is not None and facts.origin == "image/img"
    assert await bench.storage.has_image("img")
    with pytest.raises(CloudError, match="disk/dsk-1") as caught:
        await bench.storage.delete_image("img")
    assert caught.value.kind == ErrorKind.IN_USE and len(caught.value.users) == 3
    for number in range(3):
        await bench.storage.flatten(f"dsk-{number}")
    await bench.storage.delete_image("img")
    await bench.storage.delete_image("img")
    assert await bench.storage.images() == [] and not await bench.storage.has_image("img")
    for _ in range(2):  # this node still believes in the base that another one has deleted
        with pytest.raises(CloudError) as caught:
            await nodes[2].create("dsk-9", 20, FromImage("img", None))
        assert caught.value.kind == ErrorKind.NOT_FOUND
    await nodes[2].create("dsk-9", 20, FromImage("img", image))
    assert bench.read("dsk-9", 0, MIB) == image.read_bytes()[:MIB]


async def test_the_same_disk_made_by_two_nodes_is_one_disk(bench: RbdBench, image: Path) -> None:
    nodes = [bench.driver(f"nod-{number}", f"scloud-n{number}") for number in (1, 2)]
    await asyncio.gather(*(node.create("dsk-1", 20, FromImage("img", image)) for node in nodes for _ in range(3)))
    assert sorted(rbd.RBD().list(bench.context)) == ["dsk-1.0", "image-img"]


async def test_what_a_killed_agent_left_is_removed_by_the_next_and_by_no_other(bench: RbdBench, image: Path) -> None:
    key = bench.rig.make_client(CLIENT, "rbd", "rbd-ec", "rbd-ec-data")
    argv = [NODE, CLIENT, key, bench.rig.mon_host, bench.pool, str(image)]
    agent = await asyncio.create_subprocess_exec(sys.executable, "-c", _IMPORT, *argv, stdout=asyncio.subprocess.PIPE)
    assert agent.stdout is not None and await agent.stdout.readline() == b"begun\n"
    agent.kill()
    await agent.wait()
    (left,) = rbd.RBD().list(bench.context)
    assert left.startswith(f".tmp.{NODE}.image-img.")
    other = bench.driver("nod-2", OTHER)
    await other.create("dsk-2", 20, FromImage("img", image))
    assert left in rbd.RBD().list(bench.context), "that may still be written by its node"
    restarted = bench.restart()
    await restarted.create("dsk-1", 20, FromImage("img", image))
    async with asyncio.timeout(90):  # the dead one counts as having it open for 30 s
        while left in rbd.RBD().list(bench.context):
            await asyncio.sleep(0.5)
    assert bench.read("dsk-1", 0, 6 * MIB) == image.read_bytes()[: 6 * MIB]


async def test_a_cluster_that_does_not_answer_is_said_to_be_away_and_comes_back(
    bench: RbdBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for option in ("rados osd op timeout", "rados mon op timeout", "client mount timeout"):
        monkeypatch.setitem(OPTIONS, option, "3")
    known, fresh = bench.driver(), bench.driver("nod-2", OTHER)
    await known.create("dsk-1", 8, None)
    bench.rig.freeze()
    try:
        for storage in (known, fresh):
            with pytest.raises(CloudError, match="does not answer") as caught:
                await storage.show("dsk-1")
            assert caught.value.kind == ErrorKind.UNAVAILABLE
    finally:
        bench.rig.thaw()
    for storage in (known, fresh):
        async with asyncio.timeout(60):
            while True:
                try:
                    facts = await storage.show("dsk-1")
                    break
                except CloudError:
                    await asyncio.sleep(0.2)
        assert facts is not None and facts.size_mib == 8


async def test_a_rename_that_was_cut_short_is_completed_and_its_disk_kept(bench: RbdBench) -> None:
    """The agent died between the two steps in which a disk gets its name."""
    left = names.partial(NODE, "dsk-1", 0, "0badcafe", 7)
    rbd.RBD().create(bench.context, left, 8 * MIB, None, False, 61)
    identity = rbd_direct.identity_of(bench.context, left)
    assert identity is not None
    bench.context.write_full("rbd_id.dsk-1.0", struct.pack("<I", len(identity)) + identity.encode())
    assert rbd.RBD().list(bench.context) == [left]
    await bench.storage.create("dsk-1", 8, None)
    async with asyncio.timeout(30):
        while rbd.RBD().list(bench.context) != ["dsk-1.0"]:
            await asyncio.sleep(0.05)
    bench.write("dsk-1", 0, b"mine")
    assert bench.read("dsk-1", 0, 4) == b"mine"
    await bench.storage.delete("dsk-1")
    assert await bench.storage.disks() == []


async def test_a_wrong_key_is_named_as_such(bench: RbdBench, capfd: pytest.CaptureFixture[str]) -> None:
    key = bench.rig.make_client("scloud-elsewhere", "rbd-ec")
    storage = bench.driver("nod-2", OTHER, key=key)
    with pytest.raises(CloudError, match="key") as caught:
        await storage.show("dsk-1")
    assert caught.value.kind == ErrorKind.FORBIDDEN
    assert capfd.readouterr().err == "", "what is raised is not printed as well"


async def test_what_a_node_needs_not_reach_it_cannot(bench: RbdBench) -> None:
    """Its key is for its pools alone."""
    bench.rig.make_client("scloud-narrow", "rbd-ec", "rbd-ec-data")
    key = str(bench.rig.mon("auth get-key", entity="client.scloud-narrow")["key"])
    storage = bench.driver("nod-2", "scloud-narrow", key=key)
    with pytest.raises(CloudError, match="key") as caught:
        await storage.create("dsk-1", 8, None)
    assert caught.value.kind == ErrorKind.FORBIDDEN


async def test_images_are_stamped_with_their_owners(bench: RbdBench, image: Path) -> None:
    await bench.storage.create("dsk-1", 20, FromImage("img", image))
    await bench.storage.snapshot("dsk-1", "snp-1")
    await bench.storage.create("dsk-2", 20, FromSnapshot("dsk-1", "snp-1"))
    for name, owner in (("image-img", "image/img"), ("dsk-1.0", "disk/dsk-1"), ("dsk-2.0", "disk/dsk-2")):
        with rbd.Image(bench.context, name, read_only=True) as made:
            assert made.metadata_get(names.OWNER) == owner
    assert await bench.storage.images() == ["img"]


async def test_what_somebody_has_open_is_neither_rolled_back_nor_deleted(bench: RbdBench) -> None:
    """Whether a guest or an agent that was killed; who it is, is said."""
    await bench.storage.create("dsk-1", 4, None)
    await bench.storage.snapshot("dsk-1", "snp-1")
    with rbd.Image(bench.context, names.disk_image("dsk-1", 0)) as image:
        (watcher,) = image.watchers_list()
        for asked in (bench.storage.roll_back("dsk-1", "snp-1", 1), bench.storage.delete("dsk-1")):
            with pytest.raises(StillOpen) as caught:
                await asked
            assert f"({watcher['addr']})" in caught.value.message
    await bench.storage.delete("dsk-1")
    assert await bench.storage.disks() == []
