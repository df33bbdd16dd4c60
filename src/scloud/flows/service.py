"""SERVICE, SERVICE_REPLY, FROM_SERVICE, SERVICE_OPEN: what a nic has without any security group.

To the service addresses: DHCP, DNS, ICMP echo, and HTTP on the metadata address; nothing else but answers to what the
service itself has opened (logins and forwarded ports come to a nic that way). All of it stays on the node. The
gateway answers ICMP echo.
"""

from __future__ import annotations

from scloud.flows.ir import Flow, Match
from scloud.flows.pipeline import (
    BROADCAST_MAC,
    GATEWAY_MAC,
    ICMP,
    IP,
    METADATA_IP,
    OUT_PORT,
    OUT_PORT_FIELD,
    SERVICE_MAC,
    TCP,
    UDP,
    VPC,
    ZONE,
    ZONE_FIELD,
    Band,
    Table,
    cookie_of,
    fixed,
    goto,
)
from scloud.flows.view import LocalPort, LocalVpc
from scloud.model.desired import DesiredVpc

DNS_UDP = (UDP, Match("udp_dst", "53"))
DNS_TCP = (TCP, Match("tcp_dst", "53"))
DHCP = (UDP, Match("udp_src", "68"), Match("udp_dst", "67"))
DHCP_ANSWER = (UDP, Match("udp_src", "67"), Match("udp_dst", "68"))
ECHO = (ICMP, Match("icmp_type", "8"), Match("icmp_code", "0"))
METADATA = (TCP, Match("tcp_dst", "80"))


def static() -> tuple[Flow, ...]:
    """Everything that is for no service goes through the nic's zone to the security groups."""
    out = f"output:{OUT_PORT_FIELD}"
    answers: list[tuple[tuple[Match, ...], str]] = [
        ((UDP, Match("udp_src", "53")), "a DNS answer"),
        ((TCP, Match("tcp_src", "53")), "a DNS answer"),
        (DHCP_ANSWER, "a DHCP answer"),
        ((TCP, Match("tcp_src", "80"), Match("ip_src", METADATA_IP)), "a metadata answer"),
        ((ICMP, Match("icmp_type", "0")), "an echo answer"),
        ((ICMP, Match("icmp_type", "3")), "an ICMP error"),
        ((ICMP, Match("icmp_type", "11")), "an ICMP error"),
        ((ICMP, Match("icmp_type", "12")), "an ICMP error"),
    ]
    opened = (f"ct(commit,zone={ZONE_FIELD})", out)
    return (
        fixed(
            Table.SERVICE,
            Band.REST,
            (IP,),
            (f"ct(table={Table.EGRESS_STATE.value},zone={ZONE_FIELD})",),
            "not for a service: the outbound security groups decide",
        ),
        # The switch takes no ports from fragments to tell answers by. What the service opens is TCP, and whole.
        fixed(Table.SERVICE_OPEN, Band.GUARD, (IP, Match("ip_frag", "yes")), (out,), "a fragment of an answer"),
        *(fixed(Table.SERVICE_OPEN, Band.EXACT, (IP, *match), (out,), note) for match, note in answers),
        fixed(Table.SERVICE_OPEN, Band.REST, (IP,), opened, "the service opens a connection to the nic"),
    )


def vpc(local: LocalVpc) -> list[Flow]:
    """The services of one VPC."""
    item = local.vpc
    flows = _gateways(item)
    if local.service_ofport is None:
        return flows
    cookie = cookie_of(f"vpc/{item.id}")
    network = Match(VPC, str(item.vni))
    deliver = (f"set_field:{SERVICE_MAC}->eth_dst", f"output:{local.service_ofport}")
    everyone = Match("ip_dst", "255.255.255.255")

    def to_service(address: str, match: tuple[Match, ...], what: str) -> Flow:
        key = (network, IP, *match, Match("ip_dst", address))
        return Flow(Table.SERVICE, Band.EXACT, key, deliver, cookie, f"{what} of the VPC")

    for subnet in item.subnets:
        address = subnet.service_ip
        flows.append(to_service(address, DNS_UDP, "the DNS service"))
        flows.append(to_service(address, DNS_TCP, "the DNS service"))
        flows.append(to_service(address, DHCP, "the DHCP service"))
    flows.append(to_service(METADATA_IP, METADATA, "the metadata service"))
    for address in (*(subnet.service_ip for subnet in item.subnets), METADATA_IP):
        flows.append(to_service(address, ECHO, "the service address answers echo: service"))
        flows.append(
            Flow(
                Table.SERVICE,
                Band.ADDRESS,
                (network, IP, Match("ip_dst", address)),
                (f"ct(table={Table.SERVICE_REPLY.value},zone={ZONE_FIELD})",),
                cookie,
                f"{address} is a service address: only answers to what it has opened",
            )
        )
    flows.append(
        Flow(
            Table.SERVICE,
            Band.EXACT,
            (network, IP, *DHCP, everyone),
            (f"output:{local.service_ofport}",),
            cookie,
            "DHCP, for the VPC's service on this node only",
        )
    )
    flows.append(
        Flow(
            Table.SERVICE_REPLY,
            Band.ADDRESS,
            (network, IP, Match("ct_state", "+trk+rpl-inv")),
            deliver,
            cookie,
            "answers to a connection that the service opened",
        )
    )
    return flows


def answers(local: LocalVpc, nic_ofports: tuple[int, ...]) -> list[Flow]:
    """DHCP answers to all go to the VPC's nics on this node, `nic_ofports`, and no further."""
    if local.service_ofport is None or not nic_ofports:
        return []
    item = local.vpc
    everyone = Match("ip_dst", "255.255.255.255")
    return [
        Flow(
            Table.FROM_SERVICE,
            Band.EXACT,
            (Match(VPC, str(item.vni)), Match("eth_dst", BROADCAST_MAC), IP, *DHCP_ANSWER, everyone),
            (f"set_field:{SERVICE_MAC}->eth_src", *(f"output:{ofport}" for ofport in nic_ofports)),
            cookie_of(f"vpc/{item.id}"),
            "a DHCP answer to clients without an address yet",
        )
    ]


def _gateways(item: DesiredVpc) -> list[Flow]:
    cookie = cookie_of(f"vpc/{item.id}")
    flows = []
    for subnet in item.subnets:
        key = (Match(VPC, str(item.vni)), IP, Match("ip_dst", subnet.gateway))
        answer = (
            "move:NXM_OF_ETH_SRC[]->NXM_OF_ETH_DST[]",
            f"set_field:{GATEWAY_MAC}->eth_src",
            "move:NXM_OF_IP_SRC[]->NXM_OF_IP_DST[]",
            f"set_field:{subnet.gateway}->ip_src",
            "set_field:0->icmp_type",
            "set_field:64->nw_ttl",
            "in_port",
        )
        flows.append(Flow(Table.SERVICE, Band.EXACT, (*key, *ECHO), answer, cookie, "the gateway answers echo"))
        flows.append(Flow(Table.SERVICE, Band.ADDRESS, key, (), cookie, "the gateway answers nothing but echo"))
    return flows


def nic(local: LocalPort, vni: int) -> Flow:
    """Where the service's packets to a local nic go. Nics on other nodes are not to be found here."""
    return Flow(
        Table.FROM_SERVICE,
        Band.ADDRESS,
        (Match(VPC, str(vni)), IP, Match("ip_dst", local.port.ip)),
        (
            f"set_field:{SERVICE_MAC}->eth_src",
            f"set_field:{local.port.mac}->eth_dst",
            f"set_field:{local.ofport}->{OUT_PORT}",
            f"set_field:{local.zone}->{ZONE}",
            goto(Table.SERVICE_OPEN),
        ),
        cookie_of(f"port/{local.port.id}"),
        f"the service speaks to nic {local.port.id} ({local.port.ip})",
    )
