"""L3: between subnets of a VPC, every node is the router. The packet gets the MACs of its last leg and loses a hop."""

from __future__ import annotations

from scloud.flows.ir import Flow, Match
from scloud.flows.pipeline import GATEWAY_MAC, IP, VPC, Band, Table, cookie_of, fixed, goto
from scloud.model.desired import DesiredPort

TO_ROUTER = Match("eth_dst", GATEWAY_MAC)


def static() -> tuple[Flow, ...]:
    """What is not for the router's MAC goes on untouched."""
    return (
        fixed(Table.L3, Band.GUARD, (IP, TO_ROUTER, Match("nw_ttl", "0")), (), "its time to live has run out"),
        fixed(Table.L3, Band.GUARD, (IP, TO_ROUTER, Match("nw_ttl", "1")), (), "its time to live has run out"),
        fixed(Table.L3, Band.NETWORK, (IP, TO_ROUTER), (), "the router knows no nic with this address in the VPC"),
        fixed(Table.L3, Band.REST, (IP,), (goto(Table.L2),), "not for the router"),
    )


def port(nic: DesiredPort, vni: int) -> Flow:
    """The route to one nic."""
    return Flow(
        Table.L3,
        Band.ADDRESS,
        (Match(VPC, str(vni)), IP, TO_ROUTER, Match("ip_dst", nic.ip)),
        (f"set_field:{GATEWAY_MAC}->eth_src", f"set_field:{nic.mac}->eth_dst", "dec_ttl", goto(Table.L2)),
        cookie_of(f"port/{nic.id}"),
        f"routed to {nic.ip}",
    )
