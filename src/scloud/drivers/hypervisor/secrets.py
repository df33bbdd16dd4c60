"""The keys of storage clusters, as libvirt's secrets: ephemeral (never on a disk) and private (never read back).

libvirtd forgets them when it ends, so they are given to it anew whenever a disk needs one and it is not there.
"""

from __future__ import annotations

import base64
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from typing import Any

from scloud.drivers.hypervisor.protocol import DiskSource
from scloud.drivers.storage.place import RbdPlace
from scloud.model.errors import CloudError, ErrorKind


class Secrets:
    """`need` runs in a thread, with a connection of libvirt's."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, str]] = {}

    def set(self, secret: str, usage: str, value: str) -> None:
        self._known[secret] = (usage, value)

    def need(self, connection: Any, disks: Iterable[DiskSource]) -> None:
        """libvirtd has the secrets of these disks, with their newest values. `CloudError(ENGINE)` if one is unknown."""
        for secret in dict.fromkeys(disk.place.secret for disk in disks if isinstance(disk.place, RbdPlace)):
            if secret not in self._known:
                raise CloudError(ErrorKind.ENGINE, f"this node was not given the key that secret {secret} stands for")
            usage, value = self._known[secret]
            connection.secretDefineXML(_xml(secret, usage), 0).setValue(base64.b64decode(value), 0)


def _xml(secret: str, usage: str) -> str:
    element = ET.Element("secret", {"ephemeral": "yes", "private": "yes"})
    ET.SubElement(element, "uuid").text = secret
    kind = ET.SubElement(element, "usage", {"type": "ceph"})
    ET.SubElement(kind, "name").text = usage
    return ET.tostring(element, encoding="unicode")
