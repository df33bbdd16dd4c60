"""Conversion keeps every byte, is all or nothing, and never leaves a process behind."""

from __future__ import annotations

import asyncio
import hashlib
import random
from pathlib import Path

import pytest

from scloud.images.convert import convert, sha256
from scloud.images.process import run_limited
from scloud.model.errors import CloudError, ErrorKind

MIB = 1024 * 1024


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """8 MiB, of which 1 is noise."""
    path = tmp_path / "source.raw"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
        file.seek(3 * MIB)
        file.write(random.Random(1).randbytes(MIB))
    return path


async def test_there_and_back(tmp_path: Path, raw: Path) -> None:
    heard: list[float] = []
    there = await convert(raw, "raw", tmp_path / "a.qcow2", "qcow2", progress=heard.append)
    back = await convert(tmp_path / "a.qcow2", "qcow2", tmp_path / "b.raw", "raw")
    assert there.virtual_bytes == back.virtual_bytes == back.file_bytes == 8 * MIB
    assert (tmp_path / "b.raw").read_bytes() == raw.read_bytes()
    assert (tmp_path / "b.raw").stat().st_blocks * 512 < 2 * MIB, "what is zero takes no room"
    assert heard == sorted(heard) and heard[-1] == 1.0
    assert {path.name for path in tmp_path.iterdir()} == {"source.raw", "a.qcow2", "b.raw"}


async def test_compression(tmp_path: Path) -> None:
    source = tmp_path / "text"
    source.write_bytes(b"the same again. " * (MIB // 16))
    info = await convert(source, "raw", tmp_path / "a.qcow2", "qcow2", compress=True)
    assert info.file_bytes < MIB / 2


async def test_a_failure_leaves_the_old_target_and_nothing_else(tmp_path: Path, raw: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"before")
    with pytest.raises(CloudError) as failed:
        await convert(raw, "raw", target, "qcow2", timeout_s=0.001)
    assert failed.value.kind is ErrorKind.TIMED_OUT
    with pytest.raises(CloudError) as failed:
        await convert(raw, "qcow2", target, "raw")
    assert failed.value.kind is ErrorKind.INVALID
    with pytest.raises(CloudError) as failed:
        await convert(raw, "raw", tmp_path / "no/such/folder/x", "raw")
    assert failed.value.kind is ErrorKind.ENGINE
    assert target.read_bytes() == b"before"
    assert {path.name for path in tmp_path.iterdir()} == {"source.raw", "target"}


async def test_a_cancelled_process_is_gone(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    running = asyncio.ensure_future(run_limited("sh", "-c", f"echo $$ > {pid}; exec sleep 600", timeout_s=60))
    while not pid.exists() or not pid.read_text():
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


async def test_memory_is_limited() -> None:
    with pytest.raises(CloudError) as failed:
        await run_limited("python3", "-c", "bytearray(3 * 1024 ** 3)", timeout_s=60)
    assert "MemoryError" in failed.value.message


async def test_a_missing_program_names_its_package() -> None:
    with pytest.raises(CloudError) as failed:
        await run_limited("no-such-program", "info", timeout_s=10)
    assert failed.value.kind is ErrorKind.UNAVAILABLE


async def test_sha256(raw: Path) -> None:
    heard: list[float] = []
    assert await sha256(raw, heard.append) == hashlib.sha256(raw.read_bytes()).hexdigest()
    assert heard[-1] == 1.0
    with pytest.raises(CloudError):
        await sha256(raw.with_name("none"))
