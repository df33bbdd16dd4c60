"""What the compiler is given: one node's view of the networks present on it. Plain values, no names to look up."""

from __future__ import annotations

from dataclasses import dataclass

from scloud.model.connections import Connection
from scloud.model.desired import DesiredGroup, DesiredPort, DesiredVpc


@dataclass(frozen=True, slots=True)
class LocalPort:
    """A nic whose tap is on this switch. `zone` is its conntrack zone (1..65535), one per local nic.

    `brought` are connections that it had on the node that it migrated from; the zone knows nothing of them.
    """

    port: DesiredPort
    ofport: int
    zone: int
    brought: tuple[Connection, ...] = ()


@dataclass(frozen=True, slots=True)
class RemotePort:
    """A nic on another node; `port.tunnel_ip` says where."""

    port: DesiredPort


@dataclass(frozen=True, slots=True)
class LocalVpc:
    """A VPC with at least one local nic. `service_ofport` is its namespace's port: DHCP, DNS, metadata."""

    vpc: DesiredVpc
    service_ofport: int | None


@dataclass(frozen=True, slots=True)
class NodeView:
    """Ports of a VPC that is not in `vpcs` are ignored."""

    tunnel_ip: str
    tunnel_ofport: int
    vpcs: tuple[LocalVpc, ...] = ()
    local: tuple[LocalPort, ...] = ()
    remote: tuple[RemotePort, ...] = ()
    groups: tuple[DesiredGroup, ...] = ()
