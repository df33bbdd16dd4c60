"""What only a folder of files can get wrong."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scloud.drivers.storage import sparse
from scloud.drivers.storage.local import LocalStorage
from scloud.drivers.storage.protocol import FromImage, FromSnapshot
from scloud.model.errors import CloudError, ErrorKind

MIB = 1024 * 1024


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(os.urandom(2 * MIB))
    os.truncate(path, 5 * MIB)
    return path


@contextmanager
def mounted(point: Path, *options: str) -> Iterator[Path]:
    point.mkdir()
    subprocess.run(["mount", *options, point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)


def formatted(device: Path, kind: str) -> Path:
    with device.open("wb") as file:
        file.truncate(320 * MIB)
    subprocess.run([f"mkfs.{kind}", "-q", device], check=True)
    return device


def names(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir())


async def test_leftovers_of_a_crash_are_swept_at_the_start(tmp_path: Path) -> None:
    (tmp_path / ".dsk-1.99-0.part").write_bytes(b"half")
    for incarnation in (9, 10):
        (tmp_path / f"dsk-2.{incarnation}.raw").write_bytes(bytes(MIB))
    (tmp_path / "lost+found").mkdir()
    storage = LocalStorage(tmp_path)
    assert names(tmp_path) == ["dsk-2.10.raw", "lost+found"]
    assert [(facts.disk, facts.incarnation) for facts in await storage.disks()] == [("dsk-2", 10)]


@pytest.mark.parametrize("disk", ["../dsk", "", ".x", "a/b", "dsk-1.2", "a\n", "A"])
async def test_an_id_is_no_path(tmp_path: Path, disk: str) -> None:
    storage = LocalStorage(tmp_path / "disks")
    for call in (storage.create(disk, 1, None), storage.delete(disk), storage.show(disk), storage.locate(disk)):
        with pytest.raises(CloudError) as caught:
            await call
        assert caught.value.kind == ErrorKind.INVALID
    assert names(tmp_path) == ["disks"] and names(tmp_path / "disks") == []


@pytest.mark.parametrize("fails", ["copy", "ftruncate", "fsync", "rename"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
async def test_an_error_at_any_step_leaves_nothing(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, fails: str, code: int
) -> None:
    def broken(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    def half(source: int, target: int, stop: Callable[[], bool]) -> None:
        os.write(target, b"x" * MIB)
        broken()

    storage = LocalStorage(tmp_path / "disks")
    monkeypatch.setattr(sparse, "reflink", lambda source, target: False)
    with monkeypatch.context() as patch:
        if fails == "copy":
            patch.setattr(sparse, "copy", half)
        elif fails == "rename":
            patch.setattr(Path, "rename", broken)
        else:
            patch.setattr(os, fails, broken)
        with pytest.raises(CloudError) as caught:
            await storage.create("dsk-1", 10, FromImage("img", image))
    assert caught.value.kind == (ErrorKind.NO_CAPACITY if code == errno.ENOSPC else ErrorKind.ENGINE)
    assert "dsk-1" in caught.value.message
    assert names(tmp_path / "disks") == []
    await storage.create("dsk-1", 10, FromImage("img", image))
    assert (await storage.locate("dsk-1")).path.read_bytes()[: 5 * MIB] == image.read_bytes()


@pytest.mark.engine
async def test_space_that_ends_in_the_middle(tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For real: somebody else takes the space after it was checked."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m", "scloud-test") as mount:
        storage = LocalStorage(mount)
        monkeypatch.setattr(storage, "_require", lambda *_: None)
        with pytest.raises(CloudError, match=r"1 of 1 MiB are free") as caught:
            await storage.create("dsk-1", 10, FromImage("img", image))
        assert caught.value.kind == ErrorKind.NO_CAPACITY
        assert names(mount) == []


@pytest.mark.engine
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
async def test_on_real_file_systems(tmp_path: Path, kind: str) -> None:
    """XFS shares the extents: the disk takes no space until the guest writes; ext4 copies them."""
    with mounted(tmp_path / "mount", "-o", "loop", str(formatted(tmp_path / "device", kind))) as mount:
        storage = LocalStorage(mount / "disks")
        image = mount / "image.raw"
        with image.open("wb") as file:
            file.write(os.urandom(32 * MIB))
            file.truncate(64 * MIB)
            os.fsync(file.fileno())
        before = (await storage.free_mib())[0]
        await storage.create("dsk-1", 100, FromImage("img", image))
        os.sync()
        taken = before - (await storage.free_mib())[0]
        assert taken <= 2 if kind == "xfs" else 31 <= taken <= 34
        made = (await storage.locate("dsk-1")).path.read_bytes()
        assert made == image.read_bytes() + bytes(36 * MIB)


async def test_a_killed_maker_leaves_no_disk(tmp_path: Path, image: Path) -> None:
    """SIGKILL in the middle of a copy; the next driver finds nothing and can make it."""
    root = tmp_path / "disks"
    script = f"""
import asyncio, os, pathlib, time
from scloud.drivers.storage import sparse
from scloud.drivers.storage.local import LocalStorage
from scloud.drivers.storage.protocol import FromImage, FromSnapshot
def copy(source, target, stop):
    os.write(target, b"x" * {MIB})
    print("begun", flush=True)
    time.sleep(60)
sparse.reflink = lambda source, target: False
sparse.copy = copy
source = FromImage("img", pathlib.Path({str(image)!r}))
asyncio.run(LocalStorage(pathlib.Path({str(root)!r})).create("dsk-1", 10, source))
"""
    maker = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    assert maker.stdout is not None and await maker.stdout.readline() == b"begun\n"
    maker.kill()
    await maker.wait()
    assert len(names(root)) == 1
    storage = LocalStorage(root)
    assert names(root) == [] and await storage.show("dsk-1") is None
    await storage.create("dsk-1", 10, FromImage("img", image))
    assert names(root) == ["dsk-1.0.raw"]


async def test_a_disk_whose_file_was_lost_is_gone_and_can_be_made_anew(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    await storage.create("dsk-1", 10, None)
    (await storage.locate("dsk-1")).path.unlink()
    assert await storage.show("dsk-1") is None and await storage.disks() == []
    await storage.create("dsk-1", 11, None)
    facts = await storage.show("dsk-1")
    assert facts is not None and facts.size_mib == 11


async def test_looking_at_one_disk_does_not_cost_a_look_at_all(tmp_path: Path) -> None:
    for number in range(3000):
        (tmp_path / f"dsk-{number}.0.raw").touch()
    storage = LocalStorage(tmp_path)
    begin = time.perf_counter()
    for number in range(200):
        assert await storage.show(f"dsk-{number}") is not None
    assert (time.perf_counter() - begin) / 200 < 0.002


@settings(max_examples=40, deadline=None)
@given(
    runs=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 9000)), max_size=6),
    length=st.integers(0, 300),
    in_kernel=st.booleans(),
)
def test_copies_are_exact_and_keep_holes(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[int, int]], length: int, in_kernel: bool
) -> None:
    """Runs of data at any place, by copy_file_range and by the way that is taken where it does not work."""
    folder = tmp_path_factory.mktemp("copy")
    source, target = folder / "source", folder / "target"
    with source.open("wb") as file:
        for page, size in runs:
            file.seek(page * 4096)
            file.write(os.urandom(size))
        file.truncate(max(length * 4096, file.seek(0, os.SEEK_END)))
    with source.open("rb") as reader, target.open("w+b") as writer, pytest.MonkeyPatch.context() as patch:
        if not in_kernel:

            def refuse(*_: object) -> int:
                raise OSError(errno.EXDEV, "across file systems")

            patch.setattr(os, "copy_file_range", refuse)
        sparse.copy(reader.fileno(), writer.fileno(), lambda: False)
        writer.truncate(source.stat().st_size)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_blocks <= source.stat().st_blocks


@contextmanager
def open_in_qemu(path: Path) -> Iterator[None]:
    """As QEMU does it: shared locks on some bytes of the file, which belong to the open file."""
    with path.open("r+b") as file:
        lock = struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, 100, 1, 0)
        fcntl.fcntl(file.fileno(), fcntl.F_OFD_SETLK, lock)
        yield


async def test_without_reflinks_a_disk_in_use_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    monkeypatch.setattr(sparse, "reflink", lambda source, target: False)
    await storage.create("dsk-1", 4, None)
    with open_in_qemu((await storage.locate("dsk-1")).path):
        with pytest.raises(CloudError, match="stop the VM or detach the disk") as caught:
            await storage.snapshot("dsk-1", "snp-1")
        assert caught.value.kind == ErrorKind.CONFLICT
    await storage.snapshot("dsk-1", "snp-1")
    facts = await storage.show("dsk-1")
    assert facts is not None and facts.snapshots == (("snp-1", 4),)


@pytest.mark.engine
async def test_reflinks_keep_a_disk_while_it_is_written(tmp_path: Path) -> None:
    device = formatted(tmp_path / "device", "xfs")
    with mounted(tmp_path / "mount", "-o", "loop", str(device)) as point:
        storage = LocalStorage(point)
        await storage.create("dsk-1", 16, None)
        path = (await storage.locate("dsk-1")).path
        with open_in_qemu(path), path.open("r+b") as guest:
            guest.write(b"a" * 4 * MIB)
            guest.flush()
            used = (await storage.free_mib())[0]
            await storage.snapshot("dsk-1", "snp-1")
            assert used - (await storage.free_mib())[0] < 2, "a snapshot shares the disk's bytes"
            guest.seek(0)
            guest.write(b"b" * MIB)
        await storage.create("dsk-2", 16, FromSnapshot("dsk-1", "snp-1"))
        assert (await storage.locate("dsk-2")).path.read_bytes()[: 5 * MIB] == b"a" * 4 * MIB + bytes(MIB)


async def test_leftovers_of_crashed_roll_backs_and_rebuilds_are_swept(tmp_path: Path) -> None:
    for name in (
        "dsk-1.2.raw",
        "dsk-1.2.3.raw",
        "dsk-1.2.1.snp-1.snap",
        "dsk-1.1.1.snp-0.snap",
        "dsk-9.0.1.snp-9.snap",
    ):
        (tmp_path / name).write_bytes(bytes(MIB))
    storage = LocalStorage(tmp_path)
    assert names(tmp_path) == ["dsk-1.2.1.snp-1.snap", "dsk-1.2.3.raw"]
    facts = await storage.show("dsk-1")
    assert facts is not None and (facts.rolled_back, facts.snapshots) == (3, (("snp-1", 1),))
    await storage.create("dsk-1", 4, None, incarnation=3)
    assert names(tmp_path) == ["dsk-1.3.raw"]
