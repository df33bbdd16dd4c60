"""Decides between KVM and emulation by booting a kernel.

A `/dev/kvm` that opens is not a KVM that works: under some outer hypervisors guests make next to no progress. So a tiny
system (Debian's cloud kernel, busybox) is booted under KVM against a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from scloud.images.cpio import initramfs
from scloud.images.guestkernel import find_kernel, missing
from scloud.model.base import Value
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.statuses import Accelerator

DEADLINE_S = 10.0
"""A working KVM boots the test kernel in about a second."""
QEMU = "qemu-system-x86_64"
_MARKER = b"scloud-test-kernel-is-up"
_INIT = b"#!/bin/busybox sh\n/bin/busybox echo " + _MARKER + b"\n/bin/busybox poweroff -f\n"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class TestBoot(Value):
    """How a boot of the test kernel went: `seconds` to its end, or `failure` in words that follow a comma."""

    __test__ = False

    seconds: float | None
    failure: str = ""


class _Cached(Value):
    boot_id: str
    qemu: str
    accelerator: Accelerator


async def measure(
    cache: Path, *, deadline_s: float = DEADLINE_S, device: Path = Path("/dev/kvm"), qemu: str = QEMU
) -> Accelerator:
    """The accelerator for this host, remembered in the JSON file `cache` until the host is booted or QEMU is changed.

    `CloudError(UNAVAILABLE)` names the Debian package if QEMU or the test kernel is missing.
    """
    boot_id, version = (await asyncio.to_thread(_BOOT_ID.read_text)).strip(), await _qemu_version(qemu)
    known = await asyncio.to_thread(_read_cache, cache)
    if known is not None and (known.boot_id, known.qemu) == (boot_id, version):
        return known.accelerator
    found = await _decide(device, deadline_s, qemu)
    await asyncio.to_thread(_write_cache, cache, _Cached(boot_id=boot_id, qemu=version, accelerator=found))
    return found


async def _decide(device: Path, deadline_s: float, qemu: str) -> Accelerator:
    try:
        os.close(os.open(device, os.O_RDWR))
    except FileNotFoundError:
        return Accelerator(kind="tcg", reason=f"tcg: there is no {device} on this host")
    except OSError as error:
        return Accelerator(kind="tcg", reason=f"tcg: {device} cannot be opened: {error.strerror}")
    boot = await boot_test_kernel("kvm", deadline_s=deadline_s, qemu=qemu)
    if boot.seconds is None:
        return Accelerator(kind="tcg", reason=f"tcg: {device} opens, but {boot.failure}")
    return Accelerator(
        kind="kvm", reason=f"kvm: a test kernel booted in {boot.seconds:.1f} s", boot_seconds=round(boot.seconds, 3)
    )


async def boot_test_kernel(accel: Literal["kvm", "tcg"], *, deadline_s: float, qemu: str = QEMU) -> TestBoot:
    """Boot, see the marker on the serial port, and power off, all within the deadline. No process stays behind."""
    kernel = find_kernel()
    busybox = Path("/bin/busybox")
    if not busybox.is_file():
        raise missing("busybox-static", str(busybox))
    with tempfile.TemporaryDirectory(prefix="scloud-accelerator-") as scratch:
        initrd = Path(scratch) / "initrd"
        initrd.write_bytes(initramfs({"init": (0o755, _INIT), "bin/busybox": (0o755, busybox.read_bytes())}))
        argv = [
            *(qemu, "-accel", accel, "-machine", "pc", "-cpu", "max", "-m", "192", "-nodefaults", "-no-user-config"),
            *("-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", str(kernel.image)),
            *("-initrd", str(initrd), "-append", "console=ttyS0 quiet panic=-1"),
        ]
        loop = asyncio.get_running_loop()
        began = loop.time()
        process = await _spawn(argv)
        try:
            async with asyncio.timeout(deadline_s):
                output, _ = await process.communicate()
        except TimeoutError:
            return TestBoot(
                seconds=None, failure=f"a test kernel did not finish booting under it within {deadline_s:g} s"
            )
        finally:
            if process.returncode is None:
                process.kill()
                await asyncio.shield(process.wait())
        seconds = loop.time() - began
    if _MARKER in output and process.returncode == 0:
        return TestBoot(seconds=seconds)
    words = output.decode(errors="replace").strip().splitlines()
    last = f": {words[-1].strip()[:200]}" if words else ""
    return TestBoot(
        seconds=None, failure=f"QEMU ended with status {process.returncode} before a test kernel was up{last}"
    )


async def _spawn(argv: list[str]) -> asyncio.subprocess.Process:
    if shutil.which(argv[0]) is None:
        raise missing("qemu-system-x86", f"the program {argv[0]}")
    return await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def _qemu_version(qemu: str) -> str:
    process = await _spawn([qemu, "--version"])
    try:
        async with asyncio.timeout(10):
            output, _ = await process.communicate()
    except TimeoutError:
        raise CloudError(ErrorKind.TIMED_OUT, f"{qemu} --version did not answer within 10 s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    return output.decode(errors="replace").partition("\n")[0].strip()


def _read_cache(path: Path) -> _Cached | None:
    """None also for a damaged file: it is only a cache."""
    try:
        return _Cached.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _write_cache(path: Path, entry: _Cached) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with contextlib.ExitStack() as undo:
        undo.callback(partial.unlink, missing_ok=True)
        partial.write_text(entry.model_dump_json(indent=1))
        partial.replace(path)
