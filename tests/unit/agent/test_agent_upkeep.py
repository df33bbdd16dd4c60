"""Console logs do not grow for ever."""

from __future__ import annotations

from pathlib import Path

from scloud.agent.upkeep import trim_logs


def test_a_long_log_keeps_its_end_and_its_writer(tmp_path: Path) -> None:
    path, short = tmp_path / "vm-1.log", tmp_path / "vm-2.log"
    short.write_bytes(b"short")
    with path.open("ab") as qemu:
        qemu.write(bytes(range(256)) * 10)
        qemu.flush()
        inode = path.stat().st_ino
        trim_logs(tmp_path, limit=1000, kept=256)
        assert path.stat().st_ino == inode
        assert path.read_bytes() == bytes(range(256))
        qemu.write(b"more")
        qemu.flush()
    assert path.read_bytes() == bytes(range(256)) + b"more"
    assert short.read_bytes() == b"short"
