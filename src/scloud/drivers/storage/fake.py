"""A storage backend in memory, for tests and the simulator.

`FakeDisk` is the hardware: it outlives any number of `FakeStorage` drivers, as a node's disk outlives its agent. Delays
are `asyncio.sleep`, so that they cost nothing under a virtual clock; each is a point where the agent may be killed.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from scloud.drivers.storage.protocol import DiskFacts
from scloud.model.errors import CloudError, ErrorKind, invalid

MIB = 1024 * 1024


@dataclass(frozen=True)
class FakeImage:
    """A raw file as the storage sees it: its length, and the part that is not holes. MiB."""

    size_mib: int
    data_mib: int


@dataclass
class FakeVolume:
    """One disk. `making` tells its bytes from those of every other making; `writes` is what a guest wrote since."""

    disk: str
    size_mib: int
    incarnation: int
    source: Path | None
    image_mib: int
    making: int
    writes: dict[int, bytes] = field(default_factory=dict)

    @property
    def used_mib(self) -> int:
        return self.image_mib + (sum(map(len, self.writes.values())) + MIB - 1) // MIB


@dataclass
class FakeDisk:
    """The state. A test reaches in to fail calls, fill the disk, act as a guest or look at what is there.

    `failures` are raised by the next calls, in turn; with a method's name in `failing` every call of it fails.
    `copy_s_per_mib` and `call_s` are seconds of the loop's clock.
    """

    capacity_mib: int = 1024 * 1024
    call_s: float = 0.0
    copy_s_per_mib: float = 0.0
    volumes: dict[str, FakeVolume] = field(default_factory=dict)
    images: dict[Path, FakeImage] = field(default_factory=dict)
    failures: list[CloudError] = field(default_factory=list)
    failing: dict[str, CloudError] = field(default_factory=dict)
    in_use: set[str] = field(default_factory=set)
    partial: dict[int, int] = field(default_factory=dict)
    """MiB held by makings under way."""
    filled_mib: int = 0
    """Occupied by something that is not ours."""
    makings: int = 0

    def add_image(self, path: Path, size_mib: int, data_mib: int | None = None) -> None:
        """Pretend that a raw file is there. Files that really exist need not be added."""
        self.images[path] = FakeImage(size_mib, size_mib if data_mib is None else data_mib)

    def mark_in_use(self, disk: str) -> None:
        """A running domain has it open: from now on its bytes must not be thrown away."""
        assert disk in self.volumes, f"a domain opened {disk}, which does not exist"
        self.in_use.add(disk)

    def release(self, disk: str) -> None:
        self.in_use.discard(disk)

    def free(self) -> int:
        used = sum(volume.used_mib for volume in self.volumes.values()) + sum(self.partial.values())
        return max(0, self.capacity_mib - self.filled_mib - used)

    def write(self, disk: str, offset: int, data: bytes) -> None:
        """As a guest would."""
        volume = self.volumes[disk]
        assert offset + len(data) <= volume.size_mib * MIB, f"write past the end of {disk}"
        volume.writes[offset] = data

    def read(self, disk: str, offset: int, length: int) -> bytes:
        """What a guest would read; a registered image that is no real file reads as zeros."""
        volume = self.volumes[disk]
        result = bytearray(length)
        if volume.source is not None and volume.source.is_file():
            with volume.source.open("rb") as file:
                file.seek(offset)
                data = file.read(length)
                result[: len(data)] = data
        for start, data in volume.writes.items():
            low, high = max(start, offset), min(start + len(data), offset + length)
            if low < high:
                result[low - offset : high - offset] = data[low - start : high - start]
        return bytes(result)


class FakeStorage:
    """The driver over a `FakeDisk`. Making one is an agent's start: it sweeps what a crash left half-made."""

    def __init__(self, disk: FakeDisk) -> None:
        self._disk = disk
        self._locks: dict[str, asyncio.Lock] = {}
        disk.partial.clear()

    async def _enter(self, method: str) -> None:
        if self._disk.call_s:
            await asyncio.sleep(self._disk.call_s)
        if method in self._disk.failing:
            raise self._disk.failing[method]
        if self._disk.failures:
            raise self._disk.failures.pop(0)

    def _lock(self, disk: str) -> asyncio.Lock:
        return self._locks.setdefault(disk, asyncio.Lock())

    def _image(self, source: Path) -> FakeImage:
        known = self._disk.images.get(source)
        if known is not None:
            return known
        if not source.is_file():
            raise CloudError(ErrorKind.NOT_FOUND, f"the image's bytes are not at {source}: fetch the image first")
        stat = source.stat()
        return FakeImage((stat.st_size + MIB - 1) // MIB, (stat.st_blocks * 512 + MIB - 1) // MIB)

    async def create(self, disk: str, size_mib: int, source: Path | None, incarnation: int = 0) -> None:
        async with self._lock(disk):
            await self._enter("create")
            state = self._disk
            existing = state.volumes.get(disk)
            if existing is not None and existing.incarnation == incarnation:
                return
            image = FakeImage(0, 0) if source is None else self._image(source)
            if image.size_mib > size_mib:
                raise invalid("size_mib", f"must be at least the image's {image.size_mib} MiB, not {size_mib}")
            if image.data_mib > state.free():
                raise CloudError(
                    ErrorKind.NO_CAPACITY,
                    f"disk {disk} needs {image.data_mib} MiB and {state.free()} MiB are free of {state.capacity_mib}",
                )
            state.makings += 1
            making = state.makings
            state.partial[making] = image.data_mib
            try:
                if state.copy_s_per_mib:
                    await asyncio.sleep(state.copy_s_per_mib * image.data_mib)
            finally:
                state.partial.pop(making, None)
            # Nothing below awaits: the disk appears whole, with its incarnation, or not at all.
            assert disk not in state.in_use, f"disk {disk} was made anew while a running domain had it open"
            state.volumes[disk] = FakeVolume(disk, size_mib, incarnation, source, image.data_mib, making)

    async def resize(self, disk: str, size_mib: int) -> None:
        async with self._lock(disk):
            await self._enter("resize")
            volume = self._volume(disk)
            if size_mib < volume.size_mib:
                raise invalid("size_mib", f"a disk cannot shrink: it has {volume.size_mib} MiB, not {size_mib}")
            volume.size_mib = size_mib

    async def delete(self, disk: str) -> None:
        async with self._lock(disk):
            await self._enter("delete")
            assert disk not in self._disk.in_use, f"disk {disk} was deleted while a running domain had it open"
            self._disk.volumes.pop(disk, None)

    async def show(self, disk: str) -> DiskFacts | None:
        await self._enter("show")
        volume = self._disk.volumes.get(disk)
        return None if volume is None else _facts(volume)

    async def disks(self) -> list[DiskFacts]:
        await self._enter("disks")
        return [_facts(volume) for _, volume in sorted(self._disk.volumes.items())]

    async def locate(self, disk: str) -> Path:
        await self._enter("locate")
        return Path("/fake/disks") / f"{disk}.{self._volume(disk).incarnation}.raw"

    async def free_mib(self) -> tuple[int, int]:
        await self._enter("free_mib")
        return self._disk.free(), self._disk.capacity_mib

    def _volume(self, disk: str) -> FakeVolume:
        volume = self._disk.volumes.get(disk)
        if volume is None:
            raise CloudError(ErrorKind.NOT_FOUND, f"disk {disk} is not on this node")
        return volume


def _facts(volume: FakeVolume) -> DiskFacts:
    return DiskFacts(
        disk=volume.disk, size_mib=volume.size_mib, used_mib=volume.used_mib, incarnation=volume.incarnation
    )
