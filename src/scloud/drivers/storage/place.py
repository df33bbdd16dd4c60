"""Where the hypervisor finds a disk's bytes."""

from __future__ import annotations

import uuid
from pathlib import Path

from scloud.model.base import Value

_SECRETS = uuid.UUID("3b1f6f0e-5c10-4ad0-9a51-5c10ad000002")


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


def secret_of(cluster: str, user: str) -> str:
    """The UUID of the secret with a cephx user's key: the same everywhere and always."""
    return str(uuid.uuid5(_SECRETS, f"{cluster}/{user}"))
