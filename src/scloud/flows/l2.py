"""L2: the receiving nic by its MAC: here, or on the node to tunnel to. What came by a tunnel is not tunnelled again."""

from __future__ import annotations

from scloud.flows.ir import Flow, Match
from scloud.flows.pipeline import IP, ORIGIN, OUT_PORT, POLICY, VPC, ZONE, Band, Origin, Table, cookie_of
from scloud.flows.policy import policy_id
from scloud.flows.view import LocalPort
from scloud.model.desired import DesiredPort


def local(item: LocalPort, vni: int) -> Flow:
    """To a nic on this node: its inbound security groups decide."""
    return Flow(
        Table.L2,
        Band.ADDRESS,
        (Match(VPC, str(vni)), IP, Match("eth_dst", item.port.mac)),
        (
            f"set_field:{item.ofport}->{OUT_PORT}",
            f"set_field:{item.zone}->{ZONE}",
            f"set_field:{policy_id(item.port.groups):#x}->{POLICY}",
            f"ct(table={Table.INGRESS_STATE.value},zone={item.zone})",
        ),
        cookie_of(f"port/{item.port.id}"),
        f"for nic {item.port.id} ({item.port.ip}) on this node",
    )


def remote(nic: DesiredPort, vni: int, tunnel_ip: str, tunnel_ofport: int) -> Flow:
    """To a nic on another node: whose inbound security groups decide there."""
    return Flow(
        Table.L2,
        Band.ADDRESS,
        (Match(ORIGIN, str(Origin.NIC.value)), Match(VPC, str(vni)), IP, Match("eth_dst", nic.mac)),
        (f"set_field:{vni}->tun_id", f"set_field:{tunnel_ip}->tun_dst", f"output:{tunnel_ofport}"),
        cookie_of(f"port/{nic.id}"),
        f"for nic {nic.id} ({nic.ip}), by the tunnel to {tunnel_ip}",
    )
