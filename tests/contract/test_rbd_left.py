"""What dead processes leave in a pool beside images, and how it is told and mended."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator

import pytest
import rados
import rbd
from rbd_bench import NODE, RbdBench

from scloud.drivers.storage import rbd_direct, rbd_trash
from scloud.drivers.storage import rbd_names as names
from scloud.drivers.storage.rbd_cluster import omap, set_omap
from scloud.drivers.storage.rbd_direct import Parent
from scloud.drivers.storage.rbd_images import FEATURES
from support.ceph_rig import CephRig

pytestmark = pytest.mark.engine

MIB = 1024 * 1024
INVALID_MAP = 3


@pytest.fixture
async def bench(ceph: CephRig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RbdBench]:
    async with RbdBench(ceph, "rbd", monkeypatch) as made:
        yield made


def header(bench: RbdBench, name: str) -> str:
    return f"rbd_header.{rbd_direct.identity_of(bench.context, name)}"


def lock(bench: RbdBench, name: str) -> str:
    """By a client that is gone when this returns; its address."""
    key = bench.rig.make_client("scloud-n2", "rbd", "rbd-ec", "rbd-ec-data")
    conf = {"mon_host": bench.rig.mon_host, "key": key}
    with rados.Rados(rados_id="scloud-n2", conf=conf) as other, other.open_ioctx(bench.pool) as context:
        context.lock_exclusive(header(bench, name), "rbd_lock", "auto 1")
        return str(other.get_addrs())


def lockers(bench: RbdBench, name: str) -> list[tuple[str, str, str]]:
    with rbd.Image(bench.context, name, read_only=True) as image:
        return list((image.list_lockers() or {"lockers": []})["lockers"])


async def test_a_lock_of_a_dead_client_is_told_and_broken_unless_somebody_has_the_disk_open(bench: RbdBench) -> None:
    await bench.storage.create("dsk-1", 8, None)
    lock(bench, "dsk-1.0")
    (found,) = await bench.storage.disks()
    assert len(found.abandoned) == 1
    with rbd.Image(bench.context, "dsk-1.0"):
        (open_,) = await bench.storage.disks()
        assert open_.abandoned == ()
        await bench.storage.mend("dsk-1")
        assert len(lockers(bench, "dsk-1.0")) == 1
    await bench.storage.mend("dsk-1")
    assert lockers(bench, "dsk-1.0") == []
    (found,) = await bench.storage.disks()
    assert found.abandoned == ()
    bench.write("dsk-1", 0, b"as ever")


async def test_an_object_map_that_is_not_to_be_trusted_tells_nothing_and_is_made_anew(bench: RbdBench) -> None:
    await bench.storage.create("dsk-1", 16, None)
    bench.write("dsk-1", 0, b"x" * 4096)
    bench.context.execute(header(bench, "dsk-1.0"), "rbd", "set_flags", struct.pack("<QQ", INVALID_MAP, INVALID_MAP))
    storage = bench.restart()
    facts = await storage.show("dsk-1")
    assert facts is not None and facts.used_mib is None
    with rbd.Image(bench.context, "dsk-1.0"):
        await storage.mend("dsk-1")
    facts = await storage.show("dsk-1")
    assert facts is not None and facts.used_mib is None, "somebody had it open"
    await storage.mend("dsk-1")
    facts = await storage.show("dsk-1")
    assert facts is not None and facts.used_mib == 4


async def test_what_is_no_disk_is_told(bench: RbdBench) -> None:
    await bench.storage.create("dsk-1", 8, None, 1)
    unfinished = names.partial("nod-9", "dsk-2", 0, "0badcafe", 7)
    for name in ("dsk-1.0", unfinished, "somebodys"):
        rbd.RBD().create(bench.context, name, MIB, None, False, 61)
    rbd.RBD().trash_move(bench.context, "somebodys", 0)
    set_omap(bench.context, names.FENCED, "nod-3", "10.0.0.9:0/1 10.0.0.9:0/2")
    left = await bench.storage.left()
    assert left.partials == (("nod-9", unfinished),) and left.half_removed == ("disk/dsk-1",)
    assert left.trash == ("somebodys",) and left.fenced == (("nod-3", ("10.0.0.9:0/1", "10.0.0.9:0/2")),)
    (trashed,) = rbd_trash.trashed(bench.context)
    assert (trashed.name, trashed.removing, trashed.moving) == ("somebodys", False, False)
    rbd.RBD().trash_remove(bench.context, trashed.identity, True)
    await bench.storage.delete("dsk-1")
    assert (await bench.storage.left()).half_removed == ()


async def test_with_a_disk_goes_what_was_written_down_of_it(bench: RbdBench) -> None:
    await bench.storage.create("dsk-1", 8, None)
    await bench.storage.locate("dsk-1")
    assert omap(bench.context, names.NODES)["dsk-1"] == NODE
    await bench.storage.delete("dsk-1")
    assert "dsk-1" not in omap(bench.context, names.NODES)


async def test_a_partial_image_is_removed_as_the_audit_says(bench: RbdBench) -> None:
    """It was never opened, and depends on a disk's snapshot."""
    await bench.storage.create("dsk-1", 8, None)
    await bench.storage.snapshot("dsk-1", "snp-1")
    with rbd.Image(bench.context, "dsk-1.0") as image:
        image.protect_snap("snp-1")
        parent = Parent.of(image, "snp-1")
    unfinished = names.partial("nod-9", "dsk-2", 0, "0badcafe", 7, (parent.image, parent.snapshot))
    stamp = (names.OWNER, "disk/dsk-2")
    rbd_direct.make(bench.context, unfinished, "00000000000cut", 8 * MIB, FEATURES, stamp, parent=parent)
    assert (await bench.storage.left()).partials == (("nod-9", unfinished),)
    rbd.RBD().remove(bench.context, unfinished)
    assert (await bench.storage.left()).partials == ()
    await bench.storage.delete("dsk-1")
    assert [one.key for one in bench.context.list_objects() if one.key.startswith(("rbd_header", "rbd_object"))] == []
