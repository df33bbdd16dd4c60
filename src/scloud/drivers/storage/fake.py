"""A storage backend in memory, for tests and the simulator.

`FakeDisk` is the hardware: it outlives any number of `FakeStorage` drivers, as a node's disk outlives its agent. Delays
are `asyncio.sleep`, so that they cost nothing under a virtual clock; each is a point where the agent may be killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from scloud.drivers.storage.place import FilePlace
from scloud.drivers.storage.protocol import DiskFacts, FromImage, FromSnapshot, Source
from scloud.model.desired import DesiredStore, StorePool
from scloud.model.errors import CloudError, ErrorKind, invalid
from scloud.model.observed import PoolLeft
from scloud.model.snapshots import DiskLimits

MIB = 1024 * 1024


@dataclass(frozen=True)
class FakeImage:
    """A raw file as the storage sees it: its length, and the part that is not holes. MiB."""

    size_mib: int
    data_mib: int


@dataclass(frozen=True)
class FakeBytes:
    """What a disk or snapshot holds: a raw file's bytes, and what was written over them since, in order."""

    size_mib: int
    source: Path | None
    image_mib: int
    writes: tuple[tuple[int, bytes], ...] = ()

    @property
    def used_mib(self) -> int:
        return self.image_mib + (sum(len(data) for _, data in self.writes) + MIB - 1) // MIB

    def read(self, offset: int, length: int) -> bytes:
        """A registered image that is no real file reads as zeros, and so does what is past the end."""
        result = bytearray(length)
        if self.source is not None and self.source.is_file():
            with self.source.open("rb") as file:
                file.seek(offset)
                data = file.read(length)
                result[: len(data)] = data
        for start, data in self.writes:
            low, high = max(start, offset), min(start + len(data), offset + length)
            if low < high:
                result[low - offset : high - offset] = data[low - start : high - start]
        return bytes(result)


@dataclass
class FakeVolume:
    """One disk. `making` tells its bytes from those of every other making."""

    disk: str
    incarnation: int
    content: FakeBytes
    making: int
    origin: str | None = None
    rolled_back: int = 0
    limits: DiskLimits = field(default_factory=DiskLimits)
    snapshots: dict[str, FakeBytes] = field(default_factory=dict)

    @property
    def size_mib(self) -> int:
        return self.content.size_mib

    @property
    def used_mib(self) -> int:
        return self.content.used_mib


@dataclass
class FakeDisk:
    """The state. A test reaches in to fail calls, fill the disk, act as a guest or look at what is there.

    `failures` are raised by the next calls, in turn; with a method's name in `failing` every call of it fails.
    `copy_s_per_mib` and `call_s` are seconds of the loop's clock. A `shared` one is a pool: it keeps the images that
    disks were made from in `bases`, disks depend on them, and nodes can be `fenced`.
    """

    shared: bool = False
    bases: dict[str, Path] = field(default_factory=dict)
    fenced: set[str] = field(default_factory=set)
    strangers: set[str] = field(default_factory=set)
    """Names of what somebody else has put there."""
    half_removed: dict[str, int] = field(default_factory=dict)
    """MiB that are left of what a disk was, because who removed it was killed."""
    locked: dict[str, str] = field(default_factory=dict)
    """Disks that are locked by somebody who is gone."""
    unmeasured: set[str] = field(default_factory=set)
    """Disks of which it is not known what they occupy."""
    left: PoolLeft = field(default_factory=PoolLeft)
    """What is told besides."""
    capacity_mib: int = 1024 * 1024
    call_s: float = 0.0
    answer_s: float = 0.0
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
        used += sum(self.half_removed.values())
        return max(0, self.capacity_mib - self.filled_mib - used)

    def write(self, disk: str, offset: int, data: bytes) -> None:
        """As a guest would."""
        volume = self.volumes[disk]
        assert offset + len(data) <= volume.size_mib * MIB, f"write past the end of {disk}"
        volume.content = replace(volume.content, writes=(*volume.content.writes, (offset, data)))

    def read(self, disk: str, offset: int, length: int) -> bytes:
        """What a guest would read."""
        return self.volumes[disk].content.read(offset, length)

    def users_of(self, origin: str) -> list[str]:
        """The disks that depend on an image or snapshot."""
        return sorted(f"disk/{volume.disk}" for volume in self.volumes.values() if volume.origin == origin)


class FakeStorage:
    """The driver over a `FakeDisk`. Making one is an agent's start: it sweeps what a crash left half-made.

    `node` is the one that it is a driver of, for fencing.
    """

    def __init__(self, disk: FakeDisk, node: str = "") -> None:
        self._disk = disk
        self._node = node
        self._locks: dict[str, asyncio.Lock] = {}
        self.shared = disk.shared
        if not disk.shared:
            disk.partial.clear()

    async def _enter(self, method: str) -> None:
        if self._disk.call_s:
            await asyncio.sleep(self._disk.call_s)
        if method != "unfence" and self._node in self._disk.fenced:
            raise CloudError(ErrorKind.CONFLICT, f"node {self._node} is cut off from this storage")
        if method in self._disk.failing:
            raise self._disk.failing[method]
        if self._disk.failures:
            raise self._disk.failures.pop(0)

    def _lock(self, disk: str) -> asyncio.Lock:
        return self._locks.setdefault(disk, asyncio.Lock())

    # --- disks

    async def has_image(self, image: str) -> bool:
        await self._enter("has_image")
        return image in self._disk.bases

    async def images(self) -> list[str]:
        await self._enter("images")
        return sorted(self._disk.bases)

    async def strangers(self) -> list[str]:
        await self._enter("strangers")
        return sorted(self._disk.strangers)

    async def delete_image(self, image: str) -> None:
        await self._enter("delete_image")
        if users := self._disk.users_of(f"image/{image}"):
            message = f"disks were made from image {image}: {', '.join(users)}; flatten or delete them"
            raise CloudError(ErrorKind.IN_USE, message, users=users)
        self._disk.bases.pop(image, None)

    def _beginning(self, source: Source | None) -> tuple[FakeBytes, str | None]:
        """(the bytes a disk begins with, what it will depend on)."""
        match source:
            case None:
                return FakeBytes(0, None, 0), None
            case FromSnapshot(disk, snapshot):
                content = self._snapshot(disk, snapshot)
                return (content, f"snapshot/{snapshot}") if self.shared else (content, None)
            case FromImage(image, file):
                file = self._disk.bases.get(image, file)
                if file is None:
                    raise CloudError(ErrorKind.NOT_FOUND, f"image {image} is not on this node: fetch it first")
                known = self._image(file)
                return FakeBytes(known.size_mib, file, known.data_mib), f"image/{image}" if self.shared else None

    def _image(self, source: Path) -> FakeImage:
        known = self._disk.images.get(source)
        if known is not None:
            return known
        if not source.is_file():
            raise CloudError(ErrorKind.NOT_FOUND, f"the image's bytes are not at {source}: fetch the image first")
        stat = source.stat()
        return FakeImage((stat.st_size + MIB - 1) // MIB, (stat.st_blocks * 512 + MIB - 1) // MIB)

    async def create(self, disk: str, size_mib: int, source: Source | None, incarnation: int = 0) -> DiskFacts:
        async with self._lock(disk):
            await self._enter("create")
            state = self._disk
            existing = state.volumes.get(disk)
            if existing is not None and existing.incarnation == incarnation:
                return self._facts(existing)
            content, origin = self._beginning(source)
            if content.size_mib > size_mib:
                raise invalid("size_mib", f"must be at least the image's {content.size_mib} MiB, not {size_mib}")
            clone = origin is not None and not (isinstance(source, FromImage) and source.image not in state.bases)
            needed = 0 if clone else content.used_mib
            if needed > state.free():
                raise CloudError(
                    ErrorKind.NO_CAPACITY,
                    f"disk {disk} needs {needed} MiB and {state.free()} MiB are free of {state.capacity_mib}",
                )
            if existing is not None:
                self._refuse_users(existing)
            state.makings += 1
            making = state.makings
            state.partial[making] = needed
            try:
                if state.copy_s_per_mib:
                    await asyncio.sleep(state.copy_s_per_mib * needed)
            finally:
                state.partial.pop(making, None)
            # Nothing below awaits: the disk appears whole, with its incarnation, or not at all.
            assert disk not in state.in_use, f"disk {disk} was made anew while a running domain had it open"
            if self.shared and isinstance(source, FromImage) and content.source is not None:
                state.bases.setdefault(source.image, content.source)
            content = replace(content, size_mib=size_mib, image_mib=0 if origin else content.image_mib)
            made = state.volumes[disk] = FakeVolume(disk, incarnation, content, making, origin)
            return self._facts(made)

    async def resize(self, disk: str, size_mib: int) -> None:
        async with self._lock(disk):
            await self._enter("resize")
            volume = self._volume(disk)
            if size_mib < volume.size_mib:
                raise invalid("size_mib", f"a disk cannot shrink: it has {volume.size_mib} MiB, not {size_mib}")
            volume.content = replace(volume.content, size_mib=size_mib)

    async def delete(self, disk: str) -> None:
        async with self._lock(disk):
            await self._enter("delete")
            assert disk not in self._disk.in_use, f"disk {disk} was deleted while a running domain had it open"
            if disk in self._disk.volumes:
                self._refuse_users(self._disk.volumes[disk])
                del self._disk.volumes[disk]
            self._disk.half_removed.pop(disk, None)

    async def remains(self, disk: str) -> bool:
        await self._enter("remains")
        return disk in self._disk.half_removed

    async def clear(self, disk: str) -> None:
        async with self._lock(disk):
            await self._enter("clear")
            self._disk.half_removed.pop(disk, None)

    async def left(self) -> PoolLeft:
        await self._enter("left")
        half_removed = tuple(f"disk/{disk}" for disk in sorted(self._disk.half_removed))
        return self._disk.left.model_copy(update={"half_removed": half_removed})

    async def mend(self, disk: str) -> None:
        async with self._lock(disk):
            await self._enter("mend")
            if disk not in self._disk.in_use:
                self._disk.locked.pop(disk, None)
                self._disk.unmeasured.discard(disk)

    async def show(self, disk: str) -> DiskFacts | None:
        await self._enter("show")
        volume = self._disk.volumes.get(disk)
        return None if volume is None else self._facts(volume)

    async def disks(self) -> list[DiskFacts]:
        await self._enter("disks")
        return [self._facts(volume) for _, volume in sorted(self._disk.volumes.items())]

    def _facts(self, volume: FakeVolume) -> DiskFacts:
        locked = self._disk.locked.get(volume.disk)
        return DiskFacts(
            disk=volume.disk,
            size_mib=volume.size_mib,
            used_mib=None if volume.disk in self._disk.unmeasured else volume.used_mib,
            incarnation=volume.incarnation,
            snapshots=tuple((snapshot, content.size_mib) for snapshot, content in volume.snapshots.items()),
            rolled_back=volume.rolled_back,
            origin=volume.origin,
            abandoned=() if locked is None or volume.disk in self._disk.in_use else (locked,),
        )

    async def owners(self, objects: Sequence[str]) -> dict[str, tuple[str, int]]:
        await self._enter("owners")
        return {name: (f"disk/{name}", 0) for name in objects if name in self._disk.volumes}

    async def locate(self, disk: str, beside: str | None = None) -> FilePlace:
        await self._enter("locate")
        return FilePlace(path=Path("/fake/disks") / f"{disk}.{self._volume(disk).incarnation}.raw")

    async def free_mib(self) -> tuple[int, int]:
        await self._enter("free_mib")
        return self._disk.free(), self._disk.capacity_mib

    # --- snapshots

    async def snapshot(self, disk: str, snapshot: str) -> None:
        async with self._lock(disk):
            await self._enter("snapshot")
            volume = self._volume(disk)
            volume.snapshots.setdefault(snapshot, volume.content)

    async def delete_snapshot(self, disk: str, snapshot: str) -> None:
        async with self._lock(disk):
            await self._enter("delete_snapshot")
            volume = self._disk.volumes.get(disk)
            if volume is not None and snapshot in volume.snapshots:
                self._refuse_users(volume, snapshot)
                del volume.snapshots[snapshot]

    async def roll_back(self, disk: str, snapshot: str, number: int) -> None:
        async with self._lock(disk):
            await self._enter("roll_back")
            volume = self._volume(disk)
            if volume.rolled_back == number:
                return
            assert disk not in self._disk.in_use, f"disk {disk} was rolled back while a running domain had it open"
            volume.content, volume.rolled_back = self._snapshot(disk, snapshot), number

    async def flatten(self, disk: str) -> None:
        async with self._lock(disk):
            await self._enter("flatten")
            self._volume(disk).origin = None

    async def limit(self, disk: str, limits: DiskLimits) -> None:
        await self._enter("limit")
        self._volume(disk).limits = limits

    # --- bytes in and out

    async def export(self, disk: str, snapshot: str, since: str | None) -> AsyncIterator[tuple[int, bytes | int]]:
        await self._enter("export")
        content = self._snapshot(disk, snapshot)
        before = FakeBytes(0, None, 0) if since is None else self._snapshot(disk, since)
        for offset in range(0, content.size_mib * MIB, MIB):
            now = content.read(offset, MIB)
            if now != before.read(offset, MIB):
                yield (offset, now) if any(now) else (offset, MIB)

    async def restore(self, disk: str, extents: AsyncIterator[tuple[int, bytes | int]]) -> None:
        async with self._lock(disk):
            await self._enter("restore")
            volume = self._volume(disk)
            async for offset, piece in extents:
                data = bytes(piece) if isinstance(piece, int) else piece
                if offset + len(data) > volume.size_mib * MIB:
                    raise invalid("extents", f"the disk ends at {volume.size_mib * MIB} bytes")
                self._disk.write(disk, offset, data)

    # --- who is writing

    async def fence(self, node: str) -> None:
        await self._enter("fence")
        if self.shared:
            self._disk.fenced.add(node)

    async def is_fenced(self, node: str) -> bool:
        await self._enter("is_fenced")
        return node in self._disk.fenced

    async def is_refused(self) -> bool:
        await self._enter("is_refused")
        return self._node in self._disk.fenced

    def answer_s(self) -> float:
        return self._disk.answer_s

    async def is_cut_off(self) -> bool:
        await self._enter("is_cut_off")
        return self._node in self._disk.fenced

    async def unfence(self, node: str) -> None:
        await self._enter("unfence")
        self._disk.fenced.discard(node)

    async def close(self) -> None:
        """Nothing is held: the hardware goes on."""

    # --- looking

    def _volume(self, disk: str) -> FakeVolume:
        volume = self._disk.volumes.get(disk)
        if volume is None:
            raise CloudError(ErrorKind.NOT_FOUND, f"disk {disk} is not on this node")
        return volume

    def _snapshot(self, disk: str, snapshot: str) -> FakeBytes:
        volume = self._disk.volumes.get(disk)
        if volume is None or snapshot not in volume.snapshots:
            raise CloudError(ErrorKind.NOT_FOUND, f"there is no snapshot {snapshot} of disk {disk}")
        return volume.snapshots[snapshot]

    def _refuse_users(self, volume: FakeVolume, *snapshots: str) -> None:
        users = [
            user for one in snapshots or tuple(volume.snapshots) for user in self._disk.users_of(f"snapshot/{one}")
        ]
        if users:
            message = f"disks were made from snapshots of {volume.disk}: {', '.join(users)}; flatten or delete them"
            raise CloudError(ErrorKind.IN_USE, message, users=users)


class FakePools:
    """Pools in memory, which any number of nodes share: each of them has its own `FakePools` over the same `pools`."""

    def __init__(self, pools: dict[str, FakeDisk], node: str = "") -> None:
        self.pools = pools
        self._node = node
        self.opened: list[str] = []

    def open(self, store: DesiredStore, pool: StorePool) -> FakeStorage:
        self.opened.append(pool.id)
        return FakeStorage(self.pools.setdefault(pool.id, FakeDisk(shared=True)), self._node)
