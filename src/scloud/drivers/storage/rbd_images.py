"""The images of one RADOS pool. Everything here blocks, and raises what librbd raises; meant for a thread."""

from __future__ import annotations

import itertools
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import rbd

from scloud.drivers.storage import extents
from scloud.drivers.storage import rbd_names as names
from scloud.drivers.storage.extents import Extent
from scloud.drivers.storage.protocol import DiskFacts, FromImage, FromSnapshot, Source
from scloud.drivers.storage.sparse import Stopped
from scloud.model.errors import CloudError, ErrorKind, invalid

MIB = 1024 * 1024
FEATURES = 61
"""layering, exclusive-lock, object-map, fast-diff, deep-flatten."""
MEASURE_EVERY_S = 50.0
_PROCESS = secrets.token_hex(4)
_serials = itertools.count()
_INVALID_MAP = 3
"""Flags of an image: its object map, its fast diff are not to be trusted."""


class Images:
    """`pool` for messages; `data` is the pool with an erasure-coded one's data. One for each driver."""

    def __init__(self, node: str, pool: str, data: str | None) -> None:
        self._node = node
        self._pool = pool
        self._data = data
        self._known: dict[str, int] = {}
        """Incarnations, as last seen; another node may have changed them."""
        self._used: dict[str, tuple[float, int]] = {}
        self._bases: dict[str, int] = {}
        """Sizes in bytes of bases that were there when they were last looked at."""
        self._unfinished: set[str] = set()

    # --- looking

    def names(self, context: Any) -> list[str]:
        return list(rbd.RBD().list(context))

    def versions(self, context: Any, disk: str) -> list[int]:
        """Incarnations that are there, oldest first."""
        found = (names.parse_disk(name) for name in self.names(context))
        return sorted(one[1] for one in found if one is not None and one[0] == disk)

    @contextmanager
    def opened(self, context: Any, disk: str, *, snapshot: str | None = None, write: bool = False) -> Iterator[Any]:
        """`CloudError(NOT_FOUND)` if there is no such disk or snapshot."""
        image = self._open(context, disk, snapshot, write)
        try:
            yield image
        finally:
            image.close()

    def _open(self, context: Any, disk: str, snapshot: str | None, write: bool) -> Any:
        for look in (False, True):
            if look:
                versions = self.versions(context, disk)
                if not versions:
                    self._known.pop(disk, None)
                    raise CloudError(ErrorKind.NOT_FOUND, f"disk {disk} is not in pool {self._pool}")
                self._known[disk] = versions[-1]
            if disk in self._known:
                name = names.disk_image(disk, self._known[disk])
                with suppress(rbd.ImageNotFound):
                    return rbd.Image(context, name, snapshot=snapshot, read_only=not write)
        what = f"snapshot {snapshot} of disk {disk}" if snapshot else f"disk {disk}"
        raise CloudError(ErrorKind.NOT_FOUND, f"{what} is not in pool {self._pool}")

    def open_at(self, context: Any, disk: str, snapshot: str, since: str | None) -> Any:
        """An image to read and close. `CloudError(NOT_FOUND)` if a snapshot is not there."""
        image = self._open(context, disk, None, False)
        try:
            there = {snap["name"] for snap in image.list_snaps()}
            for wanted in (snapshot, since):
                if wanted is not None and wanted not in there:
                    raise CloudError(ErrorKind.NOT_FOUND, f"there is no snapshot {wanted} of disk {disk}")
            image.set_snap(snapshot)
        except BaseException:
            image.close()
            raise
        return image

    def open_to_write(self, context: Any, disk: str) -> Any:
        """An image to write and close."""
        return self._open(context, disk, None, True)

    def name(self, context: Any, disk: str) -> str:
        with self.opened(context, disk):
            return names.disk_image(disk, self._known[disk])

    def facts(self, context: Any, disk: str) -> DiskFacts | None:
        try:
            with self.opened(context, disk) as image:
                metadata = dict(image.metadata_list())
                snapshots = sorted(image.list_snaps(), key=lambda snap: int(snap["id"]))
                return DiskFacts(
                    disk=disk,
                    size_mib=image.size() // MIB,
                    used_mib=self._measured(disk, image),
                    incarnation=self._known[disk],
                    snapshots=tuple((snap["name"], snap["size"] // MIB) for snap in snapshots),
                    rolled_back=int(metadata.get(names.ROLLED_BACK, 0)),
                    origin=_origin(image),
                )
        except CloudError as error:
            if error.kind == ErrorKind.NOT_FOUND:
                return None
            raise

    def _measured(self, disk: str, image: Any) -> int:
        """MiB that it occupies beside what it shares: from the object map, which is one small object."""
        at, used = self._used.get(disk, (0.0, 0))
        now = time.monotonic()
        if disk in self._used and now - at < MEASURE_EVERY_S:
            return used
        if not image.flags() & _INVALID_MAP:
            total = 0

            def count(_offset: int, length: int, exists: bool) -> None:
                nonlocal total
                total += length if exists else 0

            image.diff_iterate(0, image.size(), None, count, include_parent=False, whole_object=True)
            used = (total + MIB - 1) // MIB
        self._used[disk] = (now, used)
        return used

    def changed(self, disk: str) -> None:
        """What it occupies is to be measured anew."""
        self._used.pop(disk, None)

    # --- making

    def create(
        self, context: Any, disk: str, size_mib: int, source: Source | None, incarnation: int, stop: Callable[[], bool]
    ) -> None:
        """All or nothing: it gets its name last."""
        versions = self.versions(context, disk)
        if incarnation not in versions:
            for old in versions:
                self._refuse_users(context, disk, old)
            with self._partial(context, disk, incarnation) as name:
                self._begin(context, name, disk, size_mib, source, stop)
                with rbd.Image(context, name) as image:
                    if image.size() != size_mib * MIB:
                        image.resize(size_mib * MIB)
                    image.metadata_set(names.OWNER, f"disk/{disk}")
                    identity = image.id()
                if stop():
                    return
                self._publish(context, name, identity, names.disk_image(disk, incarnation))
        self._known[disk] = incarnation
        self.changed(disk)
        for old in versions:
            if old != incarnation:
                self._remove(context, names.disk_image(disk, old))

    def _begin(
        self, context: Any, name: str, disk: str, size_mib: int, source: Source | None, stop: Callable[[], bool]
    ) -> None:
        match source:
            case None:
                rbd.RBD().create(context, name, size_mib * MIB, None, False, FEATURES, data_pool=self._data)
                return
            case FromImage(image, file):
                parent, snapshot = names.base_image(image), names.BASE_SNAPSHOT
                size = self.base(context, image, file, stop)
                what = "the image"
            case FromSnapshot(origin, snapshot):
                parent, size = self._protected(context, origin, snapshot)
                what = "the snapshot"
        if size > size_mib * MIB:
            least = (size + MIB - 1) // MIB
            raise invalid("size_mib", f"must be at least {what}'s {least} MiB, not {size_mib}")
        try:
            rbd.RBD().clone(context, parent, snapshot, context, name, FEATURES, data_pool=self._data)
        except rbd.ImageNotFound:
            if isinstance(source, FromImage):
                self._bases.pop(source.image, None)
            raise

    def _protected(self, context: Any, disk: str, snapshot: str) -> tuple[str, int]:
        """(image, size in bytes) of a snapshot that can be cloned from."""
        with self.opened(context, disk, write=True) as image:
            sizes = {snap["name"]: int(snap["size"]) for snap in image.list_snaps()}
            if snapshot not in sizes:
                raise CloudError(ErrorKind.NOT_FOUND, f"snapshot {snapshot} of disk {disk} is not in {self._pool}")
            _protect(image, snapshot)
            return names.disk_image(disk, self._known[disk]), sizes[snapshot]

    def has_base(self, context: Any, image: str) -> bool:
        """A base has its name only once it is whole."""
        if image in self._bases:
            return True
        try:
            with rbd.Image(context, names.base_image(image), snapshot=names.BASE_SNAPSHOT, read_only=True) as base:
                self._bases[image] = int(base.size())
        except rbd.ImageNotFound:
            return False
        return True

    def base(self, context: Any, image: str, file: Path | None, stop: Callable[[], bool]) -> int:
        """Size in bytes of the image's base, made from the file if it is not there.

        Several nodes may make it at once: the first to name its own has made it, and the others throw theirs away.
        """
        if self.has_base(context, image):
            return self._bases[image]
        if file is None:
            raise CloudError(ErrorKind.NOT_FOUND, f"image {image} is not in pool {self._pool}: fetch its file first")
        try:
            source = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            message = f"the image's bytes are not at {file}: fetch the image first"
            raise CloudError(ErrorKind.NOT_FOUND, message) from error
        try:
            with self._partial(context, names.base_image(image), 0) as name:
                size = (os.fstat(source).st_size + 511) // 512 * 512
                rbd.RBD().create(context, name, size, None, False, FEATURES, data_pool=self._data)
                with rbd.Image(context, name) as base:
                    for offset, data in extents.data_of(source):
                        if stop():
                            raise Stopped
                        base.write(data, offset)
                    base.flush()
                    base.metadata_set(names.OWNER, f"image/{image}")
                    base.create_snap(names.BASE_SNAPSHOT)
                    base.protect_snap(names.BASE_SNAPSHOT)
                    identity = base.id()
                self._publish(context, name, identity, names.base_image(image))
        finally:
            os.close(source)
        if not self.has_base(context, image):
            raise CloudError(ErrorKind.ENGINE, f"image {image} was put into pool {self._pool} and is not there")
        return self._bases[image]

    @contextmanager
    def _partial(self, context: Any, what: str, incarnation: int) -> Iterator[str]:
        """The name of something unfinished; gone afterwards unless it was renamed."""
        name = names.partial(self._node, what, incarnation, _PROCESS, next(_serials))
        self._unfinished.add(name)
        try:
            yield name
        finally:
            if name in self._unfinished:
                self._unfinished.discard(name)
                self._remove(context, name)

    def _publish(self, context: Any, name: str, identity: str, final: str) -> None:
        """Unless another one was first: what it made has the same bytes.

        librbd says of a rename that lost a race that it went well; whose the name is, is written in an object.
        """
        with suppress(rbd.ImageExists):
            rbd.RBD().rename(context, name, final)
            if bytes(context.read(f"rbd_id.{final}"))[4:] == identity.encode():
                self._unfinished.discard(name)

    # --- removing

    def delete_base(self, context: Any, image: str) -> None:
        """`CloudError(IN_USE)` names the disks that depend on it."""
        try:
            with rbd.Image(context, names.base_image(image), read_only=True) as base:
                users = _children(base, names.BASE_SNAPSHOT)
        except rbd.ImageNotFound:
            users = []
        if users:
            message = f"disks were made from image {image}: {', '.join(users)}; flatten or delete them first"
            raise CloudError(ErrorKind.IN_USE, message, users=users)
        self._bases.pop(image, None)
        self._remove(context, names.base_image(image))

    def delete(self, context: Any, disk: str) -> None:
        """`CloudError(IN_USE)` names the disks that were made from its snapshots, or who has it open."""
        versions = self.versions(context, disk)
        for incarnation in versions:
            self._refuse_users(context, disk, incarnation)
        for incarnation in versions:
            self._remove(context, names.disk_image(disk, incarnation))
        self._known.pop(disk, None)
        self.changed(disk)

    def sweep(self, context: Any) -> None:
        """Remove what this node's former agents left unfinished."""
        for name in self.names(context):
            if names.left_over(self._node, _PROCESS, name):
                self._remove(context, name)

    def _remove(self, context: Any, name: str) -> None:
        """With its snapshots; nothing to do if it is not there."""
        try:
            with rbd.Image(context, name) as image:
                for snap in image.list_snaps():
                    _remove_snapshot(image, snap["name"])
            rbd.RBD().remove(context, name)
        except rbd.ImageNotFound:
            return

    def delete_snapshot(self, context: Any, disk: str, snapshot: str) -> None:
        try:
            with self.opened(context, disk, write=True) as image:
                if snapshot in {snap["name"] for snap in image.list_snaps()}:
                    _refuse(disk, _children(image, snapshot))
                    _remove_snapshot(image, snapshot)
        except CloudError as error:
            if error.kind != ErrorKind.NOT_FOUND:
                raise

    def _refuse_users(self, context: Any, disk: str, incarnation: int) -> None:
        try:
            with rbd.Image(context, names.disk_image(disk, incarnation), read_only=True) as image:
                users = [user for snap in list(image.list_snaps()) for user in _children(image, snap["name"])]
        except rbd.ImageNotFound:
            return
        _refuse(disk, users)


def _children(image: Any, snapshot: str) -> list[str]:
    """What was made from a snapshot and still depends on it."""
    image.set_snap(snapshot)
    try:
        return sorted(names.user_of(name) for _, name in image.list_children())
    finally:
        image.set_snap(None)


def _refuse(disk: str, users: list[str]) -> None:
    if users:
        message = f"disks were made from snapshots of {disk}: {', '.join(users)}; flatten or delete them first"
        raise CloudError(ErrorKind.IN_USE, message, users=users)


def _protect(image: Any, snapshot: str) -> None:
    if not image.is_protected_snap(snapshot):
        with suppress(rbd.ImageBusy, rbd.ImageExists):  # somebody else just did
            image.protect_snap(snapshot)


def _remove_snapshot(image: Any, snapshot: str) -> None:
    if image.is_protected_snap(snapshot):
        image.unprotect_snap(snapshot)
    image.remove_snap(snapshot)


def _origin(image: Any) -> str | None:
    try:
        _, name, snapshot = image.parent_info()
    except rbd.ImageNotFound:
        return None
    base = names.parse_base(name)
    return f"image/{base}" if base is not None else f"snapshot/{snapshot}"


def has_parent(image: Any) -> bool:
    return _origin(image) is not None


def told(image: Any, since: str | None) -> list[tuple[int, int, bool]]:
    """(offset, length, whether there are data) of what differs from an older snapshot, or from nothing."""
    found: list[tuple[int, int, bool]] = []

    def note(offset: int, length: int, exists: bool) -> None:
        found.append((offset, length, exists))

    image.diff_iterate(0, image.size(), since, note, include_parent=since is None)
    return found


def pieces(image: Any, since: str | None) -> Iterator[Extent]:
    """The bytes of an image that was opened at a snapshot."""
    for offset, length, exists in told(image, since):
        if not exists:
            if since is not None:
                yield offset, length
            continue
        for at in range(offset, offset + length, extents.CHUNK):
            yield at, image.read(at, min(extents.CHUNK, offset + length - at))


def write(image: Any, offset: int, piece: bytes | int) -> None:
    length = piece if isinstance(piece, int) else len(piece)
    if offset < 0 or offset + length > image.size():
        raise invalid("extents", f"the disk ends at {image.size()} bytes")
    if isinstance(piece, int):
        image.write_zeroes(offset, length)
    else:
        image.write(piece, offset)
