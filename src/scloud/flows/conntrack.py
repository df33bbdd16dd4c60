"""Connection tracking for the fake switch: zones, directions, marks and related ICMP errors. Nothing times out."""

from __future__ import annotations

from dataclasses import dataclass

from scloud.flows.packet import ACK, PROTO_ICMP, PROTO_TCP, PROTO_UDP, SYN, Packet, ip_text
from scloud.model import connections

NEW, EST, REL, RPL, INV, TRK = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_ERRORS = (3, 4, 5, 11, 12)

Tuple = tuple[int, int, int, int, int]
"""Protocol, source, destination, source port, destination port; ICMP's identifier stands for both ports."""


@dataclass
class Connection:
    origin: Tuple
    mark: int = 0
    answered: bool = False


def tuple_of(packet: Packet) -> Tuple:
    """The five numbers that a connection is known by."""
    proto = packet["ip_proto"]
    if proto == PROTO_ICMP:
        source = target = packet.get("icmp_id")
    else:
        name = "tcp" if proto == PROTO_TCP else "udp"
        source, target = packet.get(f"{name}_src"), packet.get(f"{name}_dst")
    return proto, packet["ip_src"], packet["ip_dst"], source, target


def _turned(key: Tuple) -> Tuple:
    return key[0], key[2], key[1], key[4], key[3]


class Conntrack:
    """Connections by zone; each is found by either of its two directions."""

    def __init__(self) -> None:
        self._connections: dict[tuple[int, Tuple], Connection] = {}

    def track(self, packet: Packet, zone: int) -> tuple[int, int]:
        """(ct_state, ct_mark) of a packet in a zone; an answer is remembered."""
        if packet.about is not None and packet.get("icmp_type") in _ERRORS:
            return self._related(packet.about, zone)
        key = tuple_of(packet)
        found = self._connections.get((zone, key))
        if found is None:
            invalid = packet["ip_proto"] == PROTO_TCP and packet.get("tcp_flags") & (SYN | ACK) == SYN | ACK
            return TRK | (INV if invalid else NEW), 0
        reply = key != found.origin
        found.answered = found.answered or reply
        state = TRK | (EST if found.answered else NEW) | (RPL if reply else 0)
        return state, found.mark

    def commit(self, packet: Packet, zone: int, mark: int | None) -> None:
        """Remember the packet's connection; `mark`, if any, becomes the connection's."""
        key = tuple_of(packet)
        found = self._connections.get((zone, key))
        if found is None:
            found = Connection(key)
            self._connections[zone, key] = found
            self._connections.setdefault((zone, _turned(key)), found)
        if mark is not None:
            found.mark = mark

    def connections(self, zone: int) -> list[connections.Connection]:
        """The marked ones of a zone."""
        names = {PROTO_TCP: "tcp", PROTO_UDP: "udp"}
        found = {id(item): item for (in_zone, _), item in self._connections.items() if in_zone == zone and item.mark}
        return [
            connections.Connection.model_validate(
                {
                    "protocol": names[proto],
                    "source": ip_text(source),
                    "target": ip_text(target),
                    "source_port": source_port,
                    "target_port": target_port,
                    "mark": item.mark,
                }
            )
            for item in found.values()
            for proto, source, target, source_port, target_port in [item.origin]
            if proto in names
        ]

    def forget(self) -> None:
        """As after a restart of the userspace datapath."""
        self._connections.clear()

    def _related(self, about: Packet, zone: int) -> tuple[int, int]:
        found = self._connections.get((zone, tuple_of(about)))
        if found is None:
            return TRK | INV, 0
        # An error travels against the packet it is about.
        reply = tuple_of(about) == found.origin
        return TRK | REL | (RPL if reply else 0), found.mark
