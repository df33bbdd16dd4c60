"""Network functions of one VPC on one node: a namespace with DHCP, DNS and a foot in the VPC.

The namespace is joined to the integration bridge by a veth (an internal port would not come back after a restart of
the switch). The service address of each subnet is on it, and 169.254.169.254 for metadata.
"""

from __future__ import annotations

import socket
from typing import Protocol

from scloud.model.base import Value


class HostEntry(Value):
    """One nic in the VPC: all get a DNS name; those with `local` also get DHCP answers."""

    nic: str
    hostname: str
    mac: str
    ip: str
    subnet: str
    local: bool


class SubnetEntry(Value):
    id: str
    cidr: str
    gateway: str
    service_ip: str


class VpcServiceSpec(Value):
    """`domain` is the DNS domain of the VPC; `port` the host end of the veth, to be put on the bridge."""

    vpc: str
    domain: str
    port: str
    service_mac: str
    mtu: int
    subnets: tuple[SubnetEntry, ...]
    hosts: tuple[HostEntry, ...]


class NetworkFunctions(Protocol):
    async def ensure(self, spec: VpcServiceSpec) -> None:
        """Make or mend the namespace, its veth and its dnsmasq; cheap when nothing is to do."""
        ...

    async def remove(self, vpc: str) -> None: ...

    async def vpcs(self) -> list[str]:
        """The VPCs that have a namespace here."""
        ...

    async def listen(self, vpc: str, address: str, port: int) -> socket.socket:
        """A listening TCP socket inside the VPC's namespace."""
        ...

    async def connect(self, vpc: str, address: str, port: int, timeout_s: float) -> socket.socket:
        """A connected TCP socket from inside the VPC, non-blocking."""
        ...
