"""What every storage backend owes the agent; the same tests on the fake and on files."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from scloud.drivers.storage import sparse
from scloud.drivers.storage.fake import FakeDisk, FakeStorage
from scloud.drivers.storage.local import LocalStorage
from scloud.drivers.storage.protocol import DiskFacts, FromImage, Storage
from scloud.model.errors import CloudError, ErrorKind

MIB = 1024 * 1024


class Bench(Protocol):
    """A backend, its hardware, and a guest's hand on the bytes."""

    storage: Storage

    def restart(self) -> Storage: ...
    def read(self, disk: str, offset: int, length: int) -> bytes: ...
    def write(self, disk: str, offset: int, data: bytes) -> None: ...
    def fill(self, leave_mib: int) -> None: ...
    def slow(self) -> None: ...


class FakeBench:
    def __init__(self) -> None:
        self.disk = FakeDisk(capacity_mib=64)
        self.storage: Storage = FakeStorage(self.disk)

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


class LocalBench:
    """On a file system of its own, so that it can be filled."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root / "disks"
        self.storage: Storage = LocalStorage(self.root)
        self._monkeypatch = monkeypatch

    def restart(self) -> Storage:
        self.storage = LocalStorage(self.root)
        return self.storage

    def _path(self, disk: str) -> Path:
        (path,) = self.root.glob(f"{disk}.*")
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


@pytest.fixture(params=["fake", pytest.param("tmpfs", marks=pytest.mark.engine)])
def bench(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    if request.param == "fake":
        yield FakeBench()
        return
    mount = tmp_path / "mount"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "scloud-test", mount], check=True)
    try:
        yield LocalBench(mount, monkeypatch)
    finally:
        subprocess.run(["umount", mount], check=True)


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


def kind(caught: pytest.ExceptionInfo[CloudError]) -> ErrorKind:
    return caught.value.kind


async def test_an_empty_disk_is_thin_and_reads_as_zeros(bench: Bench) -> None:
    await bench.storage.create("dsk-1", 1000, None)
    assert await bench.storage.show("dsk-1") == DiskFacts(disk="dsk-1", size_mib=1000, used_mib=0)
    assert bench.read("dsk-1", 999 * MIB, MIB) == bytes(MIB)


async def test_a_disk_has_its_images_bytes_and_holes(bench: Bench, image: Path) -> None:
    await bench.storage.create("dsk-1", 20, FromImage("img", image), incarnation=3)
    assert await bench.storage.show("dsk-1") == DiskFacts(disk="dsk-1", size_mib=20, used_mib=2, incarnation=3)
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
    facts = [DiskFacts(disk="dsk-1", size_mib=24, used_mib=2, incarnation=incarnation)]
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
    with pytest.raises(CloudError, match=str(tmp_path / "gone.raw")) as caught:
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
    free = await bench.storage.free_mib()
    await bench.storage.create("dsk-1", 20, FromImage("img", image))
    assert (await bench.storage.free_mib())[0] == free[0] - 2
    await bench.storage.delete("dsk-1")
    await bench.storage.delete("dsk-1")
    await bench.storage.delete("dsk-never-made")
    assert await bench.storage.free_mib() == free
    assert await bench.storage.show("dsk-1") is None
    assert await bench.restart().disks() == []


async def test_unknown_disks_are_not_found(bench: Bench) -> None:
    assert await bench.storage.show("dsk-1") is None
    for call in (bench.storage.locate("dsk-1"), bench.storage.resize("dsk-1", 5)):
        with pytest.raises(CloudError, match="dsk-1") as caught:
            await call
        assert kind(caught) == ErrorKind.NOT_FOUND


async def test_what_does_not_fit_is_refused_with_what_is_free(bench: Bench, image: Path) -> None:
    bench.fill(leave_mib=1)
    with pytest.raises(CloudError, match=r"needs 2 MiB.* 1 .*64") as caught:
        await bench.storage.create("dsk-1", 20, FromImage("img", image))
    assert kind(caught) == ErrorKind.NO_CAPACITY
    assert await bench.storage.disks() == []
    assert (await bench.storage.free_mib())[0] == 1
    await bench.storage.create("dsk-2", 500, None)


async def test_a_failed_rebuild_leaves_the_disk_as_it_was(bench: Bench, image: Path) -> None:
    await bench.storage.create("dsk-1", 20, FromImage("img", image))
    bench.write("dsk-1", 0, b"precious")
    bench.fill(leave_mib=1)
    with pytest.raises(CloudError):
        await bench.storage.create("dsk-1", 20, FromImage("img", image), incarnation=1)
    facts = await bench.restart().show("dsk-1")
    assert facts is not None and facts.incarnation == 0
    assert bench.read("dsk-1", 0, 8) == b"precious"


async def test_a_cancelled_making_leaves_nothing(bench: Bench, image: Path) -> None:
    free = await bench.storage.free_mib()
    bench.slow()
    making = asyncio.create_task(bench.storage.create("dsk-1", 20, FromImage("img", image)))
    while await bench.storage.free_mib() == free:
        await asyncio.sleep(0)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert await bench.storage.disks() == []
    assert await bench.storage.free_mib() == free


async def test_two_requests_for_one_disk_make_it_once(bench: Bench, image: Path) -> None:
    await asyncio.gather(*(bench.storage.create("dsk-1", 20, FromImage("img", image)) for _ in range(8)))
    assert [facts.used_mib for facts in await bench.storage.disks()] == [2]


async def test_many_disks_at_once(bench: Bench, image: Path) -> None:
    names = sorted(f"dsk-{number}" for number in range(20))
    await asyncio.gather(*(bench.storage.create(name, 20, FromImage("img", image)) for name in names))
    assert [facts.disk for facts in await bench.storage.disks()] == names
    assert all(bench.read(name, 4 * MIB, MIB) == b"b" * MIB for name in names)
