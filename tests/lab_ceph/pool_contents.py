"""What is in a pool, as librbd says, and what the cloud says should be."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import rbd

from lab.cloud import Lab
from lab_ceph.storage import Storage
from scloud.drivers.storage import rbd_names, rbd_trash


class Contents:
    """`disks` are ids with (MiB, snapshots that are there, ids of disks and images that it depends on); `strange` names
    what is neither a disk nor an image's base; `open_by` counts watchers of each disk; `locked` are those that are
    locked by somebody who has not got them open."""

    def __init__(self, storage: Storage, pool: str) -> None:
        self.disks: dict[str, tuple[int, frozenset[str], str | None]] = {}
        self.bases: set[str] = set()
        self.strange: list[str] = []
        self.open_by: Counter[str] = Counter()
        self.locked: set[str] = set()
        with storage.access("n1") as handle, handle.open_ioctx(storage.pool(pool)) as io:
            library = rbd.RBD()
            # librbd's own list of it leaves out what was being removed when somebody was killed.
            self.strange += [f"in RBD's trash: {item.name}" for item in rbd_trash.trashed(io)]
            for name in library.list(io):
                # An image's base goes by itself once nothing needs it: perhaps since the list was made.
                with contextlib.suppress(rbd.ImageNotFound), rbd.Image(io, name, read_only=True) as image:
                    self._take(name, image)

    def _take(self, name: str, image: Any) -> None:
        disk, base = rbd_names.parse_disk(name), rbd_names.parse_base(name)
        if base is not None:
            self.bases.add(base)
        elif disk is None:
            self.strange.append(name)
        elif disk[0] in self.disks:
            self.strange.append(f"{name}: another incarnation of a disk that is there")
        else:
            snapshots = frozenset(snapshot["name"] for snapshot in image.list_snaps())
            self.disks[disk[0]] = (image.size() >> 20, snapshots, _origin(image))
            # One of them is this look itself, if it watches at all: read-only opens do not.
            self.open_by[disk[0]] = len(list(image.watchers_list()))
            lockers = (image.list_lockers() or {"lockers": []})["lockers"]
            if list(lockers) and not self.open_by[disk[0]]:
                self.locked.add(disk[0])


def _origin(image: Any) -> str | None:
    """The id of the disk or image whose snapshot it is a clone of."""
    try:
        _, parent, _ = image.parent_info()
    except rbd.ImageNotFound:
        return None
    disk = rbd_names.parse_disk(parent)
    return disk[0] if disk is not None else rbd_names.parse_base(parent)


def wanted(lab: Lab, disk_type: str) -> dict[str, tuple[int, frozenset[str], str | None]]:
    """The same, as the API tells it, of all disks of a type, also those in the trash."""
    found = {}
    snapshots = lab.items("/snapshots", all_accounts=True)
    by_id = {snapshot["id"]: snapshot for snapshot in snapshots}
    for disk in lab.items("/disks", all_accounts=True):
        spec = disk["spec"]
        if spec.get("type") != disk_type:
            continue
        mine = frozenset(snapshot["id"] for snapshot in snapshots if snapshot["spec"]["disk"] == disk["id"])
        origin = by_id[spec["snapshot"]]["spec"]["disk"] if spec.get("snapshot") in by_id else spec.get("image")
        found[disk["id"]] = (spec["size_mib"], mine, None if spec.get("flattened") else origin)
    return found
