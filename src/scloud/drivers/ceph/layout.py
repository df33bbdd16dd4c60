"""Where the files of storage clusters are on a node: ROOT/CLUSTER/{ceph.conf, client.NAME.keyring, TYPE.NAME/...}."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class DaemonFolder:
    """What one daemon has: its configuration, its key, its data. `name` is `mon.n1`, `mgr.n1` or `osd.UUID`."""

    path: Path

    @property
    def cluster(self) -> str:
        return self.path.parent.name

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def conf(self) -> Path:
        return self.path / "ceph.conf"

    @property
    def keyring(self) -> Path:
        return self.path / "keyring"

    @property
    def data(self) -> Path:
        return self.path / "data"

    @property
    def made(self) -> Path:
        """There once the daemon's data are complete; what is found without it is made anew."""
        return self.path / "made"

    @property
    def number(self) -> Path:
        """An OSD's number in its cluster."""
        return self.path / "number"

    @property
    def device(self) -> Path:
        """What an OSD lives on, so that it can be wiped when nobody names it any more."""
        return self.path / "device"

    @property
    def lock(self) -> Path:
        return self.path / "lock"

    def osd_number(self) -> int | None:
        try:
            return int(self.number.read_text())
        except (OSError, ValueError):
            return None

    def delete(self) -> None:
        """`made` first: what a crash leaves of it is not taken for a daemon's data."""
        self.made.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class ClusterFolder:
    path: Path

    @property
    def conf(self) -> Path:
        """For clients: `ceph -c` and QEMU."""
        return self.path / "ceph.conf"

    def client_keyring(self, client: str) -> Path:
        return self.path / f"client.{client}.keyring"

    def daemon(self, type: str, name: str) -> DaemonFolder:
        return DaemonFolder(self.path / f"{type}.{name}")

    def daemons(self) -> Iterator[DaemonFolder]:
        """All that are there, whole or half made."""
        if self.path.is_dir():
            for path in sorted(self.path.iterdir()):
                if path.is_dir() and path.name.startswith(("mon.", "mgr.", "osd.")):
                    yield DaemonFolder(path)


def clusters(root: Path) -> list[ClusterFolder]:
    if not root.is_dir():
        return []
    return [ClusterFolder(path) for path in sorted(root.iterdir()) if path.is_dir()]


def write(path: Path, text: str, mode: int = 0o600) -> bool:
    """Whole or not at all, and on the disk when it returns; False if the file said so already."""
    if path.exists() and path.read_text() == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    return True
