"""Disks as sparse raw files in one folder of the node.

A disk is the file `DISK.INCARNATION.raw`: one rename publishes the bytes together with the number they were made for.
Everything unfinished is in a file whose name begins with a dot; those are swept when the driver starts.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from scloud.drivers.storage import sparse
from scloud.drivers.storage.protocol import DiskFacts
from scloud.model.errors import CloudError, ErrorKind, invalid

MIB = 1024 * 1024
COPIES = 4
"""Makings at the same time: enough to keep a disk busy while others wait for their fsync."""
_DISK = re.compile(r"[a-z0-9][a-z0-9-]{0,63}\Z")
_FILE = re.compile(r"([a-z0-9][a-z0-9-]{0,63})\.(\d+)\.raw\Z")


class LocalStorage:
    """One instance per folder: starting another sweeps what the first is in the middle of making."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._makers = ThreadPoolExecutor(COPIES, "disk-maker")
        self._serial = itertools.count()
        root.mkdir(parents=True, exist_ok=True)
        self._incarnations = self._sweep()

    # --- the Protocol

    async def create(self, disk: str, size_mib: int, source: Path | None, incarnation: int = 0) -> None:
        _check(disk)
        async with self._locks[disk]:
            if self._file(disk) == self._path(disk, incarnation):
                return
            stop = threading.Event()
            await self._cancellable(stop, lambda: self._make(disk, size_mib, source, incarnation, stop.is_set))

    async def resize(self, disk: str, size_mib: int) -> None:
        async with self._locks[disk]:
            await asyncio.to_thread(self._grow, self._existing(disk), disk, size_mib)

    async def delete(self, disk: str) -> None:
        _check(disk)
        async with self._locks[disk]:
            await asyncio.to_thread(self._unlink, disk)

    async def show(self, disk: str) -> DiskFacts | None:
        file = self._file(disk)
        return None if file is None else _facts(file)

    async def disks(self) -> list[DiskFacts]:
        return await asyncio.to_thread(self._list)

    async def locate(self, disk: str) -> Path:
        return self._existing(disk)

    async def free_mib(self) -> tuple[int, int]:
        return self._free()

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

    def _make(self, disk: str, size_mib: int, source: Path | None, incarnation: int, stop: Callable[[], bool]) -> None:
        partial = self._root / f".{disk}.{os.getpid()}-{next(self._serial)}.part"
        old, final = self._file(disk), self._path(disk, incarnation)
        with suppress(sparse.Stopped), self._explained(disk, size_mib), _removed(partial):
            with _opened(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL) as target:
                if source is not None:
                    self._fill(disk, size_mib, source, target, stop)
                os.ftruncate(target, size_mib * MIB)
                # Without it a power cut could leave the name with holes where the image's bytes should be.
                os.fsync(target)
            if stop():
                return
            partial.rename(final)
            self._incarnations[disk] = incarnation
            if old is not None:
                old.unlink(missing_ok=True)
            self._sync_folder()

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
            self._require(disk, _mib_up(stat.st_blocks * 512))
            sparse.copy(image, target, stop)
        finally:
            os.close(image)

    def _require(self, disk: str, needed_mib: int) -> None:
        free, total = self._free()
        if needed_mib > free:
            raise CloudError(
                ErrorKind.NO_CAPACITY,
                f"disk {disk} needs {needed_mib} MiB for its image, and {free} of {total} MiB are free in {self._root}",
            )

    def _grow(self, file: Path, disk: str, size_mib: int) -> None:
        with self._explained(disk, size_mib), _opened(file, os.O_RDWR) as target:
            size = os.fstat(target).st_size
            if size_mib * MIB < size:
                raise invalid("size_mib", f"a disk cannot shrink: it has {_mib_up(size)} MiB, not {size_mib}")
            if size_mib * MIB > size:
                os.ftruncate(target, size_mib * MIB)

    @contextmanager
    def _explained(self, disk: str, size_mib: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                free, total = self._free()
                message = (
                    f"the space in {self._root} ended while disk {disk} ({size_mib} MiB, thin) was written: "
                    f"{free} of {total} MiB are free now"
                )
                raise CloudError(ErrorKind.NO_CAPACITY, message) from error
            if error.errno == errno.EFBIG:
                message = f"the file system of {self._root} holds no file of {size_mib} MiB, asked for as disk {disk}"
                raise CloudError(ErrorKind.NO_CAPACITY, message) from error
            raise CloudError(ErrorKind.ENGINE, f"disk {disk} in {self._root}: {error}") from error

    # --- looking

    def _path(self, disk: str, incarnation: int) -> Path:
        return self._root / f"{disk}.{incarnation}.raw"

    def _file(self, disk: str) -> Path | None:
        _check(disk)
        incarnation = self._incarnations.get(disk)
        file = None if incarnation is None else self._path(disk, incarnation)
        return file if file is not None and file.exists() else None

    def _files(self) -> dict[str, list[Path]]:
        """Published files by disk, oldest incarnation first. More than one only after a crash within a rebuild."""
        found: defaultdict[str, list[Path]] = defaultdict(list)
        with os.scandir(self._root) as entries:
            for entry in entries:
                if match := _FILE.match(entry.name):
                    found[match[1]].append(self._root / entry.name)
        return {disk: sorted(found[disk], key=_incarnation) for disk in sorted(found)}

    def _existing(self, disk: str) -> Path:
        file = self._file(disk)
        if file is None:
            raise CloudError(ErrorKind.NOT_FOUND, f"disk {disk} is not in {self._root}")
        return file

    def _list(self) -> list[DiskFacts]:
        found = (_facts(file) for disk in self._files() if (file := self._file(disk)) is not None)
        return [facts for facts in found if facts is not None]

    def _free(self) -> tuple[int, int]:
        stat = os.statvfs(self._root)
        return stat.f_bavail * stat.f_frsize // MIB, stat.f_blocks * stat.f_frsize // MIB

    # --- clearing

    def _unlink(self, disk: str) -> None:
        try:
            for file in self._files().get(disk, []):
                file.unlink(missing_ok=True)
            self._sync_folder()
        except OSError as error:
            raise CloudError(ErrorKind.ENGINE, f"disk {disk} in {self._root}: {error}") from error
        self._incarnations.pop(disk, None)

    def _sync_folder(self) -> None:
        """Make renames and removals outlast a power cut."""
        with _opened(self._root, os.O_RDONLY | os.O_DIRECTORY) as folder:
            os.fsync(folder)

    def _sweep(self) -> dict[str, int]:
        """Clear what a crash left, and return the incarnation of every disk."""
        for partial in self._root.glob(".*.part"):
            partial.unlink(missing_ok=True)
        kept = {}
        for disk, files in self._files().items():
            # Incarnations count up, and the newer file was whole when it was named: the older is what was left over.
            for old in files[:-1]:
                old.unlink(missing_ok=True)
            kept[disk] = _incarnation(files[-1])
        return kept


def _check(disk: str) -> None:
    if not _DISK.match(disk):
        raise invalid("disk", f"must be an id of lower-case letters, digits and '-', not {disk!r}")


def _incarnation(file: Path) -> int:
    return int(file.name.split(".")[1])


def _facts(file: Path) -> DiskFacts | None:
    """None if it has gone meanwhile."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    disk = file.name.split(".")[0]
    return DiskFacts(
        disk=disk,
        size_mib=_mib_up(stat.st_size),
        used_mib=_mib_up(stat.st_blocks * 512),
        incarnation=_incarnation(file),
    )


def _mib_up(size: int) -> int:
    return (size + MIB - 1) // MIB


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    handle = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)


@contextmanager
def _removed(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
