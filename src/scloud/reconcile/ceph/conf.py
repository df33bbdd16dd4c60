"""Reading the conf and keyring of a cluster that somebody else made. Pure."""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from dataclasses import dataclass

_FSID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Adopted:
    """`user` without `client.`."""

    fsid: str
    mon_host: str
    user: str
    key: str


def sections(text: str) -> dict[str, dict[str, str]]:
    """An ini file as Ceph reads it: names in lower case with underscores, comments after # and ;."""
    found: dict[str, dict[str, str]] = {}
    section = "global"
    for raw in text.splitlines():
        line = re.split(r"(?:^|\s)[#;]", raw, maxsplit=1)[0].strip()
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1].strip()
        elif "=" in line:
            name, _, value = line.partition("=")
            key = re.sub(r"[\s_-]+", "_", name.strip().lower())
            found.setdefault(section, {})[key] = value.strip().strip('"')
    return found


def _is_key(text: str) -> bool:
    try:
        return len(b64decode(text, validate=True)) >= 12 + 16
    except (binascii.Error, ValueError):
        return False


def read_adopted(conf: str, keyring: str) -> Adopted:
    """What it takes to reach the cluster. ValueError(field, rule) names what is missing."""
    settings = sections(conf).get("global", {})
    fsid = settings.get("fsid", "").lower()
    if not _FSID.fullmatch(fsid):
        raise ValueError("conf", "must have the cluster's fsid under [global]: `ceph fsid` tells it")
    mon_host = settings.get("mon_host", "")
    if not mon_host:
        raise ValueError("conf", "must have mon_host under [global]: `ceph config generate-minimal-conf` writes it")
    entries = {name: values["key"] for name, values in sections(keyring).items() if "key" in values}
    clients = [name for name in entries if name.startswith("client.")]
    if not clients:
        raise ValueError(
            "keyring", "must have a client with its key, such as [client.admin]: `ceph auth get client.admin`"
        )
    user = "client.admin" if "client.admin" in clients else clients[0]
    if not _is_key(entries[user]):
        raise ValueError("keyring", f"has no valid key for {user}")
    return Adopted(fsid=fsid, mon_host=mon_host, user=user.removeprefix("client."), key=entries[user])
