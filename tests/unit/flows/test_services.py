"""DHCP, DNS, metadata, echo, and the service's own connections: what passes without a security group."""

from __future__ import annotations

import pytest
from flow_world import World, rule, small_world, spoofed

from scloud.flows.packet import ACK, BROADCAST, Ends, Packet, answer_to, echo, icmp_error, mac_text, tcp, udp
from scloud.flows.pipeline import BROADCAST_MAC, GATEWAY_MAC, METADATA_IP, SERVICE_MAC

SERVICE = "10.0.0.2"


@pytest.fixture
def world() -> World:
    """bare has no group at all; web may send everything."""
    world = small_world()
    world.nic("nic-bare", "n1", "vpc-a", "10.0.0.20")
    return world.apply()


def _discover(world: World, name: str) -> Packet:
    return udp(Ends(world.ports[name].mac, BROADCAST_MAC, "0.0.0.0", "255.255.255.255"), 68, 67)


@pytest.mark.parametrize("name", ["nic-bare", "nic-web"])
def test_dhcp_goes_to_the_service_of_the_node_only(world: World, name: str) -> None:
    journey = world.send(name, _discover(world, name))
    assert [(item.node, item.ofport) for item in journey.arrivals] == [("n1", world.service("vpc-a"))]
    assert len(journey.hops) == 1


def test_dhcp_with_a_false_mac_is_dropped(world: World) -> None:
    assert world.arrived("nic-bare", spoofed(_discover(world, "nic-bare"), eth_src="06:00:00:00:99:99")) == []
    assert world.arrived("nic-bare", _discover(world, "nic-bare").but(udp_dst=68, udp_src=67)) == []


def test_dhcp_renewal_and_rebinding(world: World) -> None:
    assert world.arrived("nic-bare", udp(world.ends("nic-bare", SERVICE), 68, 67)) == ["service"]
    bare = world.ports["nic-bare"]
    rebind = udp(Ends(bare.mac, BROADCAST_MAC, bare.ip, "255.255.255.255"), 68, 67)
    assert world.arrived("nic-bare", rebind) == ["service"]


def test_dhcp_answers_to_one_and_to_all_nics_of_the_node(world: World) -> None:
    offer = world.from_service("n1", "vpc-a", SERVICE, "10.0.0.20", udp, 67, 68)
    assert world.receivers(offer) == ["nic-bare"]
    to_all = world.from_service("n1", "vpc-a", SERVICE, "255.255.255.255", udp, 67, 68)
    assert sorted(world.receivers(to_all)) == ["nic-bare", "nic-db", "nic-web"]


@pytest.mark.parametrize("gateway", [False, True])
def test_dns_echo_and_metadata_and_their_answers(world: World, gateway: bool) -> None:
    questions = [
        udp(world.ends("nic-bare", SERVICE), 4000, 53),
        tcp(world.ends("nic-bare", SERVICE), 4000, 53),
        echo(world.ends("nic-bare", SERVICE)),
        tcp(world.ends("nic-bare", METADATA_IP), 4000, 80),
    ]
    for question in questions:
        sent = spoofed(question, eth_dst=GATEWAY_MAC if gateway else SERVICE_MAC)
        journey = world.send("nic-bare", sent)
        assert world.receivers(journey) == ["service"]
        arrival = journey.arrivals[0]
        assert mac_text(arrival.packet["eth_dst"]) == SERVICE_MAC
        back = world.fabric.send("n1", arrival.ofport, answer_to(arrival.packet))
        assert world.receivers(back) == ["nic-bare"]
        assert mac_text(back.arrivals[0].packet["eth_src"]) == SERVICE_MAC


def test_services_of_another_subnet_are_reached_by_the_router(world: World) -> None:
    dns = udp(world.ends("nic-bare", "10.0.1.2"), 4000, 53)
    assert world.arrived("nic-bare", dns) == ["service"]


@pytest.mark.parametrize("name", ["nic-bare", "nic-web"])
@pytest.mark.parametrize("address", [SERVICE, METADATA_IP])
def test_nothing_else_on_the_service_address_is_reached_whatever_the_groups(
    world: World, name: str, address: str
) -> None:
    ends = world.ends(name, address)
    packets = [
        tcp(ends, 4000, 22),
        udp(ends, 4000, 123),
        udp(ends, 4000, 67),
        tcp(ends, 4000, 8080),
        tcp(ends, 53, 999),
    ]
    packets.append(tcp(ends, 4000, 80) if address == SERVICE else udp(ends, 4000, 53))
    packets.append(echo(ends, answer=True))
    for packet in packets:
        assert world.arrived(name, packet) == []


def test_the_service_opens_connections_to_nics_without_a_group(world: World) -> None:
    for name, answers in (("nic-bare", True), ("nic-web", True), ("nic-far", False)):
        journey = world.from_service("n1", "vpc-a", SERVICE, world.ports[name].ip, tcp, 50000, 22)
        assert world.receivers(journey) == ([name] if answers else [])
        if answers:
            answer = answer_to(journey.arrivals[0].packet)
            assert world.arrived(name, answer) == ["service"]
            assert world.arrived(name, answer.but(tcp_dst=50001)) == []
            more = world.from_service("n1", "vpc-a", SERVICE, world.ports[name].ip, tcp, 50000, 22, ACK)
            assert world.receivers(more) == [name]


def test_the_service_may_ping_a_nic_and_hears_its_errors(world: World) -> None:
    ping = world.from_service("n1", "vpc-a", SERVICE, "10.0.0.20", echo, 7)
    assert world.arrived("nic-bare", answer_to(ping.arrivals[0].packet)) == ["service"]
    probe = world.from_service("n1", "vpc-a", SERVICE, "10.0.0.20", udp, 50000, 9)
    error = icmp_error(world.ends("nic-bare", SERVICE), probe.arrivals[0].packet)
    assert world.arrived("nic-bare", error) == ["service"]


def test_the_service_cannot_use_a_nics_address(world: World) -> None:
    stolen = world.from_service("n1", "vpc-a", "10.0.0.10", "10.0.0.20", tcp, 50000, 22)
    assert stolen.arrivals == ()


def test_service_traffic_never_leaves_the_node(world: World) -> None:
    far = world.ports["nic-far"]
    for eth_dst in (far.mac, GATEWAY_MAC, BROADCAST_MAC):
        packet = udp(Ends(SERVICE_MAC, eth_dst, SERVICE, far.ip), 67, 68)
        assert len(world.fabric.send("n1", world.service("vpc-a"), packet).hops) == 1
        assert world.fabric.send("n1", world.service("vpc-a"), packet).arrivals == ()


def test_vpcs_services_are_their_own(world: World) -> None:
    world.vpc("vpc-b", 9, "10.0.0.0/24")
    world.nic("nic-b", "n1", "vpc-b", "10.0.0.20")
    world.apply()
    (arrival,) = world.send("nic-b", udp(world.ends("nic-b", SERVICE), 4000, 53)).arrivals
    assert arrival.ofport == world.service("vpc-b")
    assert world.receivers(world.from_service("n1", "vpc-b", SERVICE, "10.0.0.20", tcp, 50000, 22)) == ["nic-b"]


def test_the_gateway_answers_echo_and_nothing_else(world: World) -> None:
    for address in ("10.0.0.1", "10.0.1.1"):
        journey = world.send("nic-bare", spoofed(echo(world.ends("nic-bare", address), 5), eth_dst=GATEWAY_MAC))
        assert world.receivers(journey) == ["nic-bare"]
        packet = journey.arrivals[0].packet
        assert (packet["icmp_type"], packet["icmp_id"], packet["ip_src"]) == (0, 5, packet["ip_src"])
        assert mac_text(packet["eth_src"]) == GATEWAY_MAC
        assert world.arrived("nic-web", tcp(world.ends("nic-web", address), 4000, 22)) == []


def test_without_a_service_namespace_its_addresses_are_silent() -> None:
    world = small_world()
    world.without_service.add("vpc-a")
    world.apply()
    assert world.arrived("nic-web", _discover(world, "nic-web")) == []
    assert world.arrived("nic-web", udp(world.ends("nic-web", SERVICE), 4000, 53)) == []
    assert world.tcp("nic-web", "nic-far", 22)


def test_a_rule_for_all_does_not_open_dhcp_to_the_neighbours() -> None:
    world = small_world()
    world.group("sg-all", rule(1, "outbound"), rule(2, "inbound"))
    world.apply()
    web = world.ports["nic-web"]
    rogue = udp(Ends(web.mac, BROADCAST_MAC, web.ip, "255.255.255.255"), 67, 68)
    assert rogue["eth_dst"] == BROADCAST
    assert world.arrived("nic-web", rogue) == []
