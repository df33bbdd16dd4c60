"""The choice between KVM and emulation, with programs that play QEMU; and the real test kernel under emulation."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from scloud.drivers.hypervisor.accelerator import boot_test_kernel, measure
from scloud.model.errors import CloudError, ErrorKind


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "kvm"
    path.touch()
    return path


def program(folder: Path, body: str, version: str = "1.0") -> str:
    path = folder / "qemu"
    path.write_text(f'#!/bin/sh\necho "$*" >> {folder}/calls\n[ "$1" = --version ] && echo {version} && exit\n{body}\n')
    path.chmod(0o755)
    return str(path)


def boots(folder: Path) -> int:
    return sum("-accel" in line for line in (folder / "calls").read_text().splitlines())


async def test_a_kernel_that_boots_means_kvm(tmp_path: Path, device: Path) -> None:
    qemu = program(tmp_path, "echo scloud-test-kernel-is-up")
    found = await measure(tmp_path / "cache.json", device=device, qemu=qemu)
    assert found.kind == "kvm"
    assert found.reason.startswith("kvm: a test kernel booted in ")
    assert found.boot_seconds is not None and 0 < found.boot_seconds < 10


async def test_a_kernel_that_hangs_means_tcg_and_leaves_no_process(tmp_path: Path, device: Path) -> None:
    qemu = program(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 600")
    found = await measure(tmp_path / "cache.json", device=device, qemu=qemu, deadline_s=0.5)
    assert (found.kind, found.boot_seconds) == ("tcg", None)
    assert "a test kernel did not finish booting under it within 0.5 s" in found.reason
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize("body", ["echo kvm: no; exit 1", "echo scloud-test-kernel-is-up; exit 1", "exit 0"])
async def test_a_qemu_that_ends_early_means_tcg(tmp_path: Path, device: Path, body: str) -> None:
    found = await measure(tmp_path / "cache.json", device=device, qemu=program(tmp_path, body))
    assert found.kind == "tcg"
    assert "before a test kernel was up" in found.reason


async def test_no_device_means_tcg_without_a_boot(tmp_path: Path) -> None:
    found = await measure(tmp_path / "c.json", device=tmp_path / "none", qemu=program(tmp_path, "exit 1"))
    assert found.reason == f"tcg: there is no {tmp_path}/none on this host"
    assert boots(tmp_path) == 0


async def test_the_answer_is_kept_until_qemu_changes(tmp_path: Path, device: Path) -> None:
    cache = tmp_path / "deep/cache.json"
    qemu = program(tmp_path, "echo scloud-test-kernel-is-up")
    first = await measure(cache, device=device, qemu=qemu)
    assert await measure(cache, device=device, qemu=qemu) == first
    assert boots(tmp_path) == 1
    program(tmp_path, "exit 1", version="2.0")
    assert (await measure(cache, device=device, qemu=qemu)).kind == "tcg"
    assert boots(tmp_path) == 2
    cache.write_text("{damaged")
    await measure(cache, device=device, qemu=qemu)
    assert boots(tmp_path) == 3


async def test_a_missing_qemu_is_named(tmp_path: Path) -> None:
    with pytest.raises(CloudError) as failed:
        await measure(tmp_path / "c.json", qemu=str(tmp_path / "none"))
    assert failed.value.kind is ErrorKind.UNAVAILABLE
    assert "qemu-system-x86" in failed.value.message


async def test_cancelling_ends_the_boot(tmp_path: Path) -> None:
    qemu = program(tmp_path, f"echo $$ > {tmp_path}/pid; exec sleep 600")
    boot = asyncio.ensure_future(boot_test_kernel("kvm", deadline_s=60, qemu=qemu))
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        await asyncio.sleep(0.01)
    boot.cancel()
    with pytest.raises(asyncio.CancelledError):
        await boot
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.engine
async def test_the_real_test_kernel_boots_under_emulation() -> None:
    boot = await boot_test_kernel("tcg", deadline_s=120)
    assert boot.failure == ""
    assert boot.seconds is not None
