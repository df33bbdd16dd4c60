"""A VM's twin that the cloud knows nothing of, migrated with `virsh migrate`: what migrations are compared with.

The same virtual hardware, a copy of the same disk in the same pool, a tap on no switch; libvirtd to libvirtd, and the
memory over plain TCP between the nodes' underlay addresses.
"""

from __future__ import annotations

import base64
import re
import shutil
import time
import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass

import rbd

from storage_lab import StorageLab

NAME = "twin"
BOOT_S = 120.0


@dataclass(frozen=True)
class Moved:
    """How long the command took, seconds, and libvirt's downtime, milliseconds."""

    took_s: float
    downtime_ms: float


class Twin:
    """Of the running domain `domain` on node `node`. It boots there, and may go to `other` and back."""

    def __init__(self, lab: StorageLab, domain: str, node: str, other: str) -> None:
        self._lab = lab
        self._node, self._other = node, other
        tree = ET.fromstring(lab.node(node, "virsh", "dumpxml", "--migratable", domain))
        self._secret(tree)
        self._disk(tree)
        self._own(tree)
        for each in (node, other):
            lab.node(each, "sh", "-c", f"ip tuntap add dev {NAME} mode tap && ip link set {NAME} up")
        file = lab.root / f"{NAME}.xml"
        file.write_text(ET.tostring(tree, encoding="unicode"))
        lab.node(node, "virsh", "create", str(file))

    def _secret(self, tree: ET.Element) -> None:
        """It is the first node's storage user wherever it runs, so the other node gets that one's key."""
        auth, secret = _only(tree, ".//disk/auth"), _only(tree, ".//disk/auth/secret")
        name, keyring = self._lab.user(self._node)
        assert name == f"client.{auth.get('username')}"
        found = re.search(r"key\s*=\s*(\S+)", keyring.read_text())
        assert found is not None and base64.b64decode(found[1])
        identity = secret.attrib["uuid"]
        file = self._lab.root / "secret.xml"
        file.write_text(
            f"<secret ephemeral='yes' private='no'><uuid>{identity}</uuid>"
            f"<usage type='ceph'><name>{NAME}</name></usage></secret>"
        )
        self._lab.node(self._other, "virsh", "secret-define", str(file))
        self._lab.node(self._other, "virsh", "secret-set-value", identity, "--base64", found[1])

    def _disk(self, tree: ET.Element) -> None:
        source = _only(tree, ".//disk/source[@protocol='rbd']")
        pool, image = source.attrib["name"].split("/")
        with (
            self._lab.cluster(self._node) as cluster,
            cluster.open_ioctx(pool) as context,
            rbd.Image(context, image, read_only=True) as original,
        ):
            original.copy(context, NAME)
        source.set("name", f"{pool}/{NAME}")
        seed = _only(tree, ".//disk/source[@file]")
        copy = self._lab.root / f"{NAME}.iso"  # the original's stays on the node where it is
        shutil.copyfile(seed.attrib["file"], copy)
        seed.set("file", str(copy))

    def _own(self, tree: ET.Element) -> None:
        """Whatever two domains cannot both have."""
        for stamp in ("metadata", "title"):
            for element in tree.findall(stamp):
                tree.remove(element)
        _only(tree, "name").text = NAME
        _only(tree, "uuid").text = str(uuid.uuid4())
        _only(tree, ".//interface/mac").set("address", "06:00:00:00:00:01")
        _only(tree, ".//interface/target").set("dev", NAME)
        for kind in ("serial", "console"):
            for device in tree.findall(f"./devices/{kind}"):
                _only(device, "source").set("path", f"/run/libvirt/{NAME}.sock")
                for log in device.findall("log"):
                    device.remove(log)

    def migrate(self) -> Moved:
        """To the other of its two nodes."""
        source, target = self._node, self._other
        socket = self._lab.node_root(target) / "run/libvirt/libvirt-sock"
        listed = self._lab.node(target, "ip", "-4", "-brief", "address", "show", "dev", "br-phy")
        address = listed.split()[2].split("/")[0]
        command = (
            f"virsh migrate {NAME} --live --p2p --persistent --undefinesource "
            f"'qemu+unix:///system?socket={socket}' --migrateuri tcp://{address}"
        )
        said = self._lab.node(source, "sh", "-c", f"date +%s%N; {command} >&2 && date +%s%N")
        began, ended = (int(word) for word in said.split())
        self._node, self._other = target, source
        report = self._lab.node(target, "virsh", "domjobinfo", NAME, "--completed")
        return Moved((ended - began) / 1e9, milliseconds("Total downtime", report))

    def wait_booted(self, like_s: float) -> None:
        """Until it has used as much of its CPU as its original, `like_s` seconds, or two minutes have passed."""
        deadline = time.monotonic() + BOOT_S
        while cpu_seconds(self._lab, self._node, NAME) < like_s and time.monotonic() < deadline:
            time.sleep(0.5)


def cpu_seconds(lab: StorageLab, node: str, domain: str) -> float:
    found = re.search(r"cpu.time=(\d+)", lab.node(node, "virsh", "domstats", "--cpu-total", domain))
    return int(found[1]) / 1e9 if found is not None else 0.0


def milliseconds(what: str, said: str) -> float:
    """A line of `virsh domjobinfo`. SystemExit if it is not there."""
    found = re.search(rf"{what}:\s+([0-9.]+)\s+ms", said)
    if found is None:
        raise SystemExit(f"no {what!r} in: {said}")
    return float(found[1])


def _only(tree: ET.Element, path: str) -> ET.Element:
    found = tree.find(path)
    if found is None:
        raise SystemExit(f"the domain has no {path}")
    return found
