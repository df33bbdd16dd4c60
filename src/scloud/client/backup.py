"""Backups of disks as files: their header, and whether one is whole. The format is that of `link.backup`."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

from scloud.client.problems import failure

MAGIC = b"SCLDDISK1\n"
_END = struct.Struct(">cQQI")
TAIL = _END.size + 32
PIECE = 1 << 20
_FAILED = re.compile(rb"X\0{8}.{12}(\[.*\])\Z", re.DOTALL)


def header(file: Path) -> dict[str, Any]:
    """`disk`, `snapshot`, `since` and `size_mib`. Raises the CloudError of a file that is no backup."""
    with file.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise failure("invalid", f"{file} is no backup of a disk: it does not begin as one")
        length = int.from_bytes(stream.read(4), "big")
        try:
            found: dict[str, Any] = json.loads(stream.read(min(length, 65536)))
        except ValueError as error:
            raise failure("invalid", f"{file} is damaged: its header cannot be read") from error
    return found


def check(file: Path) -> None:
    """Raises CloudError unless the file is whole and as it was sent."""
    size = file.stat().st_size
    total = hashlib.sha256()
    with file.open("rb") as stream:
        left = max(size - TAIL, 0)
        while left and (piece := stream.read(min(PIECE, left))):
            total.update(piece)
            left -= len(piece)
        tail = stream.read()
    total.update(tail[: _END.size])
    if len(tail) == TAIL and tail[:1] == b"E" and tail[_END.size :] == total.digest():
        return
    with file.open("rb") as stream:
        stream.seek(max(0, size - 65536))
        said = _FAILED.search(stream.read())
    if said is not None:
        try:
            kind, message = json.loads(said[1])
        except ValueError:
            kind, message = "engine", "the node failed"
        raise failure(kind, f"the backup broke off: {message}")
    raise failure("unavailable", f"{file} is not whole, or damaged: take the backup anew")
