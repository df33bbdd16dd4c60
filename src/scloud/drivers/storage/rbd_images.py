"""The images of one RADOS pool. Everything here blocks, and raises what librbd raises; meant for a thread."""

from __future__ import annotations

import itertools
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import rados
import rbd

from scloud.drivers.storage import extents, rbd_direct, rbd_trash
from scloud.drivers.storage import rbd_names as names
from scloud.drivers.storage.protocol import DiskFacts, FromImage, FromSnapshot, Source, StillOpen
from scloud.drivers.storage.rbd_bytes import origin_of
from scloud.drivers.storage.rbd_cluster import omap, remove_omap
from scloud.drivers.storage.rbd_direct import Parent
from scloud.drivers.storage.rbd_trash import Trashed
from scloud.drivers.storage.rbd_turn import Turn, turn
from scloud.drivers.storage.sparse import Stopped
from scloud.model.errors import CloudError, ErrorKind, invalid
from scloud.model.observed import PoolLeft

MIB = 1024 * 1024
FEATURES = 61
"""layering, exclusive-lock, object-map, fast-diff, deep-flatten."""
OBJECT_MIB = 4
"""Of an image's bytes in each object: what RBD does unless it is told otherwise."""
MEASURE_EVERY_S = 50.0
BROKEN_OFF_S = 20.0
"""Who removes an image has it open, but for a moment: a removal that is known so long and has nobody at it is dead."""
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
        self._used: dict[str, tuple[float, int | None]] = {}
        self._bases: dict[str, Parent] = {}
        """Bases that were there when they were last looked at."""
        self._unfinished: set[str] = set()
        self._removals: dict[str, float] = {}
        """Removals that are under way or broken off, by the image's id: since when they have been seen."""

    # --- looking

    def names(self, context: Any) -> list[str]:
        return list(rbd.RBD().list(context))

    def owners(self, context: Any, objects: Sequence[str]) -> dict[str, tuple[str, int]]:
        known = {item["id"]: item["name"] for item in rbd.RBD().list2(context)}
        found = {}
        for name in objects:
            identity, number = names.object_of(name) or ("", None)
            image = known.get(identity)
            if image is not None:
                base = names.parse_base(image)
                owner = f"image/{base}" if base is not None else names.user_of(image)
                found[name] = (owner, (number or 0) * OBJECT_MIB)
        return found

    def versions(self, context: Any, disk: str) -> list[int]:
        """Incarnations that are there, oldest first."""
        found = (names.parse_disk(name) for name in rbd_direct.listed(context, f"{disk}."))
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
        if disk in self._known:
            name = names.disk_image(disk, self._known[disk])
            if rbd_direct.identity_of(context, name) is not None:
                return name
        with self.opened(context, disk):
            return names.disk_image(disk, self._known[disk])

    def facts(self, context: Any, disk: str, closely: bool = False) -> DiskFacts | None:
        """For locks of those who are gone it is only looked `closely`, or when what it occupies is measured."""
        try:
            with self.opened(context, disk) as image:
                closely = closely or self._is_to_be_measured(disk)
                metadata = dict(image.metadata_list())
                snapshots = sorted(_snapshots(image), key=lambda snap: int(snap["id"]))
                return DiskFacts(
                    disk=disk,
                    size_mib=image.size() // MIB,
                    used_mib=self._measured(disk, image),
                    incarnation=self._known[disk],
                    snapshots=tuple((snap["name"], snap["size"] // MIB) for snap in snapshots),
                    rolled_back=int(metadata.get(names.ROLLED_BACK, 0)),
                    origin=origin_of(image),
                    abandoned=_abandoned(image) if closely else (),
                )
        except CloudError as error:
            if error.kind == ErrorKind.NOT_FOUND:
                return None
            raise

    def _is_to_be_measured(self, disk: str) -> bool:
        return disk not in self._used or time.monotonic() - self._used[disk][0] >= MEASURE_EVERY_S

    def _measured(self, disk: str, image: Any) -> int | None:
        """MiB that it occupies beside what it shares: from the object map, which is one small object. None if that is
        not to be trusted."""
        if not self._is_to_be_measured(disk):
            return self._used[disk][1]
        total = 0

        def count(_offset: int, length: int, exists: bool) -> None:
            nonlocal total
            total += length if exists else 0

        used: int | None = None
        if not image.flags() & _INVALID_MAP:
            image.diff_iterate(0, image.size(), None, count, include_parent=False, whole_object=True)
            used = (total + MIB - 1) // MIB
        self._used[disk] = (time.monotonic(), used)
        return used

    def mend(self, context: Any, disk: str) -> None:
        """Break the locks of those who are gone, and make its object map anew if that is not to be trusted; nothing to
        do while anybody has it open."""
        with self.opened(context, disk) as image:
            lockers, invalid_map = _lockers(image), image.flags() & _INVALID_MAP
            if list(image.watchers_list()):
                return
        with self.opened(context, disk, write=True) as image:
            for client, cookie, _ in lockers:  # and of nobody who has come since
                with suppress(rbd.ImageNotFound):  # whoever it was is put on the blocklist for an hour
                    image.break_lock(client, cookie)
            if invalid_map:
                image.rebuild_object_map()
        self.changed(disk)

    def changed(self, disk: str) -> None:
        """What it occupies is to be measured anew."""
        self._used.pop(disk, None)

    # --- making

    def create(
        self,
        context: Any,
        disk: str,
        size_mib: int,
        source: Source | None,
        incarnation: int,
        data_pool: int | None,
        stop: Callable[[], bool],
    ) -> DiskFacts | None:
        """All or nothing: it gets its name last. `data_pool` is the id of `data`. None if it was stopped.

        What a disk that was made here is like is not asked again.
        """
        final = names.disk_image(disk, incarnation)
        # Only what was made anew before has other versions.
        versions = self.versions(context, disk) if incarnation or disk in self._known else []
        made: DiskFacts | None = None
        if rbd_direct.identity_of(context, final) is None:
            for old in versions:
                self._refuse_users(context, disk, old)
            parent = self._parent(context, source, size_mib, stop)
            if stop():
                return None
            stamp = (names.OWNER, f"disk/{disk}")
            identity = secrets.token_hex(rbd_direct.ID_BYTES)
            with self._partial(context, disk, incarnation, parent) as name:
                try:
                    rbd_direct.make(
                        *(context, name, identity, size_mib * MIB, FEATURES, stamp),
                        data_pool=data_pool,
                        parent=parent,
                    )
                except rbd.ImageNotFound:
                    if isinstance(source, FromImage):
                        self._bases.pop(source.image, None)
                    raise
                if stop():
                    return None
                if rbd_direct.publish(context, name, identity, final):
                    self._unfinished.discard(name)
                    made = _new(disk, size_mib, source, incarnation)
        self._known[disk] = incarnation
        self.changed(disk)
        for old in versions:
            if old != incarnation:
                self._remove_version(context, disk, old, "made anew")
        return made or self.facts(context, disk)

    def _parent(self, context: Any, source: Source | None, size_mib: int, stop: Callable[[], bool]) -> Parent | None:
        match source:
            case None:
                return None
            case FromImage(image, file):
                parent, what = self.base(context, image, file, stop), "the image"
            case FromSnapshot(origin, snapshot):
                parent, what = self._protected(context, origin, snapshot), "the snapshot"
        if parent.size > size_mib * MIB:
            least = (parent.size + MIB - 1) // MIB
            raise invalid("size_mib", f"must be at least {what}'s {least} MiB, not {size_mib}")
        return parent

    def _protected(self, context: Any, disk: str, snapshot: str) -> Parent:
        """A snapshot that can be cloned from."""
        with self.opened(context, disk, write=True) as image:
            if snapshot not in {snap["name"] for snap in image.list_snaps()}:
                raise CloudError(ErrorKind.NOT_FOUND, f"snapshot {snapshot} of disk {disk} is not in {self._pool}")
            _protect(image, snapshot)
            return Parent.of(image, snapshot)

    def has_base(self, context: Any, image: str) -> bool:
        """A base has its name only once it is whole."""
        if image in self._bases:
            return True
        try:
            with rbd.Image(context, names.base_image(image), snapshot=names.BASE_SNAPSHOT, read_only=True) as base:
                self._bases[image] = Parent.of(base, names.BASE_SNAPSHOT)
        except rbd.ImageNotFound:
            return False
        return True

    def base(self, context: Any, image: str, file: Path | None, stop: Callable[[], bool]) -> Parent:
        """The image's base, made from the file if it is not there.

        One node after the other, so that its bytes are copied once; should two do it all the same, the first to name
        its own has made it, and the other throws it away.
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
            cookie = f"{self._node}.{_PROCESS}.{next(_serials)}"
            with turn(context, names.TURN + image, cookie, lambda: self.has_base(context, image), stop) as mine:
                if not self.has_base(context, image):
                    self._import(context, image, source, mine, stop)
        finally:
            os.close(source)
        if not self.has_base(context, image):
            raise CloudError(ErrorKind.ENGINE, f"image {image} was put into pool {self._pool} and is not there")
        with suppress(rados.ObjectNotFound):
            context.remove_object(names.TURN + image)
        return self._bases[image]

    def _import(self, context: Any, image: str, source: int, mine: Turn, stop: Callable[[], bool]) -> None:
        with self._partial(context, names.base_image(image), 0) as name:
            size = (os.fstat(source).st_size + 511) // 512 * 512
            rbd.RBD().create(context, name, size, None, False, FEATURES, data_pool=self._data)
            with rbd.Image(context, name) as base:
                for offset, data in extents.data_of(source):
                    if stop():
                        raise Stopped
                    mine.hold()
                    base.write(data, offset)
                base.flush()
                base.metadata_set(names.OWNER, f"image/{image}")
                base.create_snap(names.BASE_SNAPSHOT)
                base.protect_snap(names.BASE_SNAPSHOT)
            self._publish_base(context, name, names.base_image(image))

    @contextmanager
    def _partial(self, context: Any, what: str, incarnation: int, parent: Parent | None = None) -> Iterator[str]:
        """The name of something unfinished; gone afterwards unless it was renamed."""
        origin = (parent.image, parent.snapshot) if parent is not None else None
        name = names.partial(self._node, what, incarnation, _PROCESS, next(_serials), origin)
        self._unfinished.add(name)
        try:
            yield name
        finally:
            if name in self._unfinished:
                self._unfinished.discard(name)
                self._clear(context, name, rbd_direct.listed_identity(context, name))

    def _clear(self, context: Any, name: str, identity: str | None) -> None:
        """Remove something unfinished. What can be opened by its name was made by librbd, and may have data."""
        if identity is None or rbd_direct.identity_of(context, name) is not None:
            self._remove(context, name)
        else:
            origin = names.parent_of(name)
            rbd_direct.unmake(context, name, identity, Parent(*origin) if origin is not None else None)

    def _publish_base(self, context: Any, name: str, final: str) -> None:
        """Unless another one was first: what it made has the same bytes."""
        identity = rbd_direct.identity_of(context, name)
        if identity is None:
            raise CloudError(ErrorKind.ENGINE, f"{name} vanished from pool {self._pool} while it was made")
        if rbd_direct.publish(context, name, identity, final):
            rbd_direct.forget_name(context, name)
            self._unfinished.discard(name)

    # --- removing

    def delete_base(self, context: Any, image: str) -> None:
        """`CloudError(IN_USE)` names the disks that depend on it."""
        try:
            with rbd.Image(context, names.base_image(image), read_only=True) as base:
                users = _users(base)
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
            self._remove_version(context, disk, incarnation, "deleted")
        self._end_removals_of(context, disk, "deleted")
        remove_omap(context, names.NODES, disk)
        self._known.pop(disk, None)
        self.changed(disk)

    def remains(self, context: Any, disk: str) -> bool:
        """Whether there is more of a disk than its newest version: an older one, or one whose removal was begun."""
        versions = self.versions(context, disk)
        if len(versions) > 1 or _removals_of(context, disk):
            return True
        # Its name goes first when it is removed, and then it is taken off the directory.
        return bool(versions) and rbd_direct.identity_of(context, names.disk_image(disk, versions[0])) is None

    def clear(self, context: Any, disk: str) -> None:
        """Remove all but its newest version."""
        for old in self.versions(context, disk)[:-1]:
            self._remove_version(context, disk, old, "rid of its former bytes")
        self._end_removals_of(context, disk, "rid of its former bytes")

    def _remove_version(self, context: Any, disk: str, incarnation: int, wanted: str) -> None:
        name = names.disk_image(disk, incarnation)
        try:
            self._remove(context, name)
        except rbd.ImageBusy as error:
            raise StillOpen(disk, _watchers(context, name), wanted) from error

    def _end_removals_of(self, context: Any, disk: str, wanted: str) -> None:
        for one in _removals_of(context, disk):
            try:
                rbd_trash.finish(context, one)
            except rbd.ImageBusy as error:
                raise StillOpen(disk, (), wanted) from error

    def left(self, context: Any) -> PoolLeft:
        """What there is beside whole disks and bases."""
        found = self.names(context)  # also what is being removed
        entries = rbd_trash.trashed(context)
        versions = [one[0] for one in map(names.parse_disk, found) if one is not None]
        removed = [one[0] for one in (names.parse_disk(entry.name) for entry in entries if entry.removing) if one]
        half = {disk for disk, count in Counter(versions).items() if count > 1} | set(removed)
        fenced = omap(context, names.FENCED)
        return PoolLeft(
            partials=tuple(sorted((node, name) for name in found if (node := names.maker_of(name)) is not None)),
            half_removed=tuple(sorted(f"disk/{disk}" for disk in half)),
            trash=tuple(sorted(entry.name for entry in entries if not entry.removing)),
            fenced=tuple(sorted((node, tuple(addresses.split())) for node, addresses in fenced.items())),
        )

    def sweep(self, context: Any) -> None:
        """Remove what this node's former agents left unfinished, or finish it where only the old name was to go."""
        failed: rbd.Error | None = None
        for name in self.names(context):
            final = names.left_over(self._node, _PROCESS, name)
            if final is None:
                continue
            try:
                identity = rbd_direct.listed_identity(context, name)
                if identity is not None and rbd_direct.identity_of(context, final) == identity:
                    rbd_direct.complete_rename(context, name, identity, final)
                    rbd_direct.forget_name(context, name)
                else:
                    self._clear(context, name, identity)
            except rbd.Error as error:
                failed = failed or error  # most often it counts as open yet: the others need not wait for it
        if failed is not None:
            raise failed

    def end_removals(self, context: Any) -> bool:
        """End removals of ours, whoever began them, that nobody is at any more. False if there are some to come back
        to. Nodes that do so at once, or whoever is at it after all, refuse each other, and one of them ends it."""
        now = time.monotonic()
        found = [one for one in rbd_trash.trashed(context) if one.removing and names.is_ours(one.name)]
        self._removals = {one.identity: self._removals.get(one.identity, now) for one in found}
        failed: rbd.Error | None = None
        left = False
        for one in found:
            if now - self._removals[one.identity] < BROKEN_OFF_S or rbd_trash.is_watched(context, one):
                left = True
                continue
            try:
                rbd_trash.finish(context, one)
            except rbd.ImageBusy:
                left = True
            except rbd.Error as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return not left

    def _remove(self, context: Any, name: str) -> None:
        """With its snapshots; nothing to do if it is not there."""
        with suppress(rbd.ImageNotFound), rbd.Image(context, name) as image:
            for snap in _snapshots(image):
                _remove_snapshot(image, snap)
        for _ in range(2):
            try:
                rbd.RBD().remove(context, name)
                return
            except rbd.ImageNotFound:
                # Also said of an image that is there, by a full pool in which nothing was ever removed: the trash that
                # each removal passes through is an object more.
                if rbd_direct.identity_of(context, name) is None:
                    return
                rbd_direct.make_trash(context)
        raise CloudError(ErrorKind.ENGINE, f"{name} is still in pool {self._pool}, which does not let go of it")

    def delete_snapshot(self, context: Any, disk: str, snapshot: str) -> None:
        try:
            with self.opened(context, disk, write=True) as image:
                for snap in [snap for snap in _snapshots(image) if snap["name"] == snapshot]:
                    _refuse(disk, _children(image, snap))
                    _remove_snapshot(image, snap)
        except CloudError as error:
            if error.kind != ErrorKind.NOT_FOUND:
                raise

    def _refuse_users(self, context: Any, disk: str, incarnation: int) -> None:
        try:
            with rbd.Image(context, names.disk_image(disk, incarnation), read_only=True) as image:
                users = _users(image)
        except rbd.ImageNotFound:
            return
        _refuse(disk, users)


def _new(disk: str, size_mib: int, source: Source | None, incarnation: int) -> DiskFacts:
    """A disk nobody has written to yet."""
    match source:
        case FromImage(image, _):
            origin: str | None = f"image/{image}"
        case FromSnapshot(_, snapshot):
            origin = f"snapshot/{snapshot}"
        case None:
            origin = None
    return DiskFacts(disk=disk, size_mib=size_mib, used_mib=0, incarnation=incarnation, origin=origin)


def _removals_of(context: Any, disk: str) -> list[Trashed]:
    """Of a disk's images, those whose removal was begun and is not ended."""
    found = [one for one in rbd_trash.trashed(context) if one.removing]
    return [one for one in found if (names.parse_disk(one.name) or ("", 0))[0] == disk]


def _lockers(image: Any) -> list[tuple[str, str, str]]:
    """(client, cookie, address)."""
    return list((image.list_lockers() or {"lockers": []})["lockers"])


def _abandoned(image: Any) -> tuple[str, ...]:
    """Whose locks are left, if nobody has it open: who is alive and has it locked watches it."""
    lockers = _lockers(image)
    if not lockers or list(image.watchers_list()):
        return ()
    return tuple(sorted({address for _, _, address in lockers}))


def _watchers(context: Any, name: str) -> list[str]:
    """Who has an image open, but for the one who asks."""
    with suppress(rbd.ImageNotFound), rbd.Image(context, name, read_only=True) as image:
        return [watcher["addr"] for watcher in image.watchers_list()]
    return []


def _snapshots(image: Any) -> list[dict[str, Any]]:
    """Those that librbd has begun to remove are still there, and are known by the name that they had: it gives them
    another first (in its trash namespace), and a process that is killed then leaves them so."""
    found = list(image.list_snaps())
    return [{**snap, "name": snap["trash"]["original_name"]} if "trash" in snap else snap for snap in found]


def _users(image: Any) -> list[str]:
    """What was made from any of its snapshots and still depends on it."""
    return [user for snap in _snapshots(image) for user in _children(image, snap)]


def _children(image: Any, snapshot: dict[str, Any]) -> list[str]:
    """What was made from a snapshot and still depends on it."""
    image.set_snap_by_id(snapshot["id"])
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


def _remove_snapshot(image: Any, snapshot: dict[str, Any]) -> None:
    if "trash" not in snapshot and image.is_protected_snap(snapshot["name"]):
        image.unprotect_snap(snapshot["name"])
    image.remove_snap_by_id(snapshot["id"])
