"""Packets as values, for the fake switch: numbers by Open vSwitch's names, and what an ICMP error quotes."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace

BROADCAST = 0xFFFF_FFFF_FFFF
ETH_IP = 0x0800
ETH_ARP = 0x0806
PROTO_ICMP, PROTO_TCP, PROTO_UDP = 1, 6, 17
SYN, ACK = 0x02, 0x10


def mac(text: str) -> int:
    """`02:00:5c:00:00:01` as 48 bits."""
    return int(text.replace(":", ""), 16)


def ip(text: str) -> int:
    """`10.0.0.5` as 32 bits."""
    return int(ipaddress.IPv4Address(text))


def ip_text(number: int) -> str:
    """32 bits as `10.0.0.5`."""
    return str(ipaddress.IPv4Address(number))


def mac_text(number: int) -> str:
    """48 bits as `02:00:5c:00:00:01`."""
    return ":".join(f"{number:012x}"[at : at + 2] for at in range(0, 12, 2))


@dataclass(frozen=True)
class Packet:
    """`fields` has at least eth_src, eth_dst and eth_type. `about` is the packet that an ICMP error is about."""

    fields: dict[str, int]
    about: Packet | None = None

    def __getitem__(self, name: str) -> int:
        return self.fields[name]

    def get(self, name: str, default: int = 0) -> int:
        return self.fields.get(name, default)

    def but(self, **changes: int) -> Packet:
        """The same packet with some fields changed."""
        return replace(self, fields={**self.fields, **changes})


@dataclass(frozen=True)
class Ends:
    """MACs and addresses of the two ends of a packet."""

    eth_src: str
    eth_dst: str
    ip_src: str
    ip_dst: str

    def fields(self, proto: int) -> dict[str, int]:
        return {
            "eth_src": mac(self.eth_src),
            "eth_dst": mac(self.eth_dst),
            "eth_type": ETH_IP,
            "ip_src": ip(self.ip_src),
            "ip_dst": ip(self.ip_dst),
            "ip_proto": proto,
            "nw_ttl": 64,
        }


def tcp(ends: Ends, sport: int, dport: int, flags: int = SYN) -> Packet:
    """A TCP segment, by default the one that opens a connection."""
    return Packet({**ends.fields(PROTO_TCP), "tcp_src": sport, "tcp_dst": dport, "tcp_flags": flags})


def udp(ends: Ends, sport: int, dport: int) -> Packet:
    """A UDP datagram."""
    return Packet({**ends.fields(PROTO_UDP), "udp_src": sport, "udp_dst": dport})


def echo(ends: Ends, ident: int = 1, *, answer: bool = False) -> Packet:
    """An ICMP echo request or answer."""
    kind = 0 if answer else 8
    return Packet({**ends.fields(PROTO_ICMP), "icmp_type": kind, "icmp_code": 0, "icmp_id": ident})


def icmp_error(ends: Ends, about: Packet, kind: int = 3, code: int = 3) -> Packet:
    """An ICMP error, by default `port unreachable`, about a packet that its sender had sent."""
    return Packet({**ends.fields(PROTO_ICMP), "icmp_type": kind, "icmp_code": code, "icmp_id": 0}, about)


def arp_request(sender_mac: str, sender_ip: str, target_ip: str) -> Packet:
    """Who has `target_ip`?"""
    return Packet(
        {
            "eth_src": mac(sender_mac),
            "eth_dst": BROADCAST,
            "eth_type": ETH_ARP,
            "arp_op": 1,
            "arp_sha": mac(sender_mac),
            "arp_spa": ip(sender_ip),
            "arp_tha": 0,
            "arp_tpa": ip(target_ip),
        }
    )


def reversed_ports(packet: Packet) -> dict[str, int]:
    """The L4 fields of an answer to this packet."""
    fields: dict[str, int] = {}
    for name in ("tcp", "udp"):
        if f"{name}_src" in packet.fields:
            fields = {f"{name}_src": packet[f"{name}_dst"], f"{name}_dst": packet[f"{name}_src"]}
    if "tcp_flags" in packet.fields:
        fields["tcp_flags"] = packet["tcp_flags"] | ACK
    if packet.get("icmp_type", -1) == 8:
        fields["icmp_type"] = 0
    return fields


def answer_to(packet: Packet) -> Packet:
    """What the receiver sends back to whoever sent it: SYN is answered by SYN and ACK, echo by its answer."""
    swapped = {
        "eth_src": packet["eth_dst"],
        "eth_dst": packet["eth_src"],
        "ip_src": packet["ip_dst"],
        "ip_dst": packet["ip_src"],
        "nw_ttl": 64,
    }
    return Packet({**packet.fields, **swapped, **reversed_ports(packet)})
