"""Bytes of a disk in other places, through API and agents: in files and back, in images, in another pool, in snapshots
of a schedule. What comes out anywhere is compared with what the guest says that it wrote."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import rbd

from lab.cloud import Guest, Lab, until
from lab_ceph.storage import Storage
from scloud.drivers.storage.rbd_names import parse_disk
from scloud.lab.storage import CLUSTER

SIZE_MIB, HEAD_MIB, MORE_AT_MIB, MORE_MIB = 48, 12, 20, 2
EVERY_S = 60.0
"""No schedule is closer."""


@pytest.fixture(scope="module")
def second(lab: Lab) -> Iterator[str]:
    """A disk type of another pool of the cluster."""
    lab.ok("pool", "create", "second", "--cluster", CLUSTER)
    lab.ok("disk-type", "create", "second", "--pool", "second")
    yield "second"
    lab.ok("disk-type", "delete", "second")
    lab.ok("pool", "delete", "second")


def stored(lab: Lab, storage: Storage, disk: str) -> str:
    """SHA-256 of all a disk's bytes, as librbd reads them from its pool on a node."""
    found = lab.show("disks", disk)
    pool = next(one["spec"]["rados_name"] for one in lab.items("/pools") if one["id"] == found["spec"]["pool"])
    with storage.access("n2") as handle, handle.open_ioctx(pool) as io:
        names = [name for name in rbd.RBD().list(io) if (parsed := parse_disk(name)) and parsed[0] == found["id"]]
        with rbd.Image(io, names[0], read_only=True) as image:
            return hashlib.sha256(image.read(0, image.size())).hexdigest()


def in_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Original:
    """A disk, as its guest has it."""

    def __init__(self, guest: Guest, name: str) -> None:
        self.guest, self.name = guest, name

    def write(self, mib: int, at_mib: int = 0) -> str:
        """Random bytes, on the disk when this returns. SHA-256 of all the disk has then, read past the cache."""
        device = self.guest.device_of(self.name)
        self.guest.run(
            f"dd if=/dev/urandom of=/dev/{device} bs=1M count={mib} seek={at_mib} conv=fsync,notrunc 2>/dev/null"
        )
        return self.read()

    def read(self) -> str:
        device = self.guest.device_of(self.name)
        return self.guest.run(f"dd if=/dev/{device} bs=1M iflag=direct 2>/dev/null | sha256sum").split()[0]


def test_a_disks_bytes_are_the_same_wherever_they_are_taken(
    lab: Lab, storage: Storage, second: str, tmp_path: Path
) -> None:
    guest = lab.create("copier", "--disk-type", "standard")
    for name, mib in (("original", SIZE_MIB), ("kept", 8)):
        lab.ok("disk", "create", name, "--size", f"{mib}M", "--type", "standard")
        lab.ok("disk", "attach", name, "copier")
    original, kept = Original(guest, "original"), Original(guest, "kept")

    as_kept = kept.write(4)
    lab.ok("disk", "schedule", "kept", "--every", "1m", "--keep", "9")
    scheduled = time.monotonic()

    # In files: a whole one, then what has changed; and back, into a disk of the other pool.
    before = original.write(HEAD_MIB)
    whole, changes = tmp_path / "whole.bak", tmp_path / "changes.bak"
    first = lab.json("disk", "export", "original", str(whole))
    after = original.write(MORE_MIB, MORE_AT_MIB)
    second_one = lab.json("disk", "export", "original", str(changes), "--since", first["snapshot"])
    assert before != after
    assert whole.stat().st_size >= HEAD_MIB << 20 and MORE_MIB << 20 <= changes.stat().st_size < HEAD_MIB << 20
    lab.ok("disk", "import", "back", str(whole), "--type", second)
    assert stored(lab, storage, "back") == before
    lab.ok("disk", "import", "back", str(changes))
    assert stored(lab, storage, "back") == after
    again = lab.refused("disk", "import", "back", str(changes))
    assert again["code"] == "conflict" and "has the bytes of snapshot" in again["detail"], again

    # In an image, made while the guest has it; and in a disk made from that.
    lab.ok("image", "create-from", "of-disk", "--disk", "original")
    lab.ok("image", "export", "of-disk", str(tmp_path / "of-disk.raw"), "--format", "raw")
    assert in_file(tmp_path / "of-disk.raw") == after
    lab.ok("disk", "create", "from-image", "--type", "standard", "--image", "of-disk")
    assert stored(lab, storage, "from-image") == after

    # In an image of the VM, which boots as another; and in another pool, where the VM finds its disk again.
    guest.run("echo noted > /root/note; sync")
    lab.ok("snapshot", "delete", first["snapshot"], second_one["snapshot"])
    lab.ok("vm", "stop", "copier")
    guest.forget()
    lab.ok("image", "create-from", "of-vm", "--vm", "copier")
    (system,) = [disk["id"] for disk in lab.items("/disks", vm=guest.id) if disk["spec"]["system"]]
    lab.ok("image", "export", "of-vm", str(tmp_path / "of-vm.raw"), "--format", "raw")
    assert in_file(tmp_path / "of-vm.raw") == stored(lab, storage, system)
    moved_from = lab.show("disks", "original")["id"]
    lab.ok("disk", "move", "original", "--type", second)
    assert lab.show("disks", "original")["id"] != moved_from
    assert stored(lab, storage, "original") == after == stored(lab, storage, moved_from)
    lab.ok("vm", "start", "copier")
    guest.wait_boot()
    assert original.read() == after and kept.read() == as_kept
    another = lab.create("another", "--image", "of-vm", "--disk-type", second)
    assert another.run("cat /root/note; hostname").split() == ["noted", "another"]

    # In a snapshot that nobody asked for.
    def taken() -> list[str]:
        found = [one for one in lab.items("/snapshots", disk="kept") if one["spec"]["scheduled"]]
        return [one["name"] for one in found if one["status"]["state"] == "ready"]

    name = until(taken, "a scheduled snapshot", EVERY_S + 30.0)[0]
    assert time.monotonic() - scheduled >= EVERY_S - 5.0
    assert kept.write(8) != as_kept
    lab.ok("disk", "create", "as-kept", "--type", "standard", "--from-snapshot", name)
    assert stored(lab, storage, "as-kept") == as_kept
    remove(lab, guest, another, moved_from)


def remove(lab: Lab, guest: Guest, another: Guest, moved_from: str) -> None:
    for one in (guest, another):
        one.forget()
    lab.ok("vm", "delete", guest.name, another.name)
    for disk in ("as-kept", "from-image", "back", "original", moved_from):
        lab.ok("disk", "delete", disk, "--now")
    lab.ok("disk", "schedule", "kept", "--off")
    lab.ok("snapshot", "delete", *(one["name"] for one in lab.items("/snapshots", disk="kept")))
    lab.ok("disk", "delete", "kept", "--now")
    lab.ok("image", "delete", "of-disk", "of-vm")
