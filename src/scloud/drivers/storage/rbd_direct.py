"""What librbd does by opening images and taking their locks, done with single operations on RBD's own objects.

For images that nobody else knows of yet. librbd's clone is some twenty operations one after the other; here the same
objects with the same content are made in three steps, and named in two. Objects and methods (cls_rbd) are those that
librbd itself uses for images of format 2, the only one since 2012; a test compares what is made with what librbd makes.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import rados
import rbd

from scloud.drivers.storage.rbd_cluster import FULL_FORCE

_DIRECTORY = "rbd_directory"
_CHILDREN = "rbd_children"
_TRASH = "rbd_trash"
_EXCLUSIVE, _SHARED = 1, 0
_DATA_POOL = 128
_PROTECTED = 2
_NO_OBJECT = 0
ORDER = 22
"""Objects of 4 MiB, as librbd's own default."""
ID_BYTES = 7
"""An image's id has up to 14 characters."""


@dataclass(frozen=True, slots=True)
class Parent:
    """A protected snapshot in the same pool: of the image with this id; its size in bytes, 2^order to an object."""

    image: str
    snapshot: int
    size: int = 0
    order: int = ORDER

    @classmethod
    def of(cls, image: Any, snapshot: str) -> Parent:
        """Of an open image."""
        size = next(int(snap["size"]) for snap in image.list_snaps() if snap["name"] == snapshot)
        return cls(image.id(), int(image.snap_get_id(snapshot)), size, int(image.stat()["order"]))


def identity_of(context: Any, name: str) -> str | None:
    """The id behind an image's name; None if nothing has the name."""
    try:
        return bytes(context.read(f"rbd_id.{name}"))[4:].decode()
    except rados.ObjectNotFound:
        return None


def listed_identity(context: Any, name: str) -> str | None:
    """The id that the pool's directory has for a name, which may have no other trace yet."""
    try:
        _, answer = context.execute(_DIRECTORY, "rbd", "dir_get_id", _text(name))
    except rados.ObjectNotFound:
        return None
    return bytes(answer)[4:].decode()


def listed(context: Any, beginning: str) -> list[str]:
    """At most 1,000 of the names in the pool's directory that begin so. The rest of it is not read."""
    with rados.ReadOpCtx() as operation:
        rows, _ = context.get_omap_vals(operation, "", f"name_{beginning}", 1000)
        try:
            context.operate_read_op(operation, _DIRECTORY)
        except rados.ObjectNotFound:
            return []
        return [str(key).removeprefix("name_") for key, _ in rows]


def make(
    context: Any,
    name: str,
    identity: str,
    size: int,
    features: int,
    stamp: tuple[str, str],
    *,
    data_pool: int | None = None,
    parent: Parent | None = None,
) -> None:
    """An image of `size` bytes that the directory lists, and that nobody can open by `name` yet: `publish` it.

    `stamp` is a piece of image metadata. If this is cut short, `unmake` removes what is there, given the same parent.
    rbd.ImageNotFound if the parent is gone, or not protected any more.
    """
    context.execute(_DIRECTORY, "rbd", "dir_add_image", _text(name) + _text(identity))
    order = parent.order if parent is not None else ORDER
    prefix = f"rbd_data.{identity}" if data_pool is None else f"rbd_data.{context.get_pool_id()}.{identity}"
    features |= 0 if data_pool is None else _DATA_POOL
    header = struct.pack("<QBQ", size, order, features) + _text(prefix)
    header += struct.pack("<q", -1 if data_pool is None else data_pool)
    mapping = struct.pack("<QB", -(-size // 2**order), _NO_OBJECT)
    with rados.WriteOpCtx() as operation:
        operation.new(_EXCLUSIVE)
        operation.execute("rbd", "create", header)
        operation.execute("rbd", "metadata_set", struct.pack("<I", 1) + _text(stamp[0]) + _text(stamp[1]))
        steps = [context.operate_aio_write_op(operation, f"rbd_header.{identity}")]
        steps.append(context.aio_execute(f"rbd_object_map.{identity}", "rbd", "object_map_resize", mapping))
        if parent is not None:
            steps.append(context.aio_execute(_CHILDREN, "rbd", "add_child", _child(context, parent, identity)))
        _finish(steps, f"make {name}")
    if parent is None:
        return
    attaching = context.aio_execute(f"rbd_header.{identity}", "rbd", "parent_attach", _attached(context, parent))
    protected = _is_protected(context, parent)
    _finish([attaching], f"attach {name} to its parent")
    if not protected:
        # Whoever takes its protection away looks for children afterwards: one of both sees the other.
        raise rbd.ImageNotFound(f"the snapshot that {name} is made from is not protected any more", errno=errno.ENOENT)


def unmake(context: Any, name: str, identity: str, parent: Parent | None) -> None:
    """Remove an image that was never opened, or what there is of it. It is in the directory until the rest is gone."""
    if parent is not None:
        with suppress(rados.ObjectNotFound):
            context.execute(_CHILDREN, "rbd", "remove_child", _child(context, parent, identity))
    for piece in ("rbd_object_map", "rbd_header"):
        with suppress(rados.ObjectNotFound):
            context.remove_object(f"{piece}.{identity}")
    unlist(context, name, identity)


def unlist(context: Any, name: str, identity: str) -> None:
    """Take an image off the pool's directory."""
    with suppress(rados.ObjectNotFound):
        context.execute(_DIRECTORY, "rbd", "dir_remove_image", _text(name) + _text(identity))


def _attached(context: Any, parent: Parent) -> bytes:
    """Pool, namespace (none), image and snapshot, as version 1 of their structure; overlap; not a second time."""
    spec = struct.pack("<q", context.get_pool_id()) + _text("") + _text(parent.image)
    spec += struct.pack("<Q", parent.snapshot)
    return struct.pack("<BBI", 1, 1, len(spec)) + spec + struct.pack("<QB", parent.size, 0)


def _child(context: Any, parent: Parent, identity: str) -> bytes:
    snapshot = struct.pack("<Q", parent.snapshot)
    return struct.pack("<q", context.get_pool_id()) + _text(parent.image) + snapshot + _text(identity)


def _is_protected(context: Any, parent: Parent) -> bool:
    header, snapshot = f"rbd_header.{parent.image}", struct.pack("<Q", parent.snapshot)
    try:
        _, answer = context.execute(header, "rbd", "get_protection_status", snapshot)
    except rados.ObjectNotFound:
        return False
    return bytes(answer)[:1] == bytes([_PROTECTED])


def publish(context: Any, name: str, identity: str, final: str) -> bool:
    """Give an image its name.

    False if the name is taken, by whomever: exactly one of those who try at once gets it.
    """
    with rados.WriteOpCtx() as operation:
        operation.new(_EXCLUSIVE)
        operation.write_full(_text(identity))
        try:
            context.operate_write_op(operation, f"rbd_id.{final}")
        except rados.ObjectExists:
            return False
    complete_rename(context, name, identity, final)
    return True


def complete_rename(context: Any, name: str, identity: str, final: str) -> None:
    """What is left to be done once the final name is the image's."""
    context.execute(_DIRECTORY, "rbd", "dir_rename_image", _text(name) + _text(final) + _text(identity))


def make_trash(context: Any) -> None:
    """The object that lists the pool's trash, which each removal by librbd passes through; also in a full pool."""
    with rados.WriteOpCtx() as operation:
        operation.new(_SHARED)
        context.operate_write_op(operation, _TRASH, flags=FULL_FORCE)


def set_trash_state(context: Any, identity: str, state: int, before: int) -> None:
    """Of an image in the trash. rados.Error if it was neither of both."""
    context.execute(_TRASH, "rbd", "trash_state_set", _text(identity) + bytes([state, before]))


def forget_name(context: Any, name: str) -> None:
    """Of an image that has another by now."""
    with suppress(rados.ObjectNotFound):
        context.remove_object(f"rbd_id.{name}")


def _finish(steps: Iterable[Any], doing: str) -> None:
    """Wait for all, then raise the first failure."""
    codes = []
    for step in steps:
        step.wait_for_complete()
        codes.append(step.get_return_value())
    if (code := next((code for code in codes if code < 0), 0)) < 0:
        raise rados.OSError(f"{doing}: {os.strerror(-code)}", -code)


def _text(value: str) -> bytes:
    """As Ceph encodes a string."""
    data = value.encode()
    return struct.pack("<I", len(data)) + data
