"""The micro image as a file: small, the same every time, complete, and honest about what is missing."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from scloud.images import micro
from scloud.images.cpio import initramfs
from scloud.images.guestkernel import find_kernel
from scloud.model.errors import CloudError, ErrorKind


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "micro.raw"
    micro.build(path)
    return path


def root_start(image: Path) -> int:
    return int.from_bytes(image.read_bytes()[446 + 16 + 8 : 446 + 16 + 12], "little") * 512


def debugfs(image: Path, command: str) -> str:
    argv = ["debugfs", "-R", command, f"{image}?offset={root_start(image)}"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_it_is_small_and_leaves_no_scratch(image: Path) -> None:
    assert image.stat().st_size == 96 * 1024 * 1024
    assert image.stat().st_blocks * 512 < 40 * 1024 * 1024
    assert list(image.parent.iterdir()) == [image]


def test_the_same_packages_give_the_same_bytes(image: Path, tmp_path: Path) -> None:
    micro.build(tmp_path / "again.raw")
    assert (tmp_path / "again.raw").read_bytes() == image.read_bytes()


def test_the_root_file_system_is_sound_and_roots(image: Path) -> None:
    start = root_start(image)
    argv = ["e2fsck", "-f", "-n", f"{image}?offset={start}"]
    assert subprocess.run(argv, capture_output=True).returncode == 0
    assert re.search(r"Mode:\s+0600.*User:\s+0\s", debugfs(image, "stat /etc/shadow"), re.S)
    assert re.search(r"Mode:\s+0755", debugfs(image, "stat /sbin/cloud"))
    assert "root:*:" in debugfs(image, "cat /etc/shadow"), "no password lets anyone in over the network"
    for name in ("nc", "wget", "httpd", "ping", "sha256sum", "dd", "getty", "udhcpc", "acpid"):
        assert "Type: symlink" in debugfs(image, f"stat /bin/{name}")


def test_modules_come_after_what_they_need() -> None:
    names = [path.name.split(".")[0] for path in find_kernel().module_files("virtio_pci", "virtio_blk", "virtio_net")]
    for before, after in (("virtio", "virtio_pci"), ("virtio_ring", "virtio"), ("net_failover", "virtio_net")):
        if before in names:
            assert names.index(before) < names.index(after)
    assert names[-1] == "virtio_net"


def test_guest_scripts_are_shell(image: Path) -> None:
    folder = Path(micro.__file__).parent / "guest"
    scripts = [path for path in folder.rglob("*") if path.is_file() and path.read_bytes()[:2] == b"#!"]
    assert len(scripts) >= 9
    for script in scripts:
        subprocess.run(["/bin/busybox", "sh", "-n", script], check=True)


@pytest.mark.parametrize(
    ("left_out", "package"),
    [
        ("bin/busybox", "busybox-static"),
        ("usr/sbin/dropbear", "dropbear-bin"),
        ("usr/lib/syslinux/mbr/mbr.bin", "syslinux-common"),
        ("boot", "linux-image-cloud-amd64"),
    ],
)
def test_a_missing_input_names_its_package(tmp_path: Path, left_out: str, package: str) -> None:
    root = tmp_path / "root"
    for name in (*micro._FILES, "boot/vmlinuz-1-cloud-amd64", "lib/modules/1-cloud-amd64/modules.dep"):
        if not name.startswith(left_out):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
    with pytest.raises(CloudError) as failed:
        micro.build(tmp_path / "out.raw", root=root)
    assert failed.value.kind is ErrorKind.UNAVAILABLE
    assert package in failed.value.message
    assert {path.name for path in tmp_path.iterdir()} == {"root"}


def test_the_newest_kernel_is_taken(tmp_path: Path) -> None:
    for version in ("6.1.0-9", "6.1.0-56", "6.1.0-10"):
        (tmp_path / "boot").mkdir(exist_ok=True)
        (tmp_path / f"boot/vmlinuz-{version}-cloud-amd64").touch()
        (tmp_path / f"lib/modules/{version}-cloud-amd64").mkdir(parents=True)
        (tmp_path / f"lib/modules/{version}-cloud-amd64/modules.dep").touch()
    assert find_kernel(tmp_path).version == "6.1.0-56-cloud-amd64"


def test_initramfs_can_be_unpacked(tmp_path: Path) -> None:
    archive = initramfs({"init": (0o755, b"#!/bin/sh\n"), "a/b/file": (0o644, b"xyz")}, {"a/link": "b/file"})
    subprocess.run(["/bin/busybox", "cpio", "-idm"], input=archive, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "a/link").read_bytes() == b"xyz"
    assert (tmp_path / "init").stat().st_mode & 0o777 == 0o755
