"""Asking QEMU what it can do, once for all nodes, before the first VM has to wait for it."""

from __future__ import annotations

import shutil

from scloud.model.errors import CloudError
from scloud.node.layout import Layout
from scloud.node.sandbox import Sandbox

EMULATOR = "/usr/bin/qemu-system-x86_64"


def learn_qemu(layout: Layout, sandbox: Sandbox) -> bool:
    """Fill the cache in which libvirt keeps QEMU's capabilities; False if it had them, or cannot learn them so.

    Probing takes some 5 s of processor time, which else the first VM of every node waits for. It is done by a libvirt
    that lives inside virsh (`qemu:///embed`); the files it makes are the daemon's own, which checks them and asks QEMU
    anew when they do not fit.
    """
    target = layout.cache / "libvirt" / "qemu" / "capabilities"
    if any(target.glob("*.xml")):
        return False
    scratch = layout.cache / "learning"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    uri = f"qemu:///embed?root={scratch}"
    try:
        sandbox.run("virsh", "-q", "-c", uri, "domcapabilities", "--emulatorbin", EMULATOR, "--arch", "x86_64")
    except CloudError:
        return False
    target.mkdir(parents=True, exist_ok=True)
    for learnt in (scratch / "cache" / "qemu" / "capabilities").glob("*.xml"):
        learnt.replace(target / learnt.name)
    shutil.rmtree(scratch)
    return True
