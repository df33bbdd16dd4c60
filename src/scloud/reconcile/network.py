"""A node's desired objects to the view that its flows are compiled from, and to its VPCs' services. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from scloud.flows.view import LocalPort, LocalVpc, NodeView, RemotePort
from scloud.model.desired import DesiredDisk, DesiredGroup, DesiredPort, DesiredStore, DesiredVm, DesiredVpc

AnyDesired = DesiredVpc | DesiredGroup | DesiredPort | DesiredDisk | DesiredVm | DesiredStore
TAP_PREFIX = "t"
SERVICE_PREFIX = "s"
_TAIL = 12
"""Device names have 15 characters at most. The last 12 of an id are 5 of its time and all 7 random ones."""


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
) -> NodeView:
    """`ofports` are of ports that really are on the switch, by owner's key; local nics not among them have no flows."""
    vpcs, groups, local, remote = [], [], [], []
    for item in desired:
        if isinstance(item, DesiredPort):
            if item.absent:
                continue
            if not item.on(node):
                remote.append(RemotePort(item))
            elif (number := ofports.get(f"port/{item.id}")) is not None:
                local.append(LocalPort(item, ofport=number, zone=number))
        elif isinstance(item, DesiredVpc):
            vpcs.append(LocalVpc(item, ofports.get(f"vpc/{item.id}")))
        elif isinstance(item, DesiredGroup):
            groups.append(item)
    return NodeView(tunnel_ip, tunnel_ofport, tuple(vpcs), tuple(local), tuple(remote), tuple(groups))
