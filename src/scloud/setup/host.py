"""What this machine is like: its name, its address, what its kernel can do."""

from __future__ import annotations

import os
import re
import shutil
import socket
from pathlib import Path
from typing import Literal

import orjson

from scloud.drivers.supervisor.systemd import systemd_runs
from scloud.model.errors import CloudError, ErrorKind
from scloud.node.command import run, succeeds
from scloud.node.layout import Layout
from scloud.node.processes import scan

_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "libvirtd": "libvirt-daemon-system",
    "virsh": "libvirt-clients",
    "ovsdb-server": "openvswitch-switch",
    "ovs-vswitchd": "openvswitch-switch",
    "dnsmasq": "dnsmasq-base",
    "ip": "iproute2",
    "nsenter": "util-linux",
}


def need_root(command: str) -> None:
    """Namespaces, mounts and taps are root's."""
    if os.geteuid() != 0:
        raise CloudError(
            ErrorKind.FORBIDDEN, f"`scloud {command}` has to be run as root: try `sudo ./scloud {command}`"
        )


def check_engines() -> str:
    """The engines' versions in words. `CloudError(ENGINE)` names what is missing and the package that has it."""
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            raise CloudError(ErrorKind.ENGINE, f"{program} is not installed: `apt-get install {package}`")
    if not Path("/dev/net/tun").exists():
        raise CloudError(ErrorKind.ENGINE, "there is no /dev/net/tun: `modprobe tun`")
    qemu = run(["qemu-system-x86_64", "--version"]).split("version ")[1].split()[0]
    ovs = run(["ovs-vswitchd", "--version"]).split("\n")[0].split()[-1]
    libvirt = run(["libvirtd", "--version"]).split()[-1]
    return f"QEMU {qemu}, libvirt {libvirt}, Open vSwitch {ovs}"


def node_name(layout: Layout) -> str:
    """The name of this host's node: as it was at first, else the hostname, made into a valid name."""
    known = [sandbox.name for sandbox in layout.sandboxes(isolated=False)]
    if known:
        return known[0]
    name = re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().split(".")[0].lower()).strip("-")[:63].strip("-")
    return name if re.match(r"[a-z]", name) else f"node-{name}".strip("-")


def primary_address() -> str:
    """The address that others on the network reach this machine by; 127.0.0.1 if it is on none."""
    routes = orjson.loads(run(["ip", "-json", "-4", "route", "show", "default"]) or "[]")
    for route in routes:
        if "prefsrc" in route:
            return str(route["prefsrc"])
        addresses = orjson.loads(run(["ip", "-json", "-4", "address", "show", "dev", route["dev"], "scope", "global"]))
        for link in addresses:
            for info in link.get("addr_info", []):
                return str(info["local"])
    return "127.0.0.1"


def has_address(address: str) -> bool:
    """Whether it is one of this machine's."""
    links = orjson.loads(run(["ip", "-json", "-4", "address", "show"]))
    return any(info["local"] == address for link in links for info in link.get("addr_info", []))


def choose_datapath(layout: Layout) -> tuple[Literal["system", "netdev"], str]:
    """The kernel's switch where it can be had, else the one in user space; and why."""
    foreign = [p for p in scan() if p.command == "ovs-vswitchd" and p.root != str(layout.root)]
    if not (Path("/sys/module/openvswitch").exists() or succeeds(["modprobe", "--quiet", "openvswitch"])):
        return "netdev", "user space, for this kernel has no openvswitch module"
    if any(_network_of(str(process.pid)) == _network_of("self") for process in foreign):
        return "netdev", "user space, for another Open vSwitch has the kernel's"
    return "system", "the kernel's"


def supervisor() -> Literal["process", "systemd"]:
    """Who looks after a host's engines: its init system where that is systemd, else the agent alone."""
    return "systemd" if systemd_runs() else "process"


def _network_of(pid: str) -> int | None:
    """The inode of a process's network namespace; None if it has ended."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return None
