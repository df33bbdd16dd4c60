"""A node's desired objects to the view that its flows are compiled from, and to its VPCs' services. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from scloud.flows.view import LocalPort, LocalVpc, NodeView, RemotePort
from scloud.model.connections import Brought, Connection
from scloud.model.desired import DesiredDisk, DesiredGroup, DesiredPort, DesiredStore, DesiredVm, DesiredVpc

AnyDesired = DesiredVpc | DesiredGroup | DesiredPort | DesiredDisk | DesiredVm | DesiredStore
TAP_PREFIX = "t"
SERVICE_PREFIX = "s"
_TAIL = 12
"""Device names have 15 characters at most. The last 12 of an id are 5 of its time and all 7 random ones."""


_NONE: Mapping[str, tuple[Connection, ...]] = {}
KNOWN_S = {"tcp": 86400.0, "udp": 180.0}
"""How long what a nic came with counts: about as long as Open vSwitch's own tracking knows a connection that is silent
(userspace datapath: a day, a minute)."""


def still_known(brought: Brought, now: float) -> tuple[tuple[Connection, ...], float]:
    """What still counts of what a nic came with, and until when this is so; nothing of before the node's last boot."""
    age = now - brought.at
    if age < 0:
        return (), math.inf
    kept = tuple(item for item in brought.connections if age < KNOWN_S[item.protocol])
    return kept, min((brought.at + KNOWN_S[item.protocol] for item in kept), default=math.inf)


def tap_name(nic: str) -> str:
    return TAP_PREFIX + nic[-_TAIL:]


def service_name(vpc: str) -> str:
    """The host's end of the veth into a VPC's namespace."""
    return SERVICE_PREFIX + vpc[-_TAIL:]


def dns_domain(vpc: DesiredVpc) -> str:
    """The DNS domain of names inside a VPC."""
    return f"{vpc.name}.internal"


def node_view(
    desired: Iterable[AnyDesired],
    node: str,
    ofports: Mapping[str, int],
    tunnel_ip: str,
    tunnel_ofport: int,
    brought: Mapping[str, tuple[Connection, ...]] = _NONE,
) -> NodeView:
    """`ofports` are of ports that really are on the switch, by owner's key; local nics not among them have no flows.

    `brought` are the connections that nics came with, by the same keys.
    """
    vpcs, groups, local, remote = [], [], [], []
    for item in desired:
        if isinstance(item, DesiredPort):
            if item.absent:
                continue
            if not item.on(node):
                remote.append(RemotePort(item))
            elif (number := ofports.get(f"port/{item.id}")) is not None:
                local.append(LocalPort(item, number, number, brought.get(f"port/{item.id}", ())))
        elif isinstance(item, DesiredVpc):
            vpcs.append(LocalVpc(item, ofports.get(f"vpc/{item.id}")))
        elif isinstance(item, DesiredGroup):
            groups.append(item)
    return NodeView(tunnel_ip, tunnel_ofport, tuple(vpcs), tuple(local), tuple(remote), tuple(groups))
