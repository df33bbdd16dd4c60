"""Disks as sparse raw files in one folder of the node (names: see `files`).

Everything unfinished is in a file whose name begins with a dot; those are swept when the driver starts. Copies share
extents where the file system can: only there can a disk be kept as it is while a guest writes to it.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from scloud.drivers.storage import extents, files, sparse
from scloud.drivers.storage.extents import Extent
from scloud.drivers.storage.files import Snap, Version
from scloud.drivers.storage.place import FilePlace
from scloud.drivers.storage.protocol import DiskFacts, FromImage, FromSnapshot, Source
from scloud.model.errors import CloudError, ErrorKind, invalid
from scloud.model.observed import PoolLeft
from scloud.model.snapshots import DiskLimits

MIB = 1024 * 1024
COPIES = 4
"""Makings at the same time: enough to keep a disk busy while others wait for their fsync."""


class LocalStorage:
    """One instance per folder: starting another sweeps what the first is in the middle of making."""

    shared = False

    def __init__(self, root: Path) -> None:
        self._root = root
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._makers = ThreadPoolExecutor(COPIES, "disk-maker")
        self._serial = itertools.count()
        root.mkdir(parents=True, exist_ok=True)
        self._versions: dict[str, Version] = {}
        self._snapshots: dict[str, list[Snap]] = {}
        self._sweep()

    # --- disks

    async def has_image(self, image: str) -> bool:
        return False

    async def images(self) -> list[str]:
        return []

    async def strangers(self) -> list[str]:
        return await asyncio.to_thread(files.strangers, self._root)

    async def delete_image(self, image: str) -> None:
        return None

    async def create(self, disk: str, size_mib: int, source: Source | None, incarnation: int = 0) -> DiskFacts:
        files.check("disk", disk)
        async with self._locks[disk]:
            version = self._version(disk)
            if version is None or version.incarnation != incarnation:
                stop = threading.Event()
                await self._cancellable(stop, lambda: self._make(disk, size_mib, source, incarnation, stop.is_set))
            made = self._facts(disk)
        if made is None:
            raise CloudError(ErrorKind.ENGINE, f"disk {disk} was made in {self._root} and is not there")
        return made

    async def resize(self, disk: str, size_mib: int) -> None:
        async with self._locks[disk]:
            await asyncio.to_thread(self._grow, self._existing(disk), disk, size_mib)

    async def delete(self, disk: str) -> None:
        files.check("disk", disk)
        async with self._locks[disk]:
            await asyncio.to_thread(self._unlink, disk)

    async def remains(self, disk: str) -> bool:
        """What a crash leaves is swept before anything is asked."""
        return False

    async def clear(self, disk: str) -> None:
        return None

    async def left(self) -> PoolLeft:
        return PoolLeft()

    async def mend(self, disk: str) -> None:
        return None

    async def show(self, disk: str) -> DiskFacts | None:
        return self._facts(disk)

    async def disks(self) -> list[DiskFacts]:
        return await asyncio.to_thread(self._list)

    async def owners(self, objects: Sequence[str]) -> dict[str, tuple[str, int]]:
        return {}

    async def locate(self, disk: str, beside: str | None = None) -> FilePlace:
        return FilePlace(path=self._existing(disk))

    async def free_mib(self) -> tuple[int, int]:
        return self._free()

    # --- snapshots

    async def snapshot(self, disk: str, snapshot: str) -> None:
        files.check("snapshot", snapshot)
        async with self._locks[disk]:
            self._existing(disk)
            if self._snap(disk, snapshot) is None:
                stop = threading.Event()
                await self._cancellable(stop, lambda: self._keep(disk, snapshot, stop.is_set))

    async def delete_snapshot(self, disk: str, snapshot: str) -> None:
        async with self._locks[disk]:
            snap = self._snap(disk, snapshot)
            if snap is not None:
                (self._root / snap.file(disk)).unlink(missing_ok=True)
                await asyncio.to_thread(self._sync_folder)
                self._snapshots[disk].remove(snap)

    async def roll_back(self, disk: str, snapshot: str, number: int) -> None:
        async with self._locks[disk]:
            self._existing(disk)
            if self._versions[disk].rolled_back == number:
                return
            snap = self._snap_file(disk, snapshot)
            stop = threading.Event()
            await self._cancellable(stop, lambda: self._return_to(disk, snap, number, stop.is_set))

    async def flatten(self, disk: str) -> None:
        """Every disk has all its bytes, or shares them in a way that only the file system knows of."""
        self._existing(disk)

    async def limit(self, disk: str, limits: DiskLimits) -> None:
        """A file has no limits: QEMU keeps them."""
        self._existing(disk)

    # --- bytes in and out

    async def export(self, disk: str, snapshot: str, since: str | None) -> AsyncIterator[Extent]:
        path = self._snap_file(disk, snapshot)
        older = None if since is None else self._snap_file(disk, since)
        with self._explained(disk, 0), _opened(path, os.O_RDONLY) as source:
            if older is None:
                async for extent in self._told(extents.data_of(source)):
                    yield extent
                return
            with _opened(older, os.O_RDONLY) as before:
                async for extent in self._told(extents.changes(source, before)):
                    yield extent

    async def restore(self, disk: str, extents_in: AsyncIterator[Extent]) -> None:
        async with self._locks[disk]:
            with self._explained(disk, 0), _opened(self._existing(disk), os.O_RDWR) as target:
                size = os.fstat(target).st_size
                async for offset, piece in extents_in:
                    if offset < 0 or offset + (piece if isinstance(piece, int) else len(piece)) > size:
                        raise invalid("extents", f"the disk ends at {size} bytes")
                    await asyncio.to_thread(extents.write, target, offset, piece)
                await asyncio.to_thread(os.fsync, target)

    async def _told(self, found: Iterator[Extent]) -> AsyncIterator[Extent]:
        while (extent := await asyncio.to_thread(next, found, None)) is not None:
            yield extent

    # --- who is writing: nobody else can reach this folder

    async def fence(self, node: str) -> None:
        return None

    async def is_fenced(self, node: str) -> bool:
        return False

    async def is_refused(self) -> bool:
        return False

    def answer_s(self) -> float:
        return 0.0

    async def is_cut_off(self) -> bool:
        return False

    async def unfence(self, node: str) -> None:
        return None

    async def close(self) -> None:
        """Threads that are under way end by themselves."""
        self._makers.shutdown(wait=False)

    # --- making

    async def _cancellable(self, stop: threading.Event, work: Callable[[], None]) -> None:
        """Run in a thread. Cancelled, it first waits until the thread has cleaned up: nothing goes on unseen."""
        thread = asyncio.get_running_loop().run_in_executor(self._makers, work)
        try:
            await asyncio.shield(thread)
        except asyncio.CancelledError:
            stop.set()
            while not thread.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([thread])
            # Looked at, so that asyncio does not complain of an exception nobody fetched.
            thread.cancelled() or thread.exception()
            raise

    def _make(
        self, disk: str, size_mib: int, source: Source | None, incarnation: int, stop: Callable[[], bool]
    ) -> None:
        path = self._source(disk, source)
        version = Version(incarnation)
        with suppress(sparse.Stopped), self._explained(disk, size_mib), self._partial(disk) as (partial, target):
            if path is not None:
                self._fill(disk, size_mib, path, target, stop)
            os.ftruncate(target, size_mib * MIB)
            self._publish(disk, partial, target, version, stop)

    def _source(self, disk: str, source: Source | None) -> Path | None:
        match source:
            case None:
                return None
            case FromImage(image, None):
                raise CloudError(ErrorKind.NOT_FOUND, f"image {image} is not on this node: fetch it for disk {disk}")
            case FromImage(_, file):
                return file
            case FromSnapshot(origin, snapshot):
                return self._snap_file(origin, snapshot)

    def _publish(self, disk: str, partial: Path, target: int, version: Version, stop: Callable[[], bool]) -> None:
        """Make it the disk, and remove what it was before; its snapshots go when it is made anew."""
        # Without it a power cut could leave the name with holes where the image's bytes should be.
        os.fsync(target)
        if stop():
            return
        old = self._versions.get(disk)
        partial.rename(self._root / version.file(disk))
        self._versions[disk] = version
        if old is not None and old != version:
            (self._root / old.file(disk)).unlink(missing_ok=True)
        if old is not None and old.incarnation != version.incarnation:
            for snap in self._snapshots.pop(disk, []):
                (self._root / snap.file(disk)).unlink(missing_ok=True)
        self._sync_folder()

    def _keep(self, disk: str, snapshot: str, stop: Callable[[], bool]) -> None:
        path, version = self._existing(disk), self._versions[disk]
        taken = self._snapshots.setdefault(disk, [])
        snap = Snap(version.incarnation, max((one.serial for one in taken), default=0) + 1, snapshot)
        with suppress(sparse.Stopped), self._explained(disk, 0), self._partial(disk) as (partial, target):
            with _opened(path, os.O_RDWR) as source:
                if not sparse.reflink(source, target):
                    if extents.is_open(source):
                        raise CloudError(
                            ErrorKind.CONFLICT,
                            f"disk {disk} is in use, and the file system of {self._root} cannot keep its bytes of one "
                            "moment: stop the VM or detach the disk first, or put it on XFS, btrfs or a storage pool",
                        )
                    self._require(disk, _mib_up(os.fstat(source).st_blocks * 512), "the copy of its bytes")
                    sparse.copy(source, target, stop)
                os.ftruncate(target, os.fstat(source).st_size)
            os.fsync(target)
            if stop():
                return
            partial.rename(self._root / snap.file(disk))
            self._sync_folder()
            taken.append(snap)

    def _return_to(self, disk: str, snap: Path, number: int, stop: Callable[[], bool]) -> None:
        version = Version(self._versions[disk].incarnation, number)
        with suppress(sparse.Stopped), self._explained(disk, 0), self._partial(disk) as (partial, target):
            size = snap.stat().st_size
            self._fill(disk, _mib_up(size), snap, target, stop)
            os.ftruncate(target, size)
            self._publish(disk, partial, target, version, stop)

    def _fill(self, disk: str, size_mib: int, source: Path, target: int, stop: Callable[[], bool]) -> None:
        try:
            image = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            message = f"the image's bytes are not at {source}: fetch the image first"
            raise CloudError(ErrorKind.NOT_FOUND, message) from error
        try:
            stat = os.fstat(image)
            if stat.st_size > size_mib * MIB:
                least = _mib_up(stat.st_size)
                raise invalid("size_mib", f"must be at least the image's {least} MiB, not {size_mib}")
            if sparse.reflink(image, target):
                return
            self._require(disk, _mib_up(stat.st_blocks * 512), "its image")
            sparse.copy(image, target, stop)
        finally:
            os.close(image)

    def _require(self, disk: str, needed_mib: int, what: str) -> None:
        free, total = self._free()
        if needed_mib > free:
            raise CloudError(
                ErrorKind.NO_CAPACITY,
                f"disk {disk} needs {needed_mib} MiB for {what}, and {free} of {total} MiB are free in {self._root}",
            )

    def _grow(self, file: Path, disk: str, size_mib: int) -> None:
        with self._explained(disk, size_mib), _opened(file, os.O_RDWR) as target:
            size = os.fstat(target).st_size
            if size_mib * MIB < size:
                raise invalid("size_mib", f"a disk cannot shrink: it has {_mib_up(size)} MiB, not {size_mib}")
            if size_mib * MIB > size:
                os.ftruncate(target, size_mib * MIB)

    @contextmanager
    def _partial(self, disk: str) -> Iterator[tuple[Path, int]]:
        """(path, open file) of something unfinished; gone afterwards unless it was renamed."""
        partial = self._root / f".{disk}.{os.getpid()}-{next(self._serial)}.part"
        try:
            with _opened(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL) as target:
                yield partial, target
        finally:
            partial.unlink(missing_ok=True)

    @contextmanager
    def _explained(self, disk: str, size_mib: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                free, total = self._free()
                size = f" ({size_mib} MiB, thin)" if size_mib else ""
                message = (
                    f"the space in {self._root} ended while disk {disk}{size} was written: "
                    f"{free} of {total} MiB are free now"
                )
                raise CloudError(ErrorKind.NO_CAPACITY, message) from error
            if error.errno == errno.EFBIG:
                message = f"the file system of {self._root} holds no file of {size_mib} MiB, asked for as disk {disk}"
                raise CloudError(ErrorKind.NO_CAPACITY, message) from error
            raise CloudError(ErrorKind.ENGINE, f"disk {disk} in {self._root}: {error}") from error

    # --- looking

    def _version(self, disk: str) -> Version | None:
        files.check("disk", disk)
        version = self._versions.get(disk)
        return version if version is not None and (self._root / version.file(disk)).exists() else None

    def _existing(self, disk: str) -> Path:
        version = self._version(disk)
        if version is None:
            raise CloudError(ErrorKind.NOT_FOUND, f"disk {disk} is not in {self._root}")
        return self._root / version.file(disk)

    def _snap(self, disk: str, snapshot: str) -> Snap | None:
        files.check("disk", disk)
        return next((snap for snap in self._snapshots.get(disk, []) if snap.id == snapshot), None)

    def _snap_file(self, disk: str, snapshot: str) -> Path:
        snap = self._snap(disk, snapshot)
        if snap is None:
            raise CloudError(ErrorKind.NOT_FOUND, f"snapshot {snapshot} of disk {disk} is not in {self._root}")
        return self._root / snap.file(disk)

    def _facts(self, disk: str) -> DiskFacts | None:
        """None if it has gone meanwhile."""
        version = self._version(disk)
        if version is None:
            return None
        try:
            stat = (self._root / version.file(disk)).stat()
            snaps = [
                (snap.id, _mib_up((self._root / snap.file(disk)).stat().st_size))
                for snap in self._snapshots.get(disk, [])
            ]
        except FileNotFoundError:
            return None
        return DiskFacts(
            disk=disk,
            size_mib=_mib_up(stat.st_size),
            used_mib=_mib_up(stat.st_blocks * 512),
            incarnation=version.incarnation,
            snapshots=tuple(snaps),
            rolled_back=version.rolled_back,
        )

    def _list(self) -> list[DiskFacts]:
        found = (self._facts(disk) for disk in sorted(self._versions))
        return [facts for facts in found if facts is not None]

    def _free(self) -> tuple[int, int]:
        stat = os.statvfs(self._root)
        return stat.f_bavail * stat.f_frsize // MIB, stat.f_blocks * stat.f_frsize // MIB

    # --- clearing

    def _unlink(self, disk: str) -> None:
        try:
            versions, snapshots = files.listing(self._root)
            for name in (*(one.file(disk) for one in versions.get(disk, [])),):
                (self._root / name).unlink(missing_ok=True)
            for snap in snapshots.get(disk, []):
                (self._root / snap.file(disk)).unlink(missing_ok=True)
            self._sync_folder()
        except OSError as error:
            raise CloudError(ErrorKind.ENGINE, f"disk {disk} in {self._root}: {error}") from error
        self._versions.pop(disk, None)
        self._snapshots.pop(disk, None)

    def _sync_folder(self) -> None:
        """Make renames and removals outlast a power cut."""
        with _opened(self._root, os.O_RDONLY | os.O_DIRECTORY) as folder:
            os.fsync(folder)

    def _sweep(self) -> None:
        """Clear what a crash left, and learn what there is."""
        for partial in self._root.glob(".*.part"):
            partial.unlink(missing_ok=True)
        versions, snapshots = files.listing(self._root)
        for disk, found in versions.items():
            # They count up, and the newer file was whole when it was named: the older is what was left over.
            for old in found[:-1]:
                (self._root / old.file(disk)).unlink(missing_ok=True)
            self._versions[disk] = found[-1]
        for disk, snaps in snapshots.items():
            version = self._versions.get(disk)
            for snap in snaps:
                if version is not None and snap.incarnation == version.incarnation:
                    self._snapshots.setdefault(disk, []).append(snap)
                else:
                    (self._root / snap.file(disk)).unlink(missing_ok=True)


def _mib_up(size: int) -> int:
    return (size + MIB - 1) // MIB


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    handle = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)
