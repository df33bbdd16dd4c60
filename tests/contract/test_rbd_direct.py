"""Images made by operations on RBD's own objects: they are what librbd makes, and nothing is left of half of one."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import rados
import rbd
from rbd_bench import CEPH_POOLS, NODE, RbdBench

from scloud.drivers.storage import rbd_direct
from scloud.drivers.storage import rbd_names as names
from scloud.drivers.storage.protocol import FromImage, FromSnapshot
from scloud.drivers.storage.rbd_direct import Parent
from scloud.drivers.storage.rbd_images import FEATURES
from support.ceph_rig import CephRig

pytestmark = pytest.mark.engine

MIB = 1024 * 1024


@pytest.fixture(params=CEPH_POOLS)
async def bench(
    ceph: CephRig, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RbdBench]:
    async with RbdBench(ceph, request.param, monkeypatch) as made:
        yield made


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(os.urandom(2 * MIB))
    os.truncate(path, 16 * MIB)
    return path


def content_of(context: Any, name: str) -> tuple[dict[str, bytes], bytes]:
    """Of an image's header and object map, all that does not differ from one image to the next."""
    identity = rbd_direct.identity_of(context, name)
    with rados.ReadOpCtx() as operation:
        rows, _ = context.get_omap_vals(operation, "", "", 1000)
        context.operate_read_op(operation, f"rbd_header.{identity}")
        header = {str(key): bytes(value or b"") for key, value in rows}
    prefix = header.pop("object_prefix")[4:].decode().replace(str(identity), "ID")
    kept = {key: value for key, value in header.items() if not key.endswith("_timestamp") and key != "snap_seq"}
    return {**kept, "object_prefix": prefix.encode()}, bytes(context.read(f"rbd_object_map.{identity}", 65536))


async def test_what_is_made_is_what_librbd_makes(bench: RbdBench, image: Path) -> None:
    data = "rbd-ec-data" if bench.pool == "rbd-ec" else None
    bench.rig.admin.conf_set("rbd_default_clone_format", "1")
    await bench.storage.create("dsk-1", 16, FromImage("img", image))
    await bench.storage.create("dsk-2", 24, None)
    options = (FEATURES, None)
    rbd.RBD().clone(bench.context, "image-img", "base", bench.context, "dsk-3.0", *options, data_pool=data)
    rbd.RBD().create(bench.context, "dsk-4.0", 24 * MIB, None, False, FEATURES, data_pool=data)
    for ours, theirs, owner in (("dsk-1.0", "dsk-3.0", "disk/dsk-1"), ("dsk-2.0", "dsk-4.0", "disk/dsk-2")):
        with rbd.Image(bench.context, theirs) as other:
            other.metadata_set(names.OWNER, owner)
        assert content_of(bench.context, ours) == content_of(bench.context, theirs)
    with rbd.Image(bench.context, "image-img", snapshot="base", read_only=True) as base:
        assert sorted(name for _, name in base.list_children()) == ["dsk-1.0", "dsk-3.0"]
    facts = await bench.storage.create("dsk-5", 20, FromImage("img", None))
    assert facts == await bench.restart().show("dsk-5") and facts.size_mib == 20
    assert bench.read("dsk-5", 0, 2 * MIB) == image.read_bytes()[: 2 * MIB]
    assert bench.read("dsk-5", 16 * MIB, 4 * MIB) == bytes(4 * MIB)


async def test_a_disk_made_from_a_snapshot_knows_nothing_of_its_origins_roll_backs(bench: RbdBench) -> None:
    """librbd copies a parent's metadata, and with it the number of the parent's last roll back."""
    await bench.storage.create("dsk-1", 8, None)
    await bench.storage.snapshot("dsk-1", "snp-1")
    await bench.storage.roll_back("dsk-1", "snp-1", 3)
    await bench.storage.create("dsk-2", 8, FromSnapshot("dsk-1", "snp-1"))
    facts = await bench.storage.show("dsk-2")
    assert facts is not None and facts.rolled_back == 0 and facts.origin == "snapshot/snp-1"


class _Killed(Exception):
    """The agent is dead from here on."""


class _Cut:
    """An I/O context that carries out so many operations."""

    def __init__(self, context: Any, operations: int) -> None:
        self._context = context
        self._left = operations

    def __getattr__(self, name: str) -> Any:
        if name in ("execute", "aio_execute", "operate_aio_write_op"):
            if not self._left:
                raise _Killed
            self._left -= 1
        return getattr(self._context, name)


async def test_of_an_image_that_was_cut_short_anywhere_nothing_is_left(bench: RbdBench, image: Path) -> None:
    await bench.storage.create("dsk-1", 16, FromImage("img", image))
    with rbd.Image(bench.context, "image-img", snapshot="base", read_only=True) as base:
        parent = Parent.of(base, "base")
    data = bench.rig.admin.pool_lookup("rbd-ec-data") if bench.pool == "rbd-ec" else None
    made = []
    for operations in itertools.count(1):
        disk, origin = f"dsk-{operations + 1}", (parent.image, parent.snapshot)
        name = names.partial(NODE, disk, 0, "0badcafe", operations, origin)
        identity = f"cut{operations:011d}"
        made.append(identity)
        ask = (name, identity, 16 * MIB, FEATURES, (names.OWNER, "disk/dsk-x"))
        try:
            rbd_direct.make(_Cut(bench.context, operations), *ask, data_pool=data, parent=parent)
        except _Killed:
            continue
        break
    assert len(made) == 6 and len(rbd.RBD().list(bench.context)) == len(made) + 2
    bench.restart()
    await bench.storage.show("dsk-1")  # the first thing asked of it makes an agent look for what is left
    async with asyncio.timeout(30):
        while sorted(rbd.RBD().list(bench.context)) != ["dsk-1.0", "image-img"]:
            await asyncio.sleep(0.05)
    assert not [item.key for item in bench.context.list_objects() if any(one in item.key for one in made)]
    with rbd.Image(bench.context, "image-img", snapshot="base", read_only=True) as base:
        assert [name for _, name in base.list_children()] == ["dsk-1.0"]
