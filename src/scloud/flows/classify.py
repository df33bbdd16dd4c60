"""CLASSIFY: whose packet is it? Gives it its VPC, origin, and for a nic its zone and policy.

Packets from unknown ports, with a VLAN tag, or from the tunnel with an unknown pair of VNI and peer match nothing.
"""

from __future__ import annotations

from scloud.flows.ir import Flow, Match
from scloud.flows.pipeline import (
    ARP_TYPE,
    IP,
    METADATA_IP,
    ORIGIN,
    POLICY,
    VPC,
    ZONE,
    Band,
    Origin,
    Table,
    cookie_of,
    fixed,
    goto,
)
from scloud.flows.policy import policy_id
from scloud.flows.view import LocalPort
from scloud.model.desired import DesiredVpc


def static() -> tuple[Flow, ...]:
    """Guests get no VLANs: `eth_type` matches what is behind a tag, so tagged packets would pass as untagged."""
    tagged = (Match("vlan_tci", "0x1000/0x1000"),)
    return (fixed(Table.CLASSIFY, Band.GUARD, tagged, (), "VLAN-tagged packets are dropped"),)


def nic(local: LocalPort, vni: int) -> Flow:
    """From a local nic."""
    return Flow(
        Table.CLASSIFY,
        Band.ADDRESS,
        (Match("in_port", str(local.ofport)),),
        (
            f"set_field:{vni}->{VPC}",
            f"set_field:{local.zone}->{ZONE}",
            f"set_field:{policy_id(local.port.groups):#x}->{POLICY}",
            goto(Table.PORT_SECURITY),
        ),
        cookie_of(f"port/{local.port.id}"),
        f"leaves nic {local.port.id} ({local.port.ip})",
    )


def service(vpc: DesiredVpc, ofport: int) -> list[Flow]:
    """From the VPC's service namespace: only with one of its own addresses."""
    cookie = cookie_of(f"vpc/{vpc.id}")
    mine = (f"set_field:{vpc.vni}->{VPC}", f"set_field:{Origin.SERVICE.value}->{ORIGIN}")
    port = Match("in_port", str(ofport))
    flows = [
        Flow(
            Table.CLASSIFY,
            Band.ADDRESS,
            (port, IP, Match("ip_src", address)),
            (*mine, goto(Table.FROM_SERVICE)),
            cookie,
            f"from the service address {address}",
        )
        for address in (*(subnet.service_ip for subnet in vpc.subnets), METADATA_IP)
    ]
    flows.append(
        Flow(Table.CLASSIFY, Band.ADDRESS, (port, ARP_TYPE), (*mine, goto(Table.ARP)), cookie, "ARP of the service")
    )
    return flows


def tunnel(vpc: DesiredVpc, tunnel_ofport: int, peer_ip: str) -> tuple[Flow, ...]:
    """From another node that has a nic of this VPC."""
    return (
        Flow(
            Table.CLASSIFY,
            Band.ADDRESS,
            (Match("in_port", str(tunnel_ofport)), Match("tun_id", str(vpc.vni)), Match("tun_src", peer_ip)),
            (f"set_field:{vpc.vni}->{VPC}", f"set_field:{Origin.TUNNEL.value}->{ORIGIN}", goto(Table.L2)),
            cookie_of(f"vpc/{vpc.id}"),
            f"arrives by the tunnel from {peer_ip} with VNI {vpc.vni}",
        ),
    )
