"""A switch in memory with the behaviour of the real one: numbers, stamps, bundles that apply whole or not at all.

Packets can be pushed through its flows, and `Wires` joins several by their tunnels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scloud.drivers.switch.protocol import TUNNEL_OFPORT, PortFacts
from scloud.flows.fakeswitch import Account, FakeSwitch
from scloud.flows.ir import Flow
from scloud.flows.packet import Packet, ip_text
from scloud.model.connections import Connection
from scloud.model.errors import CloudError, ErrorKind


class FakeOvs:
    """Implements `Switch`. `devices` are those that exist besides taps of its own; add to it what others would make.

    `fail` makes the next call of a method fail, by name; `restart` is what a killed and restarted daemon does.
    """

    def __init__(self, tunnel_ip: str = "172.31.0.1") -> None:
        self.tunnel_ip = tunnel_ip
        self.devices: set[str] = set()
        self.taps: dict[str, int] = {}
        """Taps of its own, with their MTU."""
        self.peers: dict[str, str | None] = {}
        self.calls: Counter[str] = Counter()
        self.fail: dict[str, CloudError] = {}
        self.running = True
        self.flows = FakeSwitch()
        self._bridge = False
        self._ports: dict[str, PortFacts] = {}
        self._starts = 1

    def restart(self) -> None:
        """Flows and connections are lost; ports come back by themselves."""
        self._starts += 1
        self.flows = FakeSwitch()
        self.running = True

    def stop(self) -> None:
        """Every call fails until `restart`; what was there carries on as it was."""
        self.running = False

    def _called(self, method: str, *, bridge: bool = True) -> None:
        self.calls[method] += 1
        error = self.fail.pop(method, None)
        if error is not None:
            raise error
        if not self.running:
            raise CloudError(ErrorKind.ENGINE, "ovs-vswitchd is not running")
        if bridge and not self._bridge:
            raise CloudError(ErrorKind.ENGINE, "the bridge br-int is not there")

    async def ensure_bridge(self) -> None:
        self._called("ensure_bridge", bridge=False)
        self._bridge = True

    async def add_tap(self, name: str, owner: str, ofport: int, mtu: int) -> None:
        self._called("add_tap")
        self.taps[name] = mtu
        self._add(name, owner, ofport)

    async def add_port(self, name: str, owner: str, ofport: int) -> None:
        self._called("add_port")
        if name not in self.devices and name not in self.taps:
            raise CloudError(ErrorKind.ENGINE, f"there is no device {name} to put on the switch")
        self._add(name, owner, ofport)

    def _add(self, name: str, owner: str, ofport: int) -> None:
        rival = next((port.name for port in self._ports.values() if port.ofport == ofport and port.name != name), None)
        if rival is not None or ofport == TUNNEL_OFPORT:
            self._ports.pop(name, None)
            raise CloudError(ErrorKind.CONFLICT, f"the switch cannot give {name} the number {ofport}: another has it")
        self._ports[name] = PortFacts(name=name, owner=owner, ofport=ofport)

    async def remove_port(self, name: str) -> None:
        self._called("remove_port")
        self._ports.pop(name, None)
        self.taps.pop(name, None)

    async def ports(self) -> list[PortFacts]:
        self._called("ports")
        gone = -1
        return [
            port if name in self.devices or name in self.taps else port.model_copy(update={"ofport": gone})
            for name, port in sorted(self._ports.items())
        ]

    async def replace_flows(self, flows: Sequence[Flow]) -> None:
        self._called("replace_flows")
        self.flows.replace(flows)

    async def change_flows(self, remove: Sequence[Flow], add: Sequence[Flow]) -> None:
        self._called("change_flows")
        self.flows.change(remove, add)

    async def flow_owners(self) -> dict[int, int]:
        self._called("flow_owners")
        return dict(Counter(flow.cookie for flow in self.flows.flows()))

    async def incarnation(self) -> str:
        self._called("incarnation")
        return f"fake-{self._starts}"

    async def learn_peer(self, tunnel_ip: str, mac: str | None = None) -> None:
        self._called("learn_peer")
        self.peers[tunnel_ip] = mac

    async def connections(self, zone: int) -> list[Connection]:
        self._called("connections")
        return self.flows.conntrack.connections(zone)

    async def trace(self, fields: Mapping[str, str | int]) -> str:
        self._called("trace")
        wanted = {name: value if isinstance(value, int) else int(value, 0) for name, value in fields.items()}
        account = self.flows.receive(wanted.pop("in_port", 0), Packet(wanted))
        return "\n".join(
            f"{lookup.table.value}. {lookup.flow.note if lookup.flow is not None else 'No match.'}"
            for lookup in account.lookups
        )

    def receive(self, name: str, packet: Packet) -> Account:
        """A packet that the device of a port sends into the switch."""
        if name not in self._ports:
            raise CloudError(ErrorKind.NOT_FOUND, f"there is no port {name} on the switch")
        return self.flows.receive(self._ports[name].ofport, packet)

    def tunnelled(self, packet: Packet, vni: int, peer: str) -> Account:
        """A packet that comes by the tunnel."""
        return self.flows.receive(TUNNEL_OFPORT, packet, tun_id=vni, tun_src=peer)

    def name_of(self, ofport: int) -> str | None:
        """The port with a number."""
        return next((port.name for port in self._ports.values() if port.ofport == ofport), None)


@dataclass(frozen=True)
class Wires:
    """Fake switches whose tunnels reach each other."""

    switches: tuple[FakeOvs, ...]

    def send(self, switch: FakeOvs, name: str, packet: Packet) -> list[tuple[FakeOvs, str, Packet]]:
        """(switch, port, packet) of everything that arrives at a port with a name."""
        arrived = []
        waiting = [(switch, switch.receive(name, packet))]
        for here, account in waiting:  # grows while it is walked: once more for what is tunnelled
            for ofport, out in account.outputs:
                if ofport == TUNNEL_OFPORT:
                    for there in self.switches:
                        if there.tunnel_ip == ip_text(out["tun_dst"]):
                            fields = {key: value for key, value in out.fields.items() if not key.startswith("tun_")}
                            inner = Packet(fields, out.about)
                            waiting.append((there, there.tunnelled(inner, out["tun_id"], here.tunnel_ip)))
                elif (port := here.name_of(ofport)) is not None:
                    arrived.append((here, port, out))
        return arrived
