"""What every storage backend owes the agent; the same tests on the fake and on files."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
from rbd_bench import CEPH_POOLS, RbdBench

from scloud.drivers.storage import sparse
from scloud.drivers.storage.fake import FakeDisk, FakeStorage
from scloud.drivers.storage.local import LocalStorage
from scloud.drivers.storage.protocol import DiskFacts, FromImage, FromSnapshot, Storage
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.observed import PoolLeft
from scloud.model.snapshots import DiskLimits

MIB = 1024 * 1024


class Bench(Protocol):
    """A backend, its hardware, and a guest's hand on the bytes. `clone_mib` is what a disk of the image occupies."""

    storage: Storage
    clone_mib: int
    origin: str | None

    def restart(self) -> Storage: ...
    def read(self, disk: str, offset: int, length: int) -> bytes: ...
    def write(self, disk: str, offset: int, data: bytes) -> None: ...
    def fill(self, leave_mib: int) -> None: ...
    def slow(self) -> None: ...
    async def begun(self) -> None: ...
    def put_stranger(self, name: str) -> None: ...


class FakeBench:
    def __init__(self, shared: bool) -> None:
        self.disk = FakeDisk(capacity_mib=64, shared=shared)
        self.storage: Storage = FakeStorage(self.disk)
        self.clone_mib = 0 if shared else 2
        self.origin = "image/img" if shared else None

    def restart(self) -> Storage:
        self.storage = FakeStorage(self.disk)
        return self.storage

    def read(self, disk: str, offset: int, length: int) -> bytes:
        return self.disk.read(disk, offset, length)

    def write(self, disk: str, offset: int, data: bytes) -> None:
        self.disk.write(disk, offset, data)

    def fill(self, leave_mib: int) -> None:
        self.disk.filled_mib += self.disk.free() - leave_mib

    def slow(self) -> None:
        self.disk.copy_s_per_mib = 10.0

    async def begun(self) -> None:
        while not self.disk.partial:
            await asyncio.sleep(0)

    def put_stranger(self, name: str) -> None:
        self.disk.strangers.add(name)


class LocalBench:
    """On a file system of its own, so that it can be filled."""

    clone_mib = 2
    origin = None

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root / "disks"
        self.storage: Storage = LocalStorage(self.root)
        self._monkeypatch = monkeypatch

    def restart(self) -> Storage:
        self.storage = LocalStorage(self.root)
        return self.storage

    def put_stranger(self, name: str) -> None:
        (self.root / name).write_bytes(b"mine")

    def _path(self, disk: str) -> Path:
        (path,) = self.root.glob(f"{disk}.*raw")
        return path

    def read(self, disk: str, offset: int, length: int) -> bytes:
        with self._path(disk).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def write(self, disk: str, offset: int, data: bytes) -> None:
        with self._path(disk).open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def fill(self, leave_mib: int) -> None:
        stat = os.statvfs(self.root)
        with (self.root.parent / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_frsize - leave_mib * MIB)

    def slow(self) -> None:
        """The copy blocks until it is told to stop, as that of a huge image on a hung disk would."""

        def copy(source: int, target: int, stop: Callable[[], bool]) -> None:
            os.pwrite(target, b"x" * MIB, 0)
            while not stop():
                os.sched_yield()
            raise sparse.Stopped

        self._monkeypatch.setattr(sparse, "reflink", lambda source, target: False)
        self._monkeypatch.setattr(sparse, "copy", copy)

    async def begun(self) -> None:
        while not list(self.root.glob(".*.part")):
            await asyncio.sleep(0)


@pytest.fixture
def small_file_system(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "mount"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "scloud-test", mount], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", mount], check=True)


@pytest.fixture(params=["fake", "fake-pool", pytest.param("tmpfs", marks=pytest.mark.engine), *CEPH_POOLS])
async def bench(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    if request.param in ("fake", "fake-pool"):
        yield FakeBench(shared=request.param == "fake-pool")
        return
    if request.param in ("rbd", "rbd-ec"):
        async with RbdBench(request.getfixturevalue("ceph"), request.param, monkeypatch) as made:
            yield made
        return
    yield LocalBench(request.getfixturevalue("small_file_system"), monkeypatch)


LIMITED = ["fake", "fake-pool", pytest.param("tmpfs", marks=pytest.mark.engine)]
"""Benches that can be filled: a full pool keeps its clients waiting, so that none may become full."""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """8 MiB long, 2 MiB of data: one at the start, one at 4 MiB."""
    path = tmp_path / "image.raw"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
        for at, letter in ((0, b"a"), (4 * MIB, b"b")):
            file.seek(at)
            file.write(letter * MIB)
    return path


def made(bench: Bench, *, size_mib: int = 20, incarnation: int = 0) -> DiskFacts:
    """A disk as it is right after it was made from the image."""
    return DiskFacts(
        disk="dsk-1", size_mib=size_mib, used_mib=bench.clone_mib, incarnation=incarnation, origin=bench.origin
    )


def kind(caught: pytest.ExceptionInfo[CloudError]) -> ErrorKind:
    return caught.value.kind


async def test_an_empty_disk_is_thin_and_reads_as_zeros(bench: Bench) -> None:
    await bench.storage.create("dsk-1", 1000, None)
    assert await bench.storage.show("dsk-1") == DiskFacts(disk="dsk-1", size_mib=1000, used_mib=0)
    assert bench.read("dsk-1", 999 * MIB, MIB) == bytes(MIB)


async def test_a_disk_has_its_images_bytes_and_holes(bench: Bench, image: Path) -> None:
    await bench.storage.create("dsk-1", 20, FromImage("img", image), incarnation=3)
    assert await bench.storage.show("dsk-1") == made(bench, incarnation=3)
    assert bench.read("dsk-1", 0, MIB) == b"a" * MIB
    assert bench.read("dsk-1", MIB, 3 * MIB) == bytes(3 * MIB)
    assert bench.read("dsk-1", 4 * MIB, 2 * MIB) == b"b" * MIB + bytes(MIB)
    assert bench.read("dsk-1", 19 * MIB, MIB) == bytes(MIB)


async def test_making_it_again_with_the_same_incarnation_keeps_what_the_guest_wrote(bench: Bench, image: Path) -> None:
    await bench.storage.create("dsk-1", 20, FromImage("img", image))
    bench.write("dsk-1", 10 * MIB, b"precious")
    await bench.storage.create("dsk-1", 20, FromImage("img", image))
    await bench.restart().create("dsk-1", 20, FromImage("img", image))
    assert bench.read("dsk-1", 10 * MIB, 8) == b"precious"


@pytest.mark.parametrize("incarnation", [0, 2, 10])
async def test_another_incarnation_makes_the_bytes_anew(bench: Bench, image: Path, incarnation: int) -> None:
    await bench.storage.create("dsk-1", 20, FromImage("img", image), incarnation=1)
    before = await bench.storage.locate("dsk-1")
    bench.write("dsk-1", 0, b"written by a guest")
    await bench.storage.create("dsk-1", 24, FromImage("img", image), incarnation=incarnation)
    assert bench.read("dsk-1", 0, 18) == b"a" * 18
    facts = [made(bench, size_mib=24, incarnation=incarnation)]
    assert await bench.storage.disks() == facts
    assert await bench.restart().disks() == facts
    assert await bench.storage.locate("dsk-1") != before


async def test_disks_outlive_the_agent(bench: Bench, image: Path) -> None:
    await bench.storage.create("dsk-2", 20, FromImage("img", image), incarnation=7)
    await bench.storage.create("dsk-1", 5, None)
    before = await bench.storage.disks()
    assert [facts.disk for facts in before] == ["dsk-1", "dsk-2"]
    assert await bench.restart().disks() == before


async def test_a_disk_smaller_than_its_image_is_refused(bench: Bench, image: Path) -> None:
    with pytest.raises(CloudError, match=r"at least the image's 8 MiB, not 7") as caught:
        await bench.storage.create("dsk-1", 7, FromImage("img", image))
    assert kind(caught) == ErrorKind.INVALID
    assert await bench.storage.disks() == []


async def test_a_missing_image_is_named(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(CloudError, match=r"gone\.raw") as caught:
        await bench.storage.create("dsk-1", 7, FromImage("img", tmp_path / "gone.raw"))
    assert kind(caught) == ErrorKind.NOT_FOUND
    assert await bench.storage.show("dsk-1") is None


async def test_disks_grow_and_never_shrink(bench: Bench) -> None:
    await bench.storage.create("dsk-1", 10, None)
    bench.write("dsk-1", 0, b"kept")
    await bench.storage.resize("dsk-1", 12)
    await bench.storage.resize("dsk-1", 12)
    with pytest.raises(CloudError, match=r"cannot shrink: it has 12 MiB, not 11") as caught:
        await bench.storage.resize("dsk-1", 11)
    assert kind(caught) == ErrorKind.INVALID
    facts = await bench.restart().show("dsk-1")
    assert facts is not None and facts.size_mib == 12
    assert bench.read("dsk-1", 0, 4) == b"kept"


async def test_delete_works_always(bench: Bench, image: Path) -> None:
    await bench.storage.create("dsk-1", 20, FromImage("img", image))
    await bench.storage.delete("dsk-1")
    await bench.storage.delete("dsk-1")
    await bench.storage.delete("dsk-never-made")
    assert await bench.storage.show("dsk-1") is None
    assert await bench.restart().disks() == []


async def test_unknown_disks_are_not_found(bench: Bench) -> None:
    assert await bench.storage.show("dsk-1") is None
    for call in (bench.storage.locate("dsk-1"), bench.storage.resize("dsk-1", 5)):
        with pytest.raises(CloudError, match="dsk-1") as caught:
            await call
        assert kind(caught) == ErrorKind.NOT_FOUND


@pytest.mark.parametrize("bench", LIMITED, indirect=True)
async def test_space_is_given_back(bench: Bench, image: Path) -> None:
    await bench.storage.create("dsk-0", 20, FromImage("img", image))
    free = await bench.storage.free_mib()
    await bench.storage.create("dsk-1", 20, FromImage("img", image))
    assert (await bench.storage.free_mib())[0] == free[0] - bench.clone_mib
    await bench.storage.delete("dsk-1")
    assert await bench.storage.free_mib() == free


@pytest.mark.parametrize("bench", LIMITED, indirect=True)
async def test_what_does_not_fit_is_refused_with_what_is_free(bench: Bench, image: Path) -> None:
    bench.fill(leave_mib=1)
    with pytest.raises(CloudError, match=r"needs 2 MiB.* 1 .*64") as caught:
        await bench.storage.create("dsk-1", 20, FromImage("img", image))
    assert kind(caught) == ErrorKind.NO_CAPACITY
    assert await bench.storage.disks() == []
    assert (await bench.storage.free_mib())[0] == 1
    await bench.storage.create("dsk-2", 500, None)


@pytest.mark.parametrize("bench", LIMITED, indirect=True)
async def test_a_failed_rebuild_leaves_the_disk_as_it_was(bench: Bench, image: Path) -> None:
    await bench.storage.create("dsk-1", 20, FromImage("img", image))
    bench.write("dsk-1", 0, b"precious")
    bench.fill(leave_mib=1)
    with pytest.raises(CloudError):
        await bench.storage.create("dsk-1", 20, FromImage("other", image), incarnation=1)
    facts = await bench.restart().show("dsk-1")
    assert facts is not None and facts.incarnation == 0
    assert bench.read("dsk-1", 0, 8) == b"precious"


async def test_a_cancelled_making_leaves_nothing(bench: Bench, image: Path) -> None:
    bench.slow()
    making = asyncio.create_task(bench.storage.create("dsk-1", 20, FromImage("img", image)))
    await bench.begun()
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert await bench.storage.disks() == []
    assert await bench.storage.images() == []


async def test_two_requests_for_one_disk_make_it_once(bench: Bench, image: Path) -> None:
    await asyncio.gather(*(bench.storage.create("dsk-1", 20, FromImage("img", image)) for _ in range(8)))
    assert await bench.storage.disks() == [made(bench)]


async def test_many_disks_at_once(bench: Bench, image: Path) -> None:
    names = sorted(f"dsk-{number}" for number in range(20))
    await asyncio.gather(*(bench.storage.create(name, 20, FromImage("img", image)) for name in names))
    assert [facts.disk for facts in await bench.storage.disks()] == names
    assert all(bench.read(name, 4 * MIB, MIB) == b"b" * MIB for name in names)


# --- snapshots


async def test_a_snapshot_keeps_the_bytes_and_a_roll_back_brings_them_back(bench: Bench, image: Path) -> None:
    storage = bench.storage
    await storage.create("dsk-1", 20, FromImage("img", image))
    bench.write("dsk-1", 10 * MIB, b"first")
    await storage.snapshot("dsk-1", "snp-1")
    bench.write("dsk-1", 10 * MIB, b"other")
    await storage.snapshot("dsk-1", "snp-1")
    await storage.resize("dsk-1", 24)
    await storage.snapshot("dsk-1", "snp-2")
    facts = await bench.restart().show("dsk-1")
    assert facts is not None and facts.snapshots == (("snp-1", 20), ("snp-2", 24)) and facts.size_mib == 24
    for _ in range(2):
        await bench.storage.roll_back("dsk-1", "snp-1", 1)
        assert bench.read("dsk-1", 10 * MIB, 5) == b"first"
    bench.write("dsk-1", 10 * MIB, b"third")
    await bench.restart().roll_back("dsk-1", "snp-1", 1)
    assert bench.read("dsk-1", 10 * MIB, 5) == b"third", "the same roll back is carried out once"
    facts = await bench.storage.show("dsk-1")
    assert facts is not None and (facts.size_mib, facts.rolled_back) == (20, 1)
    await bench.storage.roll_back("dsk-1", "snp-2", 2)
    assert bench.read("dsk-1", 10 * MIB, 5) == b"other"
    assert bench.read("dsk-1", 0, MIB) == b"a" * MIB


async def test_snapshots_go_one_by_one_or_with_their_disk(bench: Bench) -> None:
    storage = bench.storage
    await storage.create("dsk-1", 8, None)
    for name in ("snp-2", "snp-1", "snp-3"):
        await storage.snapshot("dsk-1", name)
    for _ in range(2):
        await storage.delete_snapshot("dsk-1", "snp-1")
    facts = await bench.restart().show("dsk-1")
    assert facts is not None and [name for name, _ in facts.snapshots] == ["snp-2", "snp-3"]
    for call in (bench.storage.roll_back("dsk-1", "snp-1", 1), bench.storage.snapshot("dsk-2", "snp-1")):
        with pytest.raises(CloudError) as caught:
            await call
        assert kind(caught) == ErrorKind.NOT_FOUND
    await bench.storage.delete("dsk-1")
    await bench.storage.delete_snapshot("dsk-1", "snp-2")
    await bench.storage.create("dsk-1", 8, None)
    facts = await bench.storage.show("dsk-1")
    assert facts is not None and facts.snapshots == ()


async def test_a_disk_from_a_snapshot_begins_with_its_bytes_and_goes_its_own_way(bench: Bench, image: Path) -> None:
    storage = bench.storage
    await storage.create("dsk-1", 20, FromImage("img", image))
    bench.write("dsk-1", 10 * MIB, b"first")
    await storage.snapshot("dsk-1", "snp-1")
    bench.write("dsk-1", 10 * MIB, b"other")
    with pytest.raises(CloudError, match="20 MiB, not 19") as caught:
        await storage.create("dsk-2", 19, FromSnapshot("dsk-1", "snp-1"))
    assert kind(caught) == ErrorKind.INVALID
    await storage.create("dsk-2", 32, FromSnapshot("dsk-1", "snp-1"))
    bench.write("dsk-2", 0, b"mine")
    assert bench.read("dsk-2", 10 * MIB, 5) == b"first"
    assert bench.read("dsk-1", 0, 4) == b"aaaa"
    facts = await bench.restart().show("dsk-2")
    assert facts is not None and facts.size_mib == 32
    assert facts.origin == ("snapshot/snp-1" if storage.shared else None)
    with pytest.raises(CloudError, match="snp-9") as caught:
        await bench.storage.create("dsk-3", 32, FromSnapshot("dsk-1", "snp-9"))
    assert kind(caught) == ErrorKind.NOT_FOUND


async def test_what_disks_depend_on_is_not_thrown_away_until_they_are_flat(bench: Bench, image: Path) -> None:
    storage = bench.storage
    await storage.create("dsk-1", 20, FromImage("img", image))
    await storage.snapshot("dsk-1", "snp-1")
    await storage.create("dsk-2", 20, FromSnapshot("dsk-1", "snp-1"))
    if storage.shared:
        for call in (
            storage.delete_snapshot("dsk-1", "snp-1"),
            storage.delete("dsk-1"),
            storage.create("dsk-1", 20, FromImage("img", image), incarnation=1),
        ):
            with pytest.raises(CloudError, match="disk/dsk-2") as caught:
                await call
            assert kind(caught) == ErrorKind.IN_USE and caught.value.users == ("disk/dsk-2",)
    await storage.flatten("dsk-2")
    await storage.flatten("dsk-2")
    facts = await bench.restart().show("dsk-2")
    assert facts is not None and facts.origin is None
    await bench.storage.delete("dsk-1")
    assert [one.disk for one in await bench.storage.disks()] == ["dsk-2"]
    assert bench.read("dsk-2", 4 * MIB, MIB) == b"b" * MIB


# --- bytes in and out


async def told(storage: Storage, disk: str, snapshot: str, since: str | None) -> AsyncIterator[tuple[int, bytes | int]]:
    async for extent in storage.export(disk, snapshot, since):
        yield extent


async def test_an_export_and_its_increment_restore_the_same_bytes(bench: Bench, image: Path) -> None:
    storage = bench.storage
    await storage.create("dsk-1", 20, FromImage("img", image))
    bench.write("dsk-1", 15 * MIB, b"first" * 1000)
    await storage.snapshot("dsk-1", "snp-1")
    bench.write("dsk-1", 12 * MIB + 5, b"second")
    bench.write("dsk-1", 0, bytes(MIB))
    await storage.snapshot("dsk-1", "snp-2")
    bench.write("dsk-1", 0, b"not in any snapshot")
    await storage.create("dsk-2", 20, None)
    await storage.restore("dsk-2", told(storage, "dsk-1", "snp-1", None))
    assert bench.read("dsk-2", 15 * MIB, 5000) == b"first" * 1000
    assert bench.read("dsk-2", 0, MIB) == b"a" * MIB and bench.read("dsk-2", 5 * MIB, MIB) == bytes(MIB)
    await storage.restore("dsk-2", told(storage, "dsk-1", "snp-2", "snp-1"))
    await storage.roll_back("dsk-1", "snp-2", 1)
    assert bench.read("dsk-2", 0, 20 * MIB) == bench.read("dsk-1", 0, 20 * MIB)
    moved = [len(piece) async for _, piece in storage.export("dsk-1", "snp-2", "snp-1") if isinstance(piece, bytes)]
    assert sum(moved) <= 8 * MIB, "an increment has only what has changed"


async def test_an_export_of_what_is_not_there_and_a_restore_past_the_end_are_refused(bench: Bench) -> None:
    storage = bench.storage
    await storage.create("dsk-1", 4, None)
    await storage.snapshot("dsk-1", "snp-1")
    for disk, snapshot, since in (("dsk-1", "snp-9", None), ("dsk-1", "snp-1", "snp-9"), ("dsk-9", "snp-1", None)):
        with pytest.raises(CloudError) as caught:
            assert [one async for one in storage.export(disk, snapshot, since)] == []
        assert kind(caught) == ErrorKind.NOT_FOUND

    async def beyond() -> AsyncIterator[tuple[int, bytes | int]]:
        yield 4 * MIB - 1, b"xx"

    with pytest.raises(CloudError, match=str(4 * MIB)) as caught:
        await storage.restore("dsk-1", beyond())
    assert kind(caught) == ErrorKind.INVALID


async def test_limits_are_taken_for_disks_that_are_there(bench: Bench) -> None:
    await bench.storage.create("dsk-1", 4, None)
    await bench.storage.limit("dsk-1", DiskLimits(iops=100, kib_per_s=2048))
    with pytest.raises(CloudError) as caught:
        await bench.storage.limit("dsk-2", DiskLimits(iops=100))
    assert kind(caught) == ErrorKind.NOT_FOUND


async def test_what_is_nothing_of_ours_is_told_and_left_alone(bench: Bench) -> None:
    bench.put_stranger("somebodys")
    bench.put_stranger("my backup")
    assert await bench.storage.strangers() == ["my backup", "somebodys"]
    await bench.storage.create("dsk-1", 8, None)
    storage = bench.restart()
    assert await storage.strangers() == ["my backup", "somebodys"]
    assert [facts.disk for facts in await storage.disks()] == ["dsk-1"]


async def test_of_what_is_made_anew_or_deleted_nothing_remains(bench: Bench) -> None:
    await bench.storage.create("dsk-1", 8, None)
    bench.write("dsk-1", 0, b"former")
    await bench.storage.create("dsk-1", 8, None, 1)
    assert not await bench.storage.remains("dsk-1")
    bench.write("dsk-1", 0, b"latter")
    await bench.storage.clear("dsk-1")
    await bench.storage.mend("dsk-1")
    assert bench.read("dsk-1", 0, 6) == b"latter"
    assert await bench.storage.left() == PoolLeft()
    await bench.storage.delete("dsk-1")
    assert not await bench.storage.remains("dsk-1")
    assert await bench.storage.left() == PoolLeft() and await bench.storage.disks() == []
