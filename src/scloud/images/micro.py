"""Builds `micro`, the small guest image that the cloud ships for first steps and tests.

`python -m scloud.images.micro OUT.raw` makes a sparse raw disk of 96 MiB (28 MiB real): an MBR, a FAT partition with
syslinux, Debian's cloud kernel and a small initrd, and an ext4 root with busybox and dropbear. It boots from its own
disk, asks DHCP for an address on every interface, reads NoCloud or the metadata service, and runs an SSH server (keys
only). **Whoever reaches its serial console is root without a password**: it is a test guest.

No mounts, loop devices or set-uid tricks are used. The same packages give the same bytes.
"""

from __future__ import annotations

import argparse
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from scloud.images.cpio import initramfs
from scloud.images.guestkernel import GuestKernel, find_kernel, missing, module_bytes
from scloud.model.errors import CloudError, ErrorKind

SIZE_MIB = 96
DEBIAN_PACKAGES = (
    "linux-image-cloud-amd64",
    "busybox-static",
    "dropbear-bin",
    "e2fsprogs",
    "mtools",
    "syslinux",
    "syslinux-common",
)
"""What the build reads or runs."""

_GUEST = Path(__file__).parent / "guest"
_MIB = 1024 * 1024
_SECTOR = 512
_BOOT_START = 1 * _MIB
_BOOT_SLACK = 2 * _MIB
_BOOT_MODULES = ("virtio_pci", "virtio_blk", "virtio_net")
_ROOT_MODULES = (
    *("button", "evdev", "virtio-rng", "virtio_balloon"),
    *("isofs", "fat", "vfat", "nls_cp437", "nls_iso8859-1", "nls_ascii", "nls_utf8"),
)
_COMMAND_LINE = (
    "root=/dev/vda2 console=ttyS0 quiet loglevel=3 nokaslr mitigations=off tsc=reliable no_timer_check "
    "rcupdate.rcu_expedited=1 cryptomgr.notests 8250.nr_uarts=1 i8042.noaux memhp_default_state=online panic=5 "
    "rodata=off noreplace-smp initcall_blacklist=tracer_init_tracefs,init_kprobe_trace,slab_sysfs_init"
)
"""`panic=5`: a guest that cannot boot says so on its console again and again instead of hanging. The rest shortens the
boot under emulation: no address randomisation, no retpolines, no rewriting of code for the processor at hand, no
tracing files, no waiting for hardware that is not there. None of it is meant for guests that serve anyone."""
_UUID = "5c10ad00-0000-4000-8000-00006d6963ff"
_SERIAL = "5C10AD00"
_EPOCH = "1577836800"
_TOOLS = {
    "mke2fs": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "mformat": "mtools",
    "mcopy": "mtools",
    "syslinux": "syslinux",
    "ldd": "libc-bin",
}
_FILES = {
    "bin/busybox": "busybox-static",
    "usr/sbin/dropbear": "dropbear-bin",
    "usr/bin/dropbearkey": "dropbear-bin",
    "usr/lib/syslinux/mbr/mbr.bin": "syslinux-common",
    "usr/lib/syslinux/modules/bios/ldlinux.c32": "syslinux-common",
}


def build(out: Path, *, root: Path = Path("/")) -> GuestKernel:
    """Write the image to `out` (whole or not at all) from the Debian packages under `root`; the kernel it used.

    `CloudError(UNAVAILABLE)` names a package that is missing, `CloudError(ENGINE)` a tool that failed.
    """
    _check_inputs(root)
    kernel = find_kernel(root)
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        work = Path(scratch)
        image = work / "image.raw"
        (work / "initrd").write_bytes(_initrd(kernel, root))
        boot_bytes = kernel.image.stat().st_size + (work / "initrd").stat().st_size + _BOOT_SLACK
        root_start = _BOOT_START + -(-boot_bytes // _MIB) * _MIB
        with image.open("wb") as file:
            file.truncate(SIZE_MIB * _MIB)
            file.write(_mbr(root, root_start))
        _write_boot(image, work, kernel, root_start)
        _write_root(image, work, kernel, root, root_start)
        image.replace(out)
    return kernel


def _check_inputs(root: Path) -> None:
    for name, package in _FILES.items():
        if not (root / name).is_file():
            raise missing(package, f"/{name}")
    for tool, package in _TOOLS.items():
        if shutil.which(tool) is None:
            raise missing(package, f"the program {tool}")


def _run(*argv: str | Path, data: str | None = None) -> str:
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "MTOOLSRC": "/dev/null",
        "MTOOLS_SKIP_CHECK": "1",
        "SOURCE_DATE_EPOCH": _EPOCH,
        "E2FSPROGS_FAKE_TIME": _EPOCH,
    }
    done = subprocess.run([str(word) for word in argv], input=data, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise CloudError(
            ErrorKind.ENGINE, f"{argv[0]} failed with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}"
        )
    return done.stdout + done.stderr


def _initrd(kernel: GuestKernel, root: Path) -> bytes:
    """Uncompressed: unpacking costs an emulated CPU more than reading the bytes."""
    modules = kernel.module_files(*_BOOT_MODULES)
    files = {f"modules/{path.name.removesuffix('.xz')}": (0o644, module_bytes(path)) for path in modules}
    files["modules/order"] = (0o644, "".join(f"{path.name.removesuffix('.xz')}\n" for path in modules).encode())
    files["bin/busybox"] = (0o755, (root / "bin/busybox").read_bytes())
    files["init"] = (0o755, (_GUEST / "initrd-init").read_bytes())
    files["root/.keep"] = files["dev/.keep"] = (0o644, b"")
    names = ("sh", "mount", "insmod", "usleep", "switch_root")
    return initramfs(files, {f"bin/{name}": "busybox" for name in names})


def _mbr(root: Path, root_start: int) -> bytes:
    """syslinux's boot code and two partitions: FAT (active) and Linux."""
    code = (root / "usr/lib/syslinux/mbr/mbr.bin").read_bytes()[:440].ljust(440, b"\0")

    def entry(active: bool, kind: int, start: int, end: int) -> bytes:
        no_chs = b"\xfe\xff\xff"
        place = struct.pack("<II", start // _SECTOR, (end - start) // _SECTOR)
        return bytes([0x80 if active else 0]) + no_chs + bytes([kind]) + no_chs + place

    table = entry(True, 0x0E, _BOOT_START, root_start) + entry(False, 0x83, root_start, SIZE_MIB * _MIB)
    return code + struct.pack("<IH", 0x5C10AD00, 0) + table + bytes(32) + b"\x55\xaa"


def _write_boot(image: Path, work: Path, kernel: GuestKernel, root_start: int) -> None:
    config = (
        f"DEFAULT micro\nPROMPT 0\nTIMEOUT 0\nLABEL micro\n LINUX vmlinuz\n INITRD initrd\n APPEND {_COMMAND_LINE}\n"
    )
    (work / "syslinux.cfg").write_text(config)
    (work / "vmlinuz").write_bytes(kernel.image.read_bytes())
    partition = f"{image}@@{_BOOT_START}"
    sectors = (root_start - _BOOT_START) // _SECTOR
    # 32 KiB clusters: the boot loader reads a few long runs instead of many short ones.
    _run("mformat", "-i", partition, "-T", str(sectors), "-h", "64", "-s", "32", "-H", str(_BOOT_START // _SECTOR),
         "-c", "16", "-N", _SERIAL, "-v", "MICROBOOT", "::")  # fmt: skip
    _run("syslinux", "--install", "--offset", str(_BOOT_START), image)
    for name in ("syslinux.cfg", "initrd", "vmlinuz"):
        _run("mcopy", "-o", "-i", partition, work / name, f"::{name}")


def _write_root(image: Path, work: Path, kernel: GuestKernel, root: Path, root_start: int) -> None:
    tree = work / "root"
    _fill_root(tree, kernel, root)
    blocks = (SIZE_MIB * _MIB - root_start) // 4096
    options = f"offset={root_start},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0,nodiscard,hash_seed={_UUID}"
    _run("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-N", "4096", "-m", "0", "-J", "size=4", "-L", "micro",
         "-U", _UUID, "-O", "^metadata_csum,^resize_inode", "-E", options, "-d", tree, image, str(blocks))  # fmt: skip
    commands = []
    for path in sorted(tree.rglob("*")):
        inside = f"/{path.relative_to(tree)}"
        for field in ("atime", "ctime", "mtime", "crtime"):
            commands.append(f'set_inode_field "{inside}" {field} @{_EPOCH}')
        for field in ("uid", "gid", "atime_extra", "ctime_extra", "mtime_extra", "crtime_extra"):
            commands.append(f'set_inode_field "{inside}" {field} 0')
    output = _run("debugfs", "-w", "-f", "-", f"{image}?offset={root_start}", data="\n".join(commands) + "\n")
    problems = [line for line in output.splitlines() if re.search(r"not found|invalid|error|unknown", line, re.I)]
    if problems:
        raise CloudError(ErrorKind.ENGINE, f"debugfs could not finish the root file system: {problems[0]}")


def _fill_root(tree: Path, kernel: GuestKernel, root: Path) -> None:
    for folder in ("dev", "proc", "sys", "run", "tmp", "mnt", "root", "bin", "sbin", "usr/bin", "usr/sbin", "lib",
                   "lib64", "var/lib/cloud", "var/log", "var/www", "etc/dropbear"):  # fmt: skip
        (tree / folder).mkdir(parents=True)
    (tree / "var/run").symlink_to("../run")
    shutil.copy(root / "bin/busybox", tree / "bin/busybox")
    for name in _run(root / "bin/busybox", "--list").split():
        if name != "busybox":
            (tree / "bin" / name).symlink_to("busybox")
    (tree / "sbin/init").symlink_to("../bin/busybox")
    for name in ("usr/sbin/dropbear", "usr/bin/dropbearkey"):
        shutil.copy(root / name, tree / name)
        _copy_libraries(root / name, tree)
    modules = kernel.module_files(*_BOOT_MODULES, *_ROOT_MODULES)
    base = tree / "lib/modules" / kernel.version
    for path in modules:
        target = base / str(path.relative_to(kernel.modules)).removesuffix(".xz")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(module_bytes(path))
    kept = {str(path.relative_to(kernel.modules)) for path in modules}
    lines = (kernel.modules / "modules.dep").read_text().splitlines()
    chosen = [line.replace(".ko.xz", ".ko") for line in lines if line.split(":")[0] in kept]
    (base / "modules.dep").write_text("\n".join(chosen) + "\n")
    shutil.copytree(_GUEST / "rootfs", tree, dirs_exist_ok=True)
    for path in tree.rglob("*"):
        if path.is_file() and not path.is_symlink():
            executable = path.read_bytes()[:2] in (b"#!", b"\x7fE") and path.suffix != ".ko"
            path.chmod(0o755 if executable or path.name == "rcS" else 0o644)
        elif path.is_dir():
            path.chmod(0o755)
    (tree / "etc/shadow").chmod(0o600)
    (tree / "root").chmod(0o700)
    (tree / "tmp").chmod(0o1777)


def _copy_libraries(program: Path, tree: Path) -> None:
    """What the dynamic loader would load, at the very paths it looks in."""
    for name in re.findall(r"(/\S+) \(0x", _run("ldd", program)):
        target = tree / name.removeprefix("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, target)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scloud.images.micro", description="Build the micro guest image.")
    parser.add_argument("out", type=Path, help="the raw disk image to write")
    arguments = parser.parse_args()
    try:
        kernel = build(arguments.out)
    except CloudError as error:
        print(f"micro: {error.message}", file=sys.stderr)
        return 1
    real = arguments.out.stat().st_blocks * 512 // _MIB
    print(f"{arguments.out}: {SIZE_MIB} MiB, {real} MiB on disk, kernel {kernel.version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
