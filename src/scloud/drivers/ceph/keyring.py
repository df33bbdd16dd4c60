"""cephx keys and the files they are kept in."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping

_AES = 1
SECRET_BYTES = 16


def secret(random: bytes, created_s: int) -> str:
    """A key as Ceph writes it: type (AES), time of making, length, and so many random bytes; base64."""
    if len(random) != SECRET_BYTES:
        raise ValueError(f"a cephx secret has {SECRET_BYTES} bytes")
    return base64.b64encode(struct.pack("<HIIH", _AES, created_s, 0, SECRET_BYTES) + random).decode()


def entry(entity: str, key: str, caps: Mapping[str, str] | None = None) -> str:
    """One entity of a keyring file."""
    lines = [f"[{entity}]", f"\tkey = {key}"]
    lines += [f'\tcaps {service} = "{what}"' for service, what in (caps or {}).items()]
    return "\n".join(lines) + "\n"


def first_keyring(mon_key: str, admin_key: str, bootstrap_key: str) -> str:
    """What a new cluster begins with: its monitors, its administrator, and the one that adds OSDs."""
    parts = [entry("mon.", mon_key, {"mon": "allow *"})]
    if admin_key:
        everything = dict.fromkeys(("mds", "mgr", "mon", "osd"), "allow *")
        parts.append(entry("client.admin", admin_key, everything))
    if bootstrap_key:
        parts.append(entry("client.bootstrap-osd", bootstrap_key, {"mon": "profile bootstrap-osd"}))
    return "".join(parts)
