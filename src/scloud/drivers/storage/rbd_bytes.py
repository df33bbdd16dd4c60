"""What an open RBD image depends on, and its bytes. Everything here blocks, and raises what librbd raises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import rbd

from scloud.drivers.storage import extents
from scloud.drivers.storage import rbd_names as names
from scloud.drivers.storage.extents import Extent
from scloud.model.errors import invalid


def origin_of(image: Any) -> str | None:
    try:
        _, name, snapshot = image.parent_info()
    except rbd.ImageNotFound:
        return None
    base = names.parse_base(name)
    return f"image/{base}" if base is not None else f"snapshot/{snapshot}"


def has_parent(image: Any) -> bool:
    return origin_of(image) is not None


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
