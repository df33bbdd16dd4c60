"""Where the hypervisor finds a disk's bytes."""

from __future__ import annotations

from pathlib import Path

from scloud.model.base import Value


class FilePlace(Value):
    path: Path


class RbdPlace(Value):
    """An RBD image: `pool/image` in the cluster with these monitors (IP:PORT), opened as cephx user `user` with the
    secret that libvirt knows as `secret` (a UUID). `conf` is the ceph.conf with the client's time limits."""

    pool: str
    image: str
    monitors: tuple[str, ...]
    user: str
    secret: str
    conf: Path


Place = FilePlace | RbdPlace
