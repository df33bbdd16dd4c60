"""What things in a RADOS pool are called.

A disk is the RBD image `DISK.INCARNATION`, an image's base is `image-IMAGE` with the snapshot `base`, and what is not
finished is `.tmp.NODE.…`, which that node's next agent removes. The objects named here are ours beside RBD's.
"""

from __future__ import annotations

import re

BASE_SNAPSHOT = "base"
OWNER = "scloud.owner"
"""Image metadata: `disk/ID` or `image/ID`."""
ROLLED_BACK = "scloud.rolled-back"
"""Image metadata: the number of the last roll back."""
NODES = "scloud.nodes"
"""Object whose omap says which node a disk was last given to, behind the one that it may be coming from: DISK -> nodes,
by spaces."""
SESSIONS = "scloud.sessions"
"""Object whose omap has the address of each node's agent: NODE -> IP:0/NONCE."""
TURN = "scloud.turn."
"""And an image's id: the object that says who is putting it into the pool."""
FENCED = "scloud.fenced"
"""Object whose omap names the nodes that are cut off, with the addresses that were: NODE -> addresses, by spaces."""

_DISK = re.compile(r"([a-z0-9][a-z0-9-]{0,63})\.(\d+)\Z")
_PARTIAL = re.compile(r"\.tmp\.([^.]+)\.([^.]+)\.(\d+)\.([0-9a-f]+)\.\d+(?:\.([^.]+)\.(\d+))?\Z")


def probe(number: int) -> str:
    """Objects that nobody writes: they are asked for to hear whether an OSD answers."""
    return f"scloud.probe.{number}"


def disk_image(disk: str, incarnation: int) -> str:
    return f"{disk}.{incarnation}"


def base_image(image: str) -> str:
    return f"image-{image}"


def partial(
    node: str, what: str, incarnation: int, process: str, serial: int, parent: tuple[str, int] | None = None
) -> str:
    """`parent` (image id, snapshot id) is noted, so that whoever removes it knows what it was to depend on."""
    suffix = "" if parent is None else f".{parent[0]}.{parent[1]}"
    return f".tmp.{node}.{what}.{incarnation}.{process}.{serial}{suffix}"


def parent_of(name: str) -> tuple[str, int] | None:
    """(image id, snapshot id) that something unfinished depends on."""
    match = _PARTIAL.match(name)
    return (match[5], int(match[6])) if match is not None and match[5] is not None else None


def left_over(node: str, process: str, name: str) -> str | None:
    """If another process of this node left it unfinished: the name it was to get."""
    match = _PARTIAL.match(name)
    if match is None or match[1] != node or match[4] == process:
        return None
    return match[2] if match[2].startswith("image-") else disk_image(match[2], int(match[3]))


def maker_of(name: str) -> str | None:
    """The node that is making something unfinished, or was."""
    match = _PARTIAL.match(name)
    return match[1] if match is not None else None


def parse_disk(name: str) -> tuple[str, int] | None:
    """(disk, incarnation)."""
    match = _DISK.match(name)
    return (match[1], int(match[2])) if match else None


def parse_base(name: str) -> str | None:
    return name.removeprefix("image-") if name.startswith("image-") and "." not in name else None


_OBJECT = re.compile(r"(?:rbd_data|rbd_header|rbd_object_map)\.(?:\d+\.)?([0-9a-f]+)(?:\.([0-9a-f]{16}))?\Z")


def object_of(name: str) -> tuple[str, int | None] | None:
    """(the image's identity, the number of the piece of its bytes) of a RADOS object; None if it is no image's.

    In the data pool of an erasure-coded pool the number of the pool with the metadata comes first.
    """
    match = _OBJECT.match(name)
    return (match[1], int(match[2], 16) if match[2] else None) if match else None


def is_ours(name: str) -> bool:
    """Whether an image is a disk, a base, or on its way to be one (whichever node is at it)."""
    return parse_disk(name) is not None or parse_base(name) is not None or _PARTIAL.match(name) is not None


def user_of(name: str) -> str:
    """How an image that depends on another is named to people."""
    if (found := parse_disk(name)) is not None:
        return f"disk/{found[0]}"
    match = _PARTIAL.match(name)
    return f"disk/{match[2]}" if match else name
