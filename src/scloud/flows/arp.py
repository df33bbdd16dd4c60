"""ARP: every known address of a VPC is answered here, on the sender's own node; all other ARP is dropped."""

from __future__ import annotations

from scloud.flows.ir import Flow, Match
from scloud.flows.pipeline import (
    ARP_REQUEST,
    ARP_TYPE,
    GATEWAY_MAC,
    METADATA_IP,
    SERVICE_MAC,
    VPC,
    Band,
    Table,
    cookie_of,
)
from scloud.flows.view import LocalPort, LocalVpc
from scloud.model.desired import DesiredPort


def _answer(vni: int, address: str, mac: str, cookie: int, priority: int, note: str) -> Flow:
    return Flow(
        Table.ARP,
        priority,
        (Match(VPC, str(vni)), ARP_TYPE, ARP_REQUEST, Match("arp_tpa", address)),
        (
            "move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[]",
            f"set_field:{mac}->eth_src",
            "set_field:2->arp_op",
            "move:NXM_NX_ARP_SHA[]->NXM_NX_ARP_THA[]",
            f"set_field:{mac}->arp_sha",
            "move:NXM_OF_ARP_SPA[]->NXM_OF_ARP_TPA[]",
            f"set_field:{address}->arp_spa",
            "in_port",
        ),
        cookie,
        note,
    )


def port(nic: DesiredPort, vni: int) -> Flow:
    """A nic's address, wherever the nic is."""
    cookie = cookie_of(f"port/{nic.id}")
    return _answer(vni, nic.ip, nic.mac, cookie, Band.ADDRESS, f"{nic.ip} is at {nic.mac} (nic {nic.id})")


def own_address(local: LocalPort) -> Flow:
    """A nic that asks for its own address announces itself or looks for a duplicate: an answer would mean one."""
    return Flow(
        Table.ARP,
        Band.GUARD,
        (Match("in_port", str(local.ofport)), ARP_TYPE, Match("arp_tpa", local.port.ip)),
        (),
        cookie_of(f"port/{local.port.id}"),
        "ARP for the nic's own address needs no answer",
    )


def vpc(local: LocalVpc) -> list[Flow]:
    """Gateways, and the service addresses if the service is here."""
    item = local.vpc
    cookie = cookie_of(f"vpc/{item.id}")
    flows = [
        _answer(item.vni, subnet.gateway, GATEWAY_MAC, cookie, Band.EXACT, f"{subnet.gateway} is the gateway")
        for subnet in item.subnets
    ]
    if local.service_ofport is None:
        return flows
    for address in (*(subnet.service_ip for subnet in item.subnets), METADATA_IP):
        flows.append(_answer(item.vni, address, SERVICE_MAC, cookie, Band.EXACT, f"{address} is the service"))
        own = (Match("in_port", str(local.service_ofport)), ARP_TYPE, Match("arp_tpa", address))
        flows.append(Flow(Table.ARP, Band.GUARD, own, (), cookie, "ARP of the service for itself needs no answer"))
    return flows
