"""The lab's wires: a management network that this host is on, and an underlay that only the nodes are on.

Both are bridges inside the lab's own network namespace, so the host gets one device, and its packet filters and bridge
settings have no say in what nodes send one another.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from scloud.lab.plan import LabPlan
from scloud.node.command import run, succeeds
from scloud.node.sandbox import Sandbox

MANAGEMENT, UNDERLAY = "br-mgmt", "br-phy"


def make_fabric(plan: LabPlan) -> None:
    """The two bridges, and the host's foot in the management network."""
    plan.fabric.create()
    network = ipaddress.IPv4Network(plan.management)
    for bridge in (MANAGEMENT, UNDERLAY):
        _in_fabric(plan, "link", "add", bridge, "type", "bridge", "forward_delay", "0")
        _in_fabric(plan, "link", "set", bridge, "up")
    _veth(plan.fabric, plan.host_device, "host", into=None)
    _in_fabric(plan, "link", "set", "host", "master", MANAGEMENT, "up")
    run(["ip", "address", "add", f"{network[1]}/{network.prefixlen}", "dev", plan.host_device])
    if plan.standbys:
        for address in plan.link_addresses:
            run(["ip", "address", "add", f"{address}/32", "dev", plan.host_device])
    run(["ip", "link", "set", plan.host_device, "up"])


def connect(plan: LabPlan, node: str) -> None:
    """Join a node to both networks: its devices `mgmt` and `eth0`. Open vSwitch gives eth0's address to its bridge."""
    sandbox = plan.sandbox(node)
    prefix = ipaddress.IPv4Network(plan.management).prefixlen
    for outer, inner, bridge in ((f"m-{node}", "mgmt", MANAGEMENT), (f"u-{node}", "eth0", UNDERLAY)):
        _veth(plan.fabric, inner, outer, into=sandbox)
        _in_fabric(plan, "link", "set", outer, "master", bridge, "up")
    # Checksums that are left to the hardware never get made for a packet that a userspace switch takes out of a veth.
    plan.fabric.run("ethtool", "-K", f"u-{node}", "tx", "off")
    sandbox.run("ip", "address", "add", f"{plan.management_address(node)}/{prefix}", "dev", "mgmt")
    for device in ("mgmt", "eth0"):
        sandbox.run("ip", "link", "set", device, "up")


def _veth(fabric: Sandbox, inner: str, outer: str, *, into: Sandbox | None) -> None:
    """A pair: `outer` in the fabric, `inner` in a node's network or in the host's."""
    where = str(into.pins / "net") if into is not None else None
    there = ["netns", where] if where is not None else []
    run(["ip", "link", "add", inner, *there, "type", "veth", "peer", "name", outer, "netns", str(fabric.pins / "net")])


def set_links(plan: LabPlan, node: str, state: str) -> None:
    """Both of a node's wires `up` or `down`."""
    for outer in (f"m-{node}", f"u-{node}"):
        _in_fabric(plan, "link", "set", outer, state)


def lose(plan: LabPlan, node: str, addresses: Iterable[str]) -> None:
    """Whatever the node sends there is lost from now on. On layer 2 it answers as ever."""
    for address in addresses:
        plan.sandbox(node).run("ip", "route", "replace", "blackhole", f"{address}/32")


def find_again(plan: LabPlan, node: str, addresses: Iterable[str]) -> None:
    """The end of `lose`, of those that were lost."""
    sandbox = plan.sandbox(node)
    lost = sandbox.run("ip", "route", "show", "type", "blackhole").split()
    for address in set(lost).intersection(addresses):
        sandbox.run("ip", "route", "del", "blackhole", f"{address}/32")


def is_partitioned(plan: LabPlan, node: str) -> bool:
    """Whether its management wire is cut, or addresses there are lost to it."""
    cut = "DOWN" in _in_fabric(plan, "-brief", "link", "show", "dev", f"m-{node}").split()[1:2]
    return cut or bool(plan.sandbox(node).run("ip", "route", "show", "type", "blackhole"))


def remove_host_device(device: str) -> None:
    """The far end goes with it, wherever it is."""
    succeeds(["ip", "link", "delete", device])


def _in_fabric(plan: LabPlan, *argv: str) -> str:
    return plan.fabric.run("ip", *argv)
