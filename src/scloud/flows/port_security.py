"""PORT_SECURITY: a nic sends only from its own MAC and address, in IP, ARP and DHCP. IPv6 matches nothing."""

from __future__ import annotations

from scloud.flows.ir import Flow, Match
from scloud.flows.pipeline import ARP_TYPE, BROADCAST_MAC, IP, UDP, Band, Table, cookie_of, goto
from scloud.flows.view import LocalPort


def nic(local: LocalPort) -> list[Flow]:
    """ARP with sender address 0.0.0.0 is a probe for duplicates, and DHCP begins without an address."""
    port = local.port
    cookie = cookie_of(f"port/{port.id}")
    sender = (Match("in_port", str(local.ofport)), Match("eth_src", port.mac))
    arp = (*sender, ARP_TYPE, Match("arp_sha", port.mac))

    def allow(match: tuple[Match, ...], table: Table, note: str) -> Flow:
        return Flow(Table.PORT_SECURITY, Band.ADDRESS, match, (goto(table),), cookie, note)

    return [
        allow((*sender, IP, Match("ip_src", port.ip)), Table.SERVICE, f"sent from the nic's own MAC and {port.ip}"),
        allow((*arp, Match("arp_spa", port.ip)), Table.ARP, "ARP with the nic's own MAC and address"),
        allow((*arp, Match("arp_spa", "0.0.0.0")), Table.ARP, "ARP probe with the nic's own MAC"),
        allow(
            (
                *sender,
                Match("eth_dst", BROADCAST_MAC),
                IP,
                UDP,
                Match("ip_src", "0.0.0.0"),
                Match("ip_dst", "255.255.255.255"),
                Match("udp_src", "68"),
                Match("udp_dst", "67"),
            ),
            Table.SERVICE,
            "DHCP client without an address yet",
        ),
    ]
