"""Names of the files that disks and snapshots are, in one folder.

A disk is `DISK.INCARNATION.raw`, or `DISK.INCARNATION.ROLLBACK.raw` once it was rolled back; a snapshot is
`DISK.INCARNATION.SERIAL.SNAPSHOT.snap`. So one rename publishes the bytes together with the numbers they are for.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from scloud.model.errors import invalid

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}\Z")
_DISK = re.compile(r"([a-z0-9][a-z0-9-]{0,63})\.(\d+)(?:\.(\d+))?\.raw\Z")
_SNAPSHOT = re.compile(r"([a-z0-9][a-z0-9-]{0,63})\.(\d+)\.(\d+)\.([a-z0-9][a-z0-9-]{0,63})\.snap\Z")


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """Which making of a disk, and which roll back of it. The greater is the newer."""

    incarnation: int
    rolled_back: int = 0

    def file(self, disk: str) -> str:
        if self.rolled_back:
            return f"{disk}.{self.incarnation}.{self.rolled_back}.raw"
        return f"{disk}.{self.incarnation}.raw"


@dataclass(frozen=True, slots=True, order=True)
class Snap:
    """A snapshot's file; `serial` counts the snapshots of a disk."""

    incarnation: int
    serial: int
    id: str

    def file(self, disk: str) -> str:
        return f"{disk}.{self.incarnation}.{self.serial}.{self.id}.snap"


def check(field: str, name: str) -> None:
    """An id is no path."""
    if not _ID.match(name):
        raise invalid(field, f"must be an id of lower-case letters, digits and '-', not {name!r}")


def strangers(root: Path) -> list[str]:
    """What is neither a disk, a snapshot, nor on its way to be one."""
    ours = (_DISK, _SNAPSHOT)
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries)
    return [name for name in names if not name.startswith(".") and not any(known.match(name) for known in ours)]


def listing(root: Path) -> tuple[dict[str, list[Version]], dict[str, list[Snap]]]:
    """What is published of each disk, oldest first: its versions (several only after a crash) and its snapshots."""
    disks: defaultdict[str, list[Version]] = defaultdict(list)
    snapshots: defaultdict[str, list[Snap]] = defaultdict(list)
    with os.scandir(root) as entries:
        for entry in entries:
            if match := _DISK.match(entry.name):
                disks[match[1]].append(Version(int(match[2]), int(match[3] or 0)))
            elif match := _SNAPSHOT.match(entry.name):
                snapshots[match[1]].append(Snap(int(match[2]), int(match[3]), match[4]))
    return (
        {disk: sorted(disks[disk]) for disk in sorted(disks)},
        {disk: sorted(snapshots[disk]) for disk in sorted(snapshots)},
    )
