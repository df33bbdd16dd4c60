"""A small cloud of nodes, VPCs, groups and nics, whose packets run through the compiled flows."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any

from scloud.flows.fabric import Fabric, Journey
from scloud.flows.packet import Ends, Packet, answer_to, echo, mac, tcp, udp
from scloud.flows.pipeline import GATEWAY_MAC, SERVICE_MAC
from scloud.flows.view import LocalPort, LocalVpc, NodeView, RemotePort
from scloud.model.connections import Connection
from scloud.model.desired import DesiredGroup, DesiredPort, DesiredSubnet, DesiredVpc
from scloud.model.specs import StoredRule

TUNNEL = 1
SERVICE_BASE = 1000
ALL = "0.0.0.0/0"


def rule(mark: int, direction: str, protocol: str = "any", ports: tuple[int, int] | None = None, **peer: str) -> Any:
    """A rule; its peer is everyone unless `cidr` or `group` is given."""
    low, high = ports if ports is not None else (None, None)
    return StoredRule(
        id=f"rule{mark}",
        mark=mark,
        direction=direction,
        protocol=protocol,
        port_min=low,
        port_max=high,
        **(peer or {"cidr": ALL}),
    )


OUT = rule(1, "outbound")


@dataclass
class World:
    """Change the dictionaries, then `apply`. Connections stay as they do on a switch."""

    nodes: dict[str, str] = field(default_factory=lambda: {"n1": "172.31.0.11", "n2": "172.31.0.12"})
    vpcs: dict[str, DesiredVpc] = field(default_factory=dict)
    groups: dict[str, DesiredGroup] = field(default_factory=dict)
    ports: dict[str, DesiredPort] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    without_service: set[str] = field(default_factory=set)
    brought: dict[str, tuple[Connection, ...]] = field(default_factory=dict)
    zones: dict[str, int] = field(default_factory=dict)
    """Of nics that have others than their number says."""
    fabric: Fabric = field(default_factory=lambda: Fabric({}))

    def vpc(self, name: str, vni: int, *cidrs: str) -> None:
        subnets = []
        for count, cidr in enumerate(cidrs):
            hosts = ipaddress.IPv4Network(cidr)
            subnets.append(
                DesiredSubnet(
                    id=f"{name}-{count}", name=f"s{count}", cidr=cidr, gateway=str(hosts[1]), service_ip=str(hosts[2])
                )
            )
        self.vpcs[name] = DesiredVpc(id=name, generation=1, name=name, vni=vni, subnets=tuple(subnets))

    def group(self, name: str, *rules: StoredRule) -> None:
        self.groups[name] = DesiredGroup(id=name, generation=1, rules=rules)

    def nic(self, name: str, node: str | None, vpc: str, ip: str, *groups: str, **more: Any) -> None:
        number = self.numbers.setdefault(name, len(self.numbers) + 10)
        subnet = next(
            item for item in self.vpcs[vpc].subnets if ipaddress.IPv4Address(ip) in ipaddress.IPv4Network(item.cidr)
        )
        values: dict[str, Any] = {
            "id": name,
            "generation": 1,
            "vpc": vpc,
            "subnet": subnet.id,
            "vm": None,
            "hostname": name,
            "mac": f"06:00:00:00:{number >> 8:02x}:{number & 255:02x}",
            "ip": ip,
            "groups": groups,
            "node_id": node,
            "tunnel_ip": self.nodes[node] if node is not None else None,
        }
        self.ports[name] = DesiredPort(**{**values, **more})

    def view(self, node: str) -> NodeView:
        local = [port for port in self.ports.values() if port.node_id == node]
        here = {port.vpc for port in local if not port.absent}
        return NodeView(
            tunnel_ip=self.nodes[node],
            tunnel_ofport=TUNNEL,
            vpcs=tuple(
                LocalVpc(item, None if name in self.without_service else self.service(name))
                for name, item in self.vpcs.items()
                if name in here
            ),
            local=tuple(
                LocalPort(port, self.numbers[port.id], self.zone(port.id), self.brought.get(port.id, ()))
                for port in local
            ),
            remote=tuple(
                RemotePort(port)
                for port in self.ports.values()
                if port.node_id not in (None, node) and port.vpc in here
            ),
            groups=tuple(self.groups.values()),
        )

    def zone(self, nic: str) -> int:
        return self.zones.get(nic, self.numbers[nic] + 100)

    def migrate(self, nic: str, node: str) -> None:
        """It brings what the switch that it leaves knows of its connections."""
        port = self.ports[nic]
        assert port.node_id is not None
        self.brought[nic] = tuple(self.fabric.switches[port.node_id].conntrack.connections(self.zone(nic)))
        self.ports[nic] = port.model_copy(update={"node_id": node, "tunnel_ip": self.nodes[node]})
        self.apply()

    def service(self, vpc: str) -> int:
        return SERVICE_BASE + list(self.vpcs).index(vpc)

    def views(self) -> dict[str, NodeView]:
        return {node: self.view(node) for node in self.nodes}

    def apply(self) -> World:
        self.fabric.update(self.views())
        return self

    # --- packets

    def ends(self, source: str, target: str) -> Ends:
        """From a nic to a nic or an address, by the router where the subnets differ."""
        a = self.ports[source]
        subnet = next(item for item in self.vpcs[a.vpc].subnets if item.id == a.subnet)
        b = self.ports.get(target)
        ip = b.ip if b is not None else target
        if ip in [item.service_ip for item in self.vpcs[a.vpc].subnets]:
            eth = SERVICE_MAC
        elif b is not None and ipaddress.IPv4Address(ip) in ipaddress.IPv4Network(subnet.cidr):
            eth = b.mac
        else:
            eth = GATEWAY_MAC
        return Ends(a.mac, eth, a.ip, ip)

    def send(self, source: str, packet: Packet) -> Journey:
        node = self.ports[source].node_id
        assert node is not None
        return self.fabric.send(node, self.numbers[source], packet)

    def arrived(self, source: str, packet: Packet) -> list[str]:
        """The nics (or `service`) that got the packet."""
        return self.receivers(self.send(source, packet))

    def receivers(self, journey: Journey) -> list[str]:
        names = {(port.node_id, self.numbers[name]): name for name, port in self.ports.items()}
        return [names.get((item.node, item.ofport), "service") for item in journey.arrivals]

    def round_trip(self, source: str, target: str, packet: Packet) -> bool:
        """Whether the packet reaches the nic and the nic's answer comes back."""
        journey = self.send(source, packet)
        if self.receivers(journey) != [target]:
            return False
        return self.arrived(target, answer_to(journey.arrivals[0].packet)) == [source]

    def tcp(self, source: str, target: str, port: int, sport: int = 40000) -> bool:
        return self.round_trip(source, target, tcp(self.ends(source, target), sport, port))

    def udp(self, source: str, target: str, port: int, sport: int = 40000) -> bool:
        return self.round_trip(source, target, udp(self.ends(source, target), sport, port))

    def ping(self, source: str, target: str) -> bool:
        return self.round_trip(source, target, echo(self.ends(source, target)))

    def from_service(self, node: str, vpc: str, ip_src: str, ip_dst: str, make: Any, *args: Any) -> Journey:
        """A packet that the VPC's service on a node sends."""
        target = next((port.mac for port in self.ports.values() if port.ip == ip_dst and port.vpc == vpc), None)
        ends = Ends(SERVICE_MAC, target or "ff:ff:ff:ff:ff:ff", ip_src, ip_dst)
        return self.fabric.send(node, self.service(vpc), make(ends, *args))


def spoofed(packet: Packet, **changes: str) -> Packet:
    """The packet with other text MACs or addresses."""
    numbers = {
        name: mac(value) if ":" in value else int(ipaddress.IPv4Address(value)) for name, value in changes.items()
    }
    return packet.but(**numbers)


def small_world() -> World:
    """Two nodes; VPC a with two subnets: web and db on n1, far on n2, and other in the second subnet on n2."""
    world = World()
    world.vpc("vpc-a", 16777215, "10.0.0.0/24", "10.0.1.0/24")
    world.group("sg-all", OUT, rule(2, "inbound"))
    world.nic("nic-web", "n1", "vpc-a", "10.0.0.10", "sg-all")
    world.nic("nic-db", "n1", "vpc-a", "10.0.0.11", "sg-all")
    world.nic("nic-far", "n2", "vpc-a", "10.0.0.12", "sg-all")
    world.nic("nic-other", "n2", "vpc-a", "10.0.1.10", "sg-all")
    return world.apply()
