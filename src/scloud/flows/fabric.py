"""Several nodes' fake switches, joined by tunnels: follows a packet from the nic that sends it to where it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scloud.flows.compile import compile_view
from scloud.flows.fakeswitch import Account, FakeSwitch
from scloud.flows.packet import Packet, ip_text
from scloud.flows.view import NodeView


@dataclass(frozen=True)
class Hop:
    """A packet in one node's switch."""

    node: str
    account: Account


@dataclass(frozen=True)
class Arrival:
    """A packet handed to a port that is not a tunnel's: a nic, or the service."""

    node: str
    ofport: int
    packet: Packet


@dataclass(frozen=True)
class Journey:
    hops: tuple[Hop, ...]
    arrivals: tuple[Arrival, ...]


class Fabric:
    """Built from the nodes' views; connections are remembered between packets."""

    def __init__(self, views: Mapping[str, NodeView]) -> None:
        self.switches: dict[str, FakeSwitch] = {}
        self._views: dict[str, NodeView] = {}
        self.update(views)

    def update(self, views: Mapping[str, NodeView]) -> None:
        """Give every node its flows anew; connections stay."""
        self._views = dict(views)
        for node, view in views.items():
            self.switches.setdefault(node, FakeSwitch()).replace(compile_view(view))

    def send(self, node: str, ofport: int, packet: Packet) -> Journey:
        """What comes of a packet that a nic or the service sends at a port of a node."""
        hops = [Hop(node, self.switches[node].receive(ofport, packet))]
        arrivals: list[Arrival] = []
        for hop in hops:  # grows while it is walked: a packet may be tunnelled, and never twice
            for port, out in hop.account.outputs:
                if port != self._views[hop.node].tunnel_ofport:
                    arrivals.append(Arrival(hop.node, port, out))
                elif (target := self._at(ip_text(out["tun_dst"]))) is not None:
                    hops.append(Hop(target, self._by_tunnel(hop.node, target, out)))
        return Journey(tuple(hops), tuple(arrivals))

    def _at(self, tunnel_ip: str) -> str | None:
        return next((node for node, view in self._views.items() if view.tunnel_ip == tunnel_ip), None)

    def _by_tunnel(self, source: str, target: str, packet: Packet) -> Account:
        outer = ("tun_id", "tun_src", "tun_dst")
        inner = Packet({name: value for name, value in packet.fields.items() if name not in outer}, packet.about)
        return self.switches[target].receive(
            self._views[target].tunnel_ofport,
            inner,
            tun_id=packet["tun_id"],
            tun_src=self._views[source].tunnel_ip,
        )
