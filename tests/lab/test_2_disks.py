"""Data disks on running guests."""

from __future__ import annotations

from lab.cloud import Lab, until
from lab.shared import Wide


def test_a_disk_goes_from_one_vm_to_another_with_its_data(lab: Lab, wide: Wide) -> None:
    disk = lab.json("disk", "create", "travels", "--size", "32M")
    assert disk["spec"]["size_mib"] == 32
    lab.ok("disk", "attach", "travels", "a1")
    device = wide.a1.device_of(disk["id"])
    wide.a1.run(
        f"mkfs.ext2 /dev/{device} > /dev/null && mkdir -p /mnt/d && mount /dev/{device} /mnt/d && "
        "dd if=/dev/urandom of=/mnt/d/data bs=64k count=64 2>/dev/null && sync"
    )
    digest = wide.a1.run("sha256sum < /mnt/d/data")
    assert lab.refused("disk", "attach", "travels", "a3")["code"] == "in_use"
    assert lab.refused("disk", "delete", "travels")["code"] == "in_use"
    wide.a1.run("umount /mnt/d")
    lab.ok("disk", "detach", "travels")
    assert not wide.a1.succeeds(f"[ -b /dev/{device} ]"), "it is gone while the guest runs"

    refused = lab.refused("disk", "attach", "travels", "a2")
    assert refused["code"] == "conflict" and "n1" in refused["detail"] and "n2" in refused["detail"]

    lab.ok("disk", "attach", "travels", "a3")
    device = wide.a3.device_of(disk["id"])
    wide.a3.run(f"mkdir -p /mnt/d && mount /dev/{device} /mnt/d")
    assert wide.a3.run("sha256sum < /mnt/d/data") == digest

    lab.ok("disk", "resize", "travels", "--size", "64M")
    until(lambda: wide.a3.run(f"cat /sys/block/{device}/size") == str(64 * 2048), "the guest sees it grow", 20.0)
    assert wide.a3.run("sha256sum < /mnt/d/data") == digest
    assert lab.refused("disk", "resize", "travels", "--size", "32M")["code"] == "invalid"

    wide.a3.run("umount /mnt/d")
    lab.ok("disk", "detach", "travels")
    lab.ok("disk", "delete", "travels")
    assert lab.scloud("disk", "show", "travels").code == 3
    assert not list(lab.node_root("n1").rglob(f"*{disk['id']}*"))


def test_disks_are_thin(lab: Lab, wide: Wide) -> None:
    disk = lab.json("disk", "create", "thin", "--size", "8G")
    lab.ok("disk", "attach", "thin", "a1")
    device = wide.a1.device_of(disk["id"])
    assert wide.a1.run(f"cat /sys/block/{device}/size") == str(8 * 1024 * 2048)
    wide.a1.run(f"dd if=/dev/urandom of=/dev/{device} bs=1M count=4 seek=4000 conv=fsync 2>/dev/null")
    file = next(lab.node_root("n1").rglob(f"{disk['id']}*.raw"))
    assert file.stat().st_size == 8 << 30
    assert 4 << 20 <= file.stat().st_blocks * 512 < 64 << 20
    lab.ok("disk", "detach", "thin")
    lab.ok("disk", "delete", "thin")


def test_a_disk_made_with_a_vm_outlives_it(lab: Lab, blank: str) -> None:
    lab.ok("vm", "create", "owner", "--image", blank, "--memory", "128M", "--disk", "16M", "--node", "n2")
    disks = lab.json("disk", "list", "--vm", "owner")
    assert sorted(disk["spec"]["system"] for disk in disks) == [False, True]
    data = next(disk for disk in disks if not disk["spec"]["system"])
    assert "system disk" in lab.refused("disk", "detach", next(d["id"] for d in disks if d["spec"]["system"]))["detail"]
    lab.ok("vm", "delete", "owner")
    left = lab.json("disk", "show", data["id"])
    assert left["spec"]["vm"] is None and left["status"]["state"] == "ready"
    lab.ok("disk", "delete", data["id"])
