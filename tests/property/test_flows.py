"""What holds for every cloud: nets and groups drawn at random, packets pushed through every node's compiled flows.

The switch in these tests raises an error wherever two flows of equal priority match one packet, so every example is
also a search for ambiguous flows.
"""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from scloud.flows.compile import Compiler, compile_view
from scloud.flows.ir import Flow
from scloud.flows.packet import Ends, Packet, answer_to, arp_request, echo, ip, mac, tcp, udp
from scloud.flows.pipeline import GATEWAY_MAC, SERVICE_MAC
from scloud.flows.policy import port_masks
from scloud.model.specs import StoredRule

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "flows"))
from flow_world import ALL, World, rule

cloudy = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

VPCS = {"vpc-a": 16777215, "vpc-b": 16777214}
GROUPS = ("sg-a", "sg-b", "sg-c")
ADDRESSES = [f"10.0.{subnet}.{host}" for subnet in (0, 1) for host in range(10, 15)]
PORTS = st.sampled_from([0, 22, 53, 67, 80, 443, 1000, 65535])


@st.composite
def rules(draw: st.DrawFn, mark: int) -> StoredRule:
    protocol = draw(st.sampled_from(["tcp", "udp", "icmp", "any"]))
    values: dict[str, Any] = {"protocol": protocol, "direction": draw(st.sampled_from(["inbound", "outbound"]))}
    if protocol in ("tcp", "udp") and draw(st.booleans()):
        low, high = sorted((draw(PORTS), draw(PORTS)))
        values |= {"port_min": low, "port_max": high}
    if draw(st.booleans()):
        values["cidr"] = draw(st.sampled_from([ALL, "10.0.0.0/24", "10.0.0.12/32", "10.0.0.8/30", "10.0.1.0/24"]))
    else:
        values["group"] = draw(st.sampled_from(GROUPS))
    return StoredRule(id=f"rule{mark}", mark=mark, **values)


@st.composite
def groups(draw: st.DrawFn, world: World) -> None:
    for number, name in enumerate(GROUPS):
        count = draw(st.integers(0, 3))
        world.group(name, *(draw(rules(1 + number * 10 + place)) for place in range(count)))


@st.composite
def nics(draw: st.DrawFn, world: World, name: str) -> None:
    vpc = draw(st.sampled_from(sorted(VPCS)))
    taken = {port.ip for port in world.ports.values() if port.vpc == vpc and port.id != name}
    free = [address for address in ADDRESSES if address not in taken]
    carried = draw(st.lists(st.sampled_from(GROUPS), max_size=3))
    absent = draw(st.sampled_from([False, False, False, True]))
    world.nic(name, draw(st.sampled_from(["n1", "n2"])), vpc, draw(st.sampled_from(free)), *carried, absent=absent)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    world = World()
    for name, vni in VPCS.items():
        world.vpc(name, vni, "10.0.0.0/24", "10.0.1.0/24")
    draw(groups(world))
    for number in range(draw(st.integers(2, 6))):
        draw(nics(world, f"nic-{number}"))
    assume(any(not port.absent for port in world.ports.values()))
    return world.apply()


def _present(world: World) -> list[str]:
    return [name for name, port in world.ports.items() if not port.absent]


@st.composite
def frames(draw: st.DrawFn, world: World, source: str) -> Packet:
    """Anything that a guest could think of sending."""
    macs = [port.mac for port in world.ports.values()] + [GATEWAY_MAC, SERVICE_MAC, "ff:ff:ff:ff:ff:ff"]
    sources = [port.mac for port in world.ports.values()]
    ips = [*ADDRESSES, "10.0.0.1", "10.0.0.2", "10.0.1.2", "169.254.169.254", "255.255.255.255", "192.0.2.1"]
    mine = world.ports[source]
    honest = draw(st.sampled_from([True, True, True, False]))
    eth_src = mine.mac if honest else draw(st.sampled_from(sources))
    ip_src = mine.ip if honest else draw(st.sampled_from([*ips, "0.0.0.0"]))
    ip_dst = draw(st.sampled_from(ips))
    if draw(st.integers(0, 5)) == 0:
        packet = arp_request(eth_src, ip_src, ip_dst)
        return packet if honest else packet.but(arp_sha=mac(draw(st.sampled_from(sources))))
    ends = Ends(eth_src, draw(st.sampled_from(macs)), ip_src, ip_dst)
    sport, dport = draw(PORTS), draw(PORTS)
    kind = draw(st.sampled_from(["tcp", "udp", "echo", "dhcp"]))
    if kind == "tcp":
        packet = tcp(ends, sport, dport, draw(st.sampled_from([2, 16, 18])))
    elif kind == "udp":
        packet = udp(ends, sport, dport)
    elif kind == "dhcp":
        packet = udp(ends, 68, 67)
    else:
        packet = echo(ends, answer=draw(st.booleans()))
    return packet.but(nw_ttl=draw(st.sampled_from([0, 1, 64])))


@st.composite
def sendings(draw: st.DrawFn) -> tuple[World, list[tuple[str, Packet]]]:
    world = draw(worlds())
    sent = []
    for _ in range(draw(st.integers(1, 8))):
        source = draw(st.sampled_from(_present(world)))
        sent.append((source, draw(frames(world, source))))
    return world, sent


def _owner(world: World, node: str, ofport: int) -> str | None:
    for name, port in world.ports.items():
        if (port.node_id, world.numbers[name]) == (node, ofport):
            return name
    return None


@cloudy
@given(sendings())
def test_packets_stay_in_their_vpc_and_carry_their_senders_address(
    sending: tuple[World, list[tuple[str, Packet]]],
) -> None:
    world, sent = sending
    for source, packet in sent:
        sender = world.ports[source]
        journey = world.send(source, packet)
        assert len(journey.hops) <= 2
        for arrival in journey.arrivals:
            receiver = _owner(world, arrival.node, arrival.ofport)
            if receiver is None:
                assert (arrival.node, arrival.ofport) == (sender.node_id, world.service(sender.vpc))
                assert packet["ip_src"] in (ip(sender.ip), 0)
                continue
            assert world.ports[receiver].vpc == sender.vpc
            assert not world.ports[receiver].absent
            if receiver == source:
                continue  # an answer of the pipeline itself, to ARP or to echo
            assert arrival.packet["ip_src"] == ip(sender.ip)
            assert packet["eth_src"] == mac(sender.mac)
            assert arrival.packet["eth_src"] in (mac(sender.mac), mac(GATEWAY_MAC))
            assert arrival.packet["eth_dst"] == mac(world.ports[receiver].mac)


def _allowed(world: World, packet: Packet, name: str, direction: str, other: str) -> bool:
    """The meaning of groups, said as plainly as it can be: some rule of some group of the nic allows it."""
    peer = world.ports[other]
    proto = {1: "icmp", 6: "tcp", 17: "udp"}[packet["ip_proto"]]
    dport = packet.get(f"{proto}_dst")
    for group in world.ports[name].groups:
        for item in world.groups[group].rules:
            if item.direction.value != direction or item.protocol.value not in ("any", proto):
                continue
            if item.port_min is not None and item.port_max is not None and not item.port_min <= dport <= item.port_max:
                continue
            if item.group is not None and item.group in peer.groups:
                return True
            if item.cidr is not None and ipaddress.IPv4Address(peer.ip) in ipaddress.IPv4Network(item.cidr):
                return True
    return False


@st.composite
def connections(draw: st.DrawFn) -> tuple[World, str, str, Packet]:
    world = draw(worlds())
    pairs = [
        (a, b) for a in _present(world) for b in _present(world) if a != b and world.ports[a].vpc == world.ports[b].vpc
    ]
    assume(pairs)
    a, b = draw(st.sampled_from(pairs))
    ends = world.ends(a, b)
    kind = draw(st.sampled_from(["tcp", "udp", "icmp"]))
    packet = echo(ends) if kind == "icmp" else (tcp if kind == "tcp" else udp)(ends, 40000, draw(PORTS))
    return world, a, b, packet


@cloudy
@given(connections())
def test_a_new_connection_passes_exactly_if_both_ends_have_a_rule_and_then_answers_do(
    connection: tuple[World, str, str, Packet],
) -> None:
    world, a, b, packet = connection
    expected = _allowed(world, packet, a, "outbound", b) and _allowed(world, packet, b, "inbound", a)
    assert world.round_trip(a, b, packet) is expected
    assert world.round_trip(a, b, packet) is expected


@st.composite
def live_connections(draw: st.DrawFn) -> tuple[World, str, str, Packet, Packet]:
    """A connection that every group allows by a rule of its own, and the first answer to it."""
    world, a, b, packet = draw(connections())
    for number, name in enumerate(GROUPS):
        world.group(name, rule(900 + number, "outbound"), rule(910 + number, "inbound"))
    for name in (a, b):
        if not world.ports[name].groups:
            world.ports[name] = type(world.ports[name])(**{**dict(world.ports[name]), "groups": ("sg-a",)})
    world.apply()
    journey = world.send(a, packet)
    assert world.receivers(journey) == [b]
    answer = answer_to(journey.arrivals[0].packet)
    assert world.arrived(b, answer) == [a]
    return world, a, b, packet, answer


@cloudy
@given(live_connections(), st.data())
def test_new_rules_decide_over_old_connections(
    live: tuple[World, str, str, Packet, Packet], data: st.DataObject
) -> None:
    world, a, b, packet, answer = live
    data.draw(groups(world))
    world.apply()
    assert world.arrived(b, answer) == [], "no rule that the connection was marked with is left"
    expected = _allowed(world, packet, a, "outbound", b) and _allowed(world, packet, b, "inbound", a)
    assert world.round_trip(a, b, packet) is expected
    assert (world.arrived(b, answer) == [a]) is expected


@cloudy
@given(live_connections(), st.data())
def test_groups_joined_and_left_decide_over_old_connections(
    live: tuple[World, str, str, Packet, Packet], data: st.DataObject
) -> None:
    world, a, b, packet, _ = live
    for number, name in enumerate(GROUPS):
        some = data.draw(st.booleans())
        more = [data.draw(rules(number * 10 + 1))] if data.draw(st.booleans()) else []
        world.group(name, *(world.groups[name].rules if some else ()), *more)
    for name in (a, b):
        carried = data.draw(st.lists(st.sampled_from(GROUPS), max_size=3))
        world.ports[name] = type(world.ports[name])(**{**dict(world.ports[name]), "groups": tuple(carried)})
    world.apply()
    expected = _allowed(world, packet, a, "outbound", b) and _allowed(world, packet, b, "inbound", a)
    assert world.round_trip(a, b, packet) is expected


@cloudy
@given(connections())
def test_where_a_nic_is_makes_no_difference(connection: tuple[World, str, str, Packet]) -> None:
    """The same nics on one node and on two: what passes is the same, and so is what arrives."""
    world, a, b, packet = connection
    seen = []
    for node_a, node_b in (("n1", "n1"), ("n1", "n2"), ("n2", "n1")):
        for name, node in ((a, node_a), (b, node_b)):
            values = world.ports[name].model_dump() | {"node_id": node, "tunnel_ip": world.nodes[node]}
            world.ports[name] = type(world.ports[name])(**values)
        for switch in world.fabric.switches.values():
            switch.conntrack.forget()
        world.apply()
        journey = world.send(a, packet)
        fields = [
            {name: value for name, value in item.packet.fields.items() if not name.startswith("tun_")}
            for item in journey.arrivals
        ]
        seen.append((world.receivers(journey), fields))
    assert seen[0] == seen[1] == seen[2]


def _by_slot(flows: tuple[Flow, ...]) -> dict[Any, Flow]:
    return {(flow.table, flow.priority, flow.match): flow for flow in flows}


@cloudy
@given(worlds(), st.data())
def test_changes_one_by_one_end_where_compiling_from_nothing_does(world: World, data: st.DataObject) -> None:
    compilers = {node: Compiler() for node in world.nodes}
    held: dict[str, dict[Any, Flow]] = {node: {} for node in world.nodes}
    for _ in range(data.draw(st.integers(1, 5))):
        for node, compiler in compilers.items():
            view = world.view(node)
            change = compiler.update(view)
            for flow in change.remove:
                assert held[node].pop((flow.table, flow.priority, flow.match)) == flow
            held[node] |= _by_slot(change.add)
            assert held[node] == _by_slot(compile_view(view)) == _by_slot(compiler.flows())
            assert not compiler.update(view)
        what = data.draw(st.sampled_from(["groups", "nic", "gone", "vpc"]))
        if what == "groups":
            data.draw(groups(world))
        elif what == "nic":
            data.draw(nics(world, f"nic-{data.draw(st.integers(0, 7))}"))
        elif what == "gone" and len(world.ports) > 1:
            del world.ports[data.draw(st.sampled_from(sorted(world.ports)))]
        elif what == "vpc":
            world.vpc("vpc-a", data.draw(st.sampled_from([5, 16777215])), "10.0.0.0/24", "10.0.1.0/24")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 65535), st.integers(0, 65535), st.integers(0, 65535))
def test_port_masks_are_the_range(one: int, other: int, port: int) -> None:
    low, high = sorted((one, other))
    for probe in (port, low, high, max(low - 1, 0), min(high + 1, 65535)):
        hits = [value for value, mask in port_masks(low, high) if probe & mask == value]
        assert len(hits) == (1 if low <= probe <= high else 0)
