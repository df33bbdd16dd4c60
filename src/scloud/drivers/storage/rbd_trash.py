"""The trash of a RADOS pool: what somebody has put there, and images whose removal was begun and not ended.

librbd removes an image by moving it there, where it has no name any more, and only then lets go of its data. A process
that is killed meanwhile leaves the data, and an entry of a kind (`REMOVING`) that librbd's own `trash_list` leaves out.
So the object that lists the trash is read here as it is. Blocking.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import rados
import rbd

from scloud.drivers.storage import rbd_direct
from scloud.drivers.storage.rbd_cluster import omap_bytes

TRASH = "rbd_trash"
_KEY = "id_"
_REMOVING = 3
"""Source of an entry: a removal that goes on at once. Others wait for somebody to remove or restore them."""
_NORMAL, _MOVING = 0, 1
"""States of an entry: whole, and still on its way into the trash, out of which librbd removes nothing."""


@dataclass(frozen=True, slots=True)
class Trashed:
    """`removing` if its removal was begun; `moving` if the image may still have its name as well."""

    identity: str
    name: str
    removing: bool
    moving: bool


def trashed(context: Any) -> list[Trashed]:
    found = omap_bytes(context, TRASH)
    return [_read(key.removeprefix(_KEY), value) for key, value in found.items() if key.startswith(_KEY)]


def _read(identity: str, value: bytes) -> Trashed:
    """Version 1 or 2 of `cls::rbd::TrashImageSpec`: a source, a name, two times, and in the second a state."""
    source, length = struct.unpack_from("<BI", value, 6)
    state = 11 + length + 16
    name = value[11 : 11 + length].decode(errors="replace")
    return Trashed(identity, name, source == _REMOVING, value[state : state + 1] == bytes([_MOVING]))


def is_watched(context: Any, one: Trashed) -> bool:
    """Whether somebody is at it. Who is killed counts for 30 s more."""
    try:
        with rbd.Image(context, image_id=one.identity, read_only=True) as image:
            return bool(list(image.watchers_list()))
    except rbd.ImageNotFound:
        return False


def finish(context: Any, one: Trashed) -> None:
    """End a removal: by the image's id, for its name may be another's by now. rbd.ImageBusy while somebody is at it."""
    if one.moving:
        if rbd_direct.listed_identity(context, one.name) == one.identity:
            rbd_direct.unlist(context, one.name, one.identity)
        if rbd_direct.identity_of(context, one.name) == one.identity:
            rbd_direct.forget_name(context, one.name)
        with suppress(rados.ObjectNotFound):
            rbd_direct.set_trash_state(context, one.identity, _NORMAL, _MOVING)
    with suppress(rbd.ImageNotFound):
        rbd.RBD().trash_remove(context, one.identity, True)
