"""Why can't A reach B? The way of a packet through the switches, in words."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from scloud.flows.fabric import Arrival, Fabric, Hop, Journey
from scloud.flows.fakeswitch import Lookup
from scloud.flows.packet import (
    BROADCAST,
    PROTO_ICMP,
    PROTO_TCP,
    Ends,
    Packet,
    answer_to,
    arp_request,
    echo,
    ip_text,
    mac_text,
    tcp,
    udp,
)
from scloud.flows.pipeline import METADATA_IP, Band, Table
from scloud.flows.view import LocalPort, NodeView
from scloud.model.errors import invalid

_CLIENT_PORT = 49152
_STAGES: dict[Table, str] = {
    Table.CLASSIFY: "port",
    Table.PORT_SECURITY: "port security",
    Table.ARP: "address resolution",
    Table.SERVICE: "services",
    Table.SERVICE_REPLY: "services",
    Table.FROM_SERVICE: "services",
    Table.SERVICE_OPEN: "services",
    Table.EGRESS_STATE: "outbound security groups",
    Table.EGRESS_RULES: "outbound security groups",
    Table.L3: "routing",
    Table.L2: "forwarding",
    Table.INGRESS_STATE: "inbound security groups",
    Table.INGRESS_RULES: "inbound security groups",
}
"""Tables that are no stage of their own only prepare the next one."""


@dataclass(frozen=True, slots=True)
class Step:
    """One stage on a node (empty when it is about no node)."""

    node: str
    stage: str
    verdict: Literal["pass", "drop", "info"]
    text: str


def trace_path(
    views: Mapping[str, NodeView],
    src_port_id: str,
    dst_ip: str,
    protocol: str,
    dst_port: int | None = None,
    *,
    names: Mapping[str, str] | None = None,
) -> list[Step]:
    """The steps of a new connection from a nic to an address, there and back; it ends at the first `drop`.

    `views` are the nodes' by id; `protocol` is tcp, udp (with `dst_port`) or icmp (echo); `names` replaces ids in the
    texts. The views' ofports need only be consistent in themselves.
    """
    if protocol not in ("tcp", "udp", "icmp"):
        raise invalid("protocol", "must be tcp, udp or icmp")
    if protocol != "icmp" and dst_port is None:
        raise invalid("port", "is needed with tcp and udp")
    steps = _Trace(views).run(src_port_id, dst_ip, protocol, dst_port or 0)
    return [replace(step, node=_named(step.node, names), text=_named(step.text, names)) for step in steps]


def _named(text: str, names: Mapping[str, str] | None) -> str:
    for key, name in (names or {}).items():
        text = text.replace(key, name)
    return text


class _Trace:
    def __init__(self, views: Mapping[str, NodeView]) -> None:
        self._views = views
        self._fabric = Fabric(views)

    def run(self, src_port_id: str, dst_ip: str, protocol: str, dst_port: int) -> list[Step]:
        found = self._local(src_port_id)
        if found is None:
            return [Step("", "port", "drop", f"nic {src_port_id} is on no running node: is its VM running?")]
        node, nic = found
        hop_ip = self._next_hop(node, nic, dst_ip)
        if hop_ip is None:
            return [Step(node, "routing", "drop", f"the subnet of nic {src_port_id} is not on its node")]
        resolved = self._fabric.send(node, nic.ofport, arp_request(nic.port.mac, nic.port.ip, hop_ip))
        answer = next((item.packet for item in resolved.arrivals if item.ofport == nic.ofport), None)
        if answer is None:
            return self._hops(resolved)
        hop_mac = mac_text(answer["arp_sha"])
        steps = [Step(node, "address resolution", "pass", f"{hop_ip} is at {hop_mac}")]
        ends = Ends(nic.port.mac, hop_mac, nic.port.ip, dst_ip)
        packet = _packet(ends, protocol, dst_port)
        journey = self._fabric.send(node, nic.ofport, packet)
        steps += self._hops(journey)
        if not journey.arrivals:
            return self._ended(steps, journey)
        arrival = journey.arrivals[0]
        if (arrival.node, arrival.ofport) == (node, nic.ofport):
            return [*steps, Step(node, "delivery", "pass", f"{dst_ip} answers nic {nic.port.id}")]
        steps.append(Step(arrival.node, "delivery", "pass", f"reaches {self._at(arrival)}"))
        return steps + self._back(node, nic, arrival)

    def _back(self, node: str, nic: LocalPort, arrival: Arrival) -> list[Step]:
        journey = self._fabric.send(arrival.node, arrival.ofport, answer_to(arrival.packet))
        if any((item.node, item.ofport) == (node, nic.ofport) for item in journey.arrivals):
            return [Step(node, "answer", "pass", f"the answer comes back to nic {nic.port.id}")]
        steps = self._ended(self._hops(journey), journey)
        return [replace(step, stage=f"answer: {step.stage}") for step in steps]

    def _ended(self, steps: list[Step], journey: Journey) -> list[Step]:
        """Nothing arrived: if no step says why, the packet went to a node that was not asked."""
        if any(step.verdict == "drop" for step in steps):
            return steps
        last = journey.hops[-1]
        for _, packet in last.account.outputs:
            text = f"no node at {ip_text(packet.get('tun_dst'))} was asked: is it up?"
            return [*steps, Step(last.node, "tunnel", "drop", text)]
        return [*steps, Step(last.node, "delivery", "drop", "the switch has no port for it")]

    def _local(self, port_id: str) -> tuple[str, LocalPort] | None:
        for node in sorted(self._views):
            for nic in self._views[node].local:
                if nic.port.id == port_id and not nic.port.absent:
                    return node, nic
        return None

    def _next_hop(self, node: str, nic: LocalPort, dst_ip: str) -> str | None:
        for item in self._views[node].vpcs:
            for subnet in item.vpc.subnets:
                if subnet.id == nic.port.subnet:
                    near = ipaddress.IPv4Address(dst_ip) in ipaddress.IPv4Network(subnet.cidr)
                    return dst_ip if near or dst_ip == METADATA_IP else subnet.gateway
        return None

    def _at(self, arrival: Arrival) -> str:
        view = self._views[arrival.node]
        for nic in view.local:
            if nic.ofport == arrival.ofport:
                return f"nic {nic.port.id} ({nic.port.ip})"
        return "the service of the VPC"

    def _hops(self, journey: Journey) -> list[Step]:
        steps = []
        for hop in journey.hops:
            for lookup in hop.account.lookups:
                step = self._step(hop, lookup)
                if step is not None:
                    steps.append(step)
        return steps

    def _step(self, hop: Hop, lookup: Lookup) -> Step | None:
        stage = _STAGES.get(lookup.table)
        if stage is None:
            return None
        if lookup.dropped:
            return Step(hop.node, stage, "drop", _why(self._views[hop.node], lookup))
        if lookup.flow is None or lookup.flow.priority <= Band.NETWORK:
            return None
        verdict: Literal["pass", "info"] = "info" if lookup.table is Table.CLASSIFY else "pass"
        return Step(hop.node, stage, verdict, lookup.flow.note)


def _packet(ends: Ends, protocol: str, dst_port: int) -> Packet:
    if protocol == "icmp":
        return echo(ends)
    return (tcp if protocol == "tcp" else udp)(ends, _CLIENT_PORT, dst_port)


def _what(fields: Mapping[str, int]) -> str:
    """`tcp 22`, `icmp`, ..."""
    if fields.get("ip_proto") == PROTO_ICMP:
        return "icmp"
    name = "tcp" if fields.get("ip_proto") == PROTO_TCP else "udp"
    return f"{name} {fields.get(f'{name}_dst', 0)}"


def _why(view: NodeView, lookup: Lookup) -> str:
    """Why a table dropped a packet. A flow that drops says it itself."""
    if lookup.flow is not None:
        return lookup.flow.note
    fields = lookup.fields
    match lookup.table:
        case Table.CLASSIFY:
            if fields["in_port"] == view.tunnel_ofport:
                peer = ip_text(fields["tun_src"])
                return f"this node knows of no nic with VNI {fields['tun_id']} at the node {peer} that sent it"
            return f"no nic is at port {fields['in_port']}"
        case Table.PORT_SECURITY:
            return _spoofed(view, fields)
        case Table.ARP:
            return f"nobody has {ip_text(fields.get('arp_tpa', 0))}: no nic of a running VM in this VPC"
        case Table.SERVICE_REPLY:
            return f"{ip_text(fields['ip_dst'])} offers DHCP, DNS, echo and metadata to its VPC, not {_what(fields)}"
        case Table.FROM_SERVICE:
            return f"no nic on this node has {ip_text(fields['ip_dst'])}, and the service does not leave its node"
        case Table.EGRESS_STATE | Table.INGRESS_STATE:
            return "it belongs to a connection that no rule allows any more"
        case Table.EGRESS_RULES:
            return _no_rule(_by_ofport(view, fields["in_port"]), "outbound", f"to {ip_text(fields['ip_dst'])}", fields)
        case Table.INGRESS_RULES:
            nic = _by_ofport(view, fields.get("reg1", 0))
            return _no_rule(nic, "inbound", f"from {ip_text(fields['ip_src'])}", fields)
        case Table.L2:
            if fields["eth_dst"] & 1 << 40:
                return "broadcast and multicast are not delivered in a VPC, but for ARP and DHCP"
            return f"no nic with MAC {mac_text(fields['eth_dst'])} is known in this VPC"
        case _:
            return f"nothing in {lookup.table.name} lets it pass"


def _by_ofport(view: NodeView, ofport: int) -> LocalPort | None:
    return next((nic for nic in view.local if nic.ofport == ofport), None)


def _spoofed(view: NodeView, fields: Mapping[str, int]) -> str:
    nic = _by_ofport(view, fields["in_port"])
    if nic is None:
        return "the sender is no nic of this node"
    sender = mac_text(fields["eth_src"])
    if fields["eth_type"] not in (0x0800, 0x0806):
        return "only IPv4 and ARP pass"
    address = ip_text(fields.get("ip_src", fields.get("arp_spa", BROADCAST & 0xFFFF_FFFF)))
    return f"nic {nic.port.id} may only send from {nic.port.mac}, {nic.port.ip}; this is from {sender}, {address}"


def _no_rule(nic: LocalPort | None, direction: str, other: str, fields: Mapping[str, int]) -> str:
    if nic is None or not nic.port.groups:
        which = f"nic {nic.port.id}" if nic is not None else "the nic"
        return f"{which} is in no security group: nothing passes but its services"
    groups = "security group" if len(nic.port.groups) == 1 else "security groups"
    return f"no {direction} rule of {groups} {', '.join(nic.port.groups)} allows {_what(fields)} {other}"
