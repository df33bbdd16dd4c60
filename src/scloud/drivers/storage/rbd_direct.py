"""What librbd does by opening an image and taking its lock, done with single operations on RBD's own objects.

For images that nobody else knows of yet: making a disk is to cost little more than the clone. The objects and methods
(cls_rbd) are those that librbd itself uses for images of format 2, the only one since 2012.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Any

import rados

_DIRECTORY = "rbd_directory"
_EXCLUSIVE = 1


def identity_of(context: Any, name: str) -> str | None:
    """The id behind an image's name; None if nothing has the name."""
    try:
        return bytes(context.read(f"rbd_id.{name}"))[4:].decode()
    except rados.ObjectNotFound:
        return None


def publish(context: Any, name: str, identity: str, final: str, key: str, value: str) -> bool:
    """Set a piece of image metadata, and rename.

    False if the final name is taken, by whomever: exactly one of those who try at once gets it.
    """
    data = struct.pack("<I", 1) + _text(key) + _text(value)
    stamping = context.aio_execute(f"rbd_header.{identity}", "rbd", "metadata_set", data)
    with rados.WriteOpCtx() as operation:
        operation.new(_EXCLUSIVE)
        operation.write_full(_text(identity))
        try:
            context.operate_write_op(operation, f"rbd_id.{final}")
        except rados.ObjectExists:
            return False
        finally:
            _finish(stamping, f"stamp {name}")
    complete_rename(context, name, identity, final)
    return True


def complete_rename(context: Any, name: str, identity: str, final: str) -> None:
    """What is left to be done once the final name is the image's, in any order."""
    removing = context.aio_remove(f"rbd_id.{name}")
    try:
        context.execute(_DIRECTORY, "rbd", "dir_rename_image", _text(name) + _text(final) + _text(identity))
    finally:
        _finish(removing, f"remove the name {name}", allowed=errno.ENOENT)


def _finish(completion: Any, doing: str, allowed: int = 0) -> None:
    completion.wait_for_complete()
    code = completion.get_return_value()
    if code < 0 and -code != allowed:
        raise rados.OSError(f"{doing}: {os.strerror(-code)}", -code)


def _text(value: str) -> bytes:
    """As Ceph encodes a string."""
    data = value.encode()
    return struct.pack("<I", len(data)) + data
