"""What the fake adds for those who test with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from scloud.drivers.storage.fake import FakeDisk, FakeStorage
from scloud.drivers.storage.protocol import FromImage
from scloud.model.errors import CloudError, ErrorKind


async def test_the_bytes_of_a_running_vm_are_never_thrown_away() -> None:
    disk = FakeDisk()
    storage = FakeStorage(disk)
    await storage.create("dsk-1", 10, None)
    disk.mark_in_use("dsk-1")
    first = disk.volumes["dsk-1"].making
    await storage.create("dsk-1", 10, None)
    assert disk.volumes["dsk-1"].making == first
    with pytest.raises(AssertionError, match="made anew while"):
        await storage.create("dsk-1", 10, None, incarnation=1)
    with pytest.raises(AssertionError, match="deleted while"):
        await storage.delete("dsk-1")
    disk.release("dsk-1")
    await storage.create("dsk-1", 10, None, incarnation=1)
    assert disk.volumes["dsk-1"].making != first


async def test_failures_come_in_turn_or_for_good() -> None:
    disk = FakeDisk(failures=[CloudError(ErrorKind.ENGINE, "cable")])
    storage = FakeStorage(disk)
    with pytest.raises(CloudError, match="cable"):
        await storage.disks()
    assert await storage.disks() == []
    disk.failing["create"] = CloudError(ErrorKind.NO_CAPACITY, "full")
    for _ in range(2):
        with pytest.raises(CloudError, match="full"):
            await storage.create("dsk-1", 10, None)
    assert await storage.disks() == []


async def test_registered_images_have_sizes() -> None:
    disk = FakeDisk(capacity_mib=100)
    disk.add_image(Path("/images/a"), 50, 20)
    storage = FakeStorage(disk)
    await storage.create("dsk-1", 60, FromImage("img", Path("/images/a")))
    assert await storage.free_mib() == (80, 100)
    with pytest.raises(CloudError) as caught:
        await storage.create("dsk-2", 60, FromImage("img", Path("/images/unknown")))
    assert caught.value.kind == ErrorKind.NOT_FOUND
