"""Who gets a packet: L2, L3, tunnels, ARP, and what is dropped."""

from __future__ import annotations

import pytest
from flow_world import TUNNEL, World, small_world, spoofed

from scloud.flows.packet import Packet, arp_request, echo, ip, ip_text, mac, mac_text, tcp, udp
from scloud.flows.pipeline import GATEWAY_MAC, METADATA_IP, SERVICE_MAC, Table


@pytest.fixture
def world() -> World:
    return small_world()


@pytest.mark.parametrize("target", ["nic-db", "nic-far", "nic-other"])
def test_every_nic_of_the_vpc_is_reached_and_answers(world: World, target: str) -> None:
    assert world.tcp("nic-web", target, 22)
    assert world.udp("nic-web", target, 5000)
    assert world.ping("nic-web", target)


def test_between_nodes_the_packet_is_tunnelled_once_with_the_vni(world: World) -> None:
    journey = world.send("nic-web", echo(world.ends("nic-web", "nic-far")))
    (_, out) = journey.hops[0].account.outputs[0]
    assert (out["tun_id"], ip_text(out["tun_dst"])) == (16777215, "172.31.0.12")
    assert [hop.node for hop in journey.hops] == ["n1", "n2"]


def test_on_one_node_nothing_goes_to_the_tunnel(world: World) -> None:
    journey = world.send("nic-web", echo(world.ends("nic-web", "nic-db")))
    assert journey.hops[0].account.ports() == [world.numbers["nic-db"]]


def test_between_subnets_the_packet_loses_a_hop_and_comes_from_the_gateway(world: World) -> None:
    (arrival,) = world.send("nic-web", echo(world.ends("nic-web", "nic-other"))).arrivals
    assert arrival.packet["nw_ttl"] == 63
    assert mac_text(arrival.packet["eth_src"]) == GATEWAY_MAC
    assert mac_text(arrival.packet["eth_dst"]) == world.ports["nic-other"].mac


@pytest.mark.parametrize("ttl", [0, 1])
def test_a_packet_without_hops_left_is_not_routed_but_switched(world: World, ttl: int) -> None:
    assert world.arrived("nic-web", echo(world.ends("nic-web", "nic-other")).but(nw_ttl=ttl)) == []
    assert world.arrived("nic-web", echo(world.ends("nic-web", "nic-db")).but(nw_ttl=ttl)) == ["nic-db"]


def test_unknown_addresses_behind_the_router_are_dropped_by_it(world: World) -> None:
    journey = world.send("nic-web", echo(world.ends("nic-web", "10.0.1.77")))
    assert journey.arrivals == ()
    assert journey.hops[0].account.lookups[-1].table is Table.L3


@pytest.mark.parametrize(
    "eth_dst", ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:fb", "06:99:99:99:99:99", "33:33:00:00:00:01"]
)
def test_broadcast_multicast_and_unknown_unicast_go_nowhere(world: World, eth_dst: str) -> None:
    packet = spoofed(udp(world.ends("nic-web", "nic-db"), 5353, 5353), eth_dst=eth_dst)
    assert world.arrived("nic-web", packet) == []


def test_ipv6_and_other_ethertypes_are_dropped(world: World) -> None:
    for eth_type in (0x86DD, 0x88CC, 0x8863):
        packet = Packet(
            {
                "eth_src": mac(world.ports["nic-web"].mac),
                "eth_dst": mac(world.ports["nic-db"].mac),
                "eth_type": eth_type,
            }
        )
        assert world.arrived("nic-web", packet) == []


def test_vlan_tagged_packets_are_dropped(world: World) -> None:
    packet = echo(world.ends("nic-web", "nic-db"))
    assert world.arrived("nic-web", packet) == ["nic-db"]
    for tag in (0x1005, 0x1000, 0x1FFF, 0xF064):
        assert world.arrived("nic-web", packet.but(vlan_tci=tag)) == []


def test_a_port_nobody_knows_gets_nothing_through(world: World) -> None:
    assert world.fabric.send("n1", 777, echo(world.ends("nic-web", "nic-db"))).arrivals == ()


# --- ARP


@pytest.mark.parametrize(
    ("address", "answer"),
    [
        ("10.0.0.11", "nic-db"),
        ("10.0.0.12", "nic-far"),
        ("10.0.0.1", GATEWAY_MAC),
        ("10.0.1.1", GATEWAY_MAC),
        ("10.0.0.2", SERVICE_MAC),
        (METADATA_IP, SERVICE_MAC),
    ],
)
def test_arp_is_answered_on_the_asking_node(world: World, address: str, answer: str) -> None:
    nic = world.ports["nic-web"]
    journey = world.send("nic-web", arp_request(nic.mac, nic.ip, address))
    assert len(journey.hops) == 1
    assert world.receivers(journey) == ["nic-web"]
    packet = journey.arrivals[0].packet
    expected = world.ports[answer].mac if answer in world.ports else answer
    assert packet["arp_op"] == 2
    assert mac_text(packet["arp_sha"]) == mac_text(packet["eth_src"]) == expected
    assert (ip_text(packet["arp_spa"]), ip_text(packet["arp_tpa"])) == (address, nic.ip)
    assert mac_text(packet["arp_tha"]) == mac_text(packet["eth_dst"]) == nic.mac


def test_arp_for_what_nobody_has_and_for_oneself_gets_no_answer(world: World) -> None:
    nic = world.ports["nic-web"]
    for address in ("10.0.0.99", nic.ip):
        assert world.arrived("nic-web", arp_request(nic.mac, nic.ip, address)) == []
    assert world.arrived("nic-web", arp_request(nic.mac, "0.0.0.0", nic.ip)) == []


def test_a_probe_for_a_taken_address_is_answered(world: World) -> None:
    nic = world.ports["nic-web"]
    assert world.arrived("nic-web", arp_request(nic.mac, "0.0.0.0", "10.0.0.11")) == ["nic-web"]


def test_arp_answers_of_nics_reach_nobody(world: World) -> None:
    nic = world.ports["nic-web"]
    lie = arp_request(nic.mac, nic.ip, "10.0.0.11").but(arp_op=2, eth_dst=mac(world.ports["nic-db"].mac))
    assert world.arrived("nic-web", lie) == []


# --- spoofing


def test_spoofed_sources_are_dropped(world: World) -> None:
    honest = echo(world.ends("nic-web", "nic-db"))
    assert world.arrived("nic-web", honest) == ["nic-db"]
    assert world.arrived("nic-web", spoofed(honest, eth_src=world.ports["nic-far"].mac)) == []
    assert world.arrived("nic-web", spoofed(honest, ip_src="10.0.0.12")) == []
    assert world.arrived("nic-web", spoofed(honest, eth_src=GATEWAY_MAC)) == []


def test_spoofed_arp_is_not_answered(world: World) -> None:
    nic = world.ports["nic-web"]
    honest = arp_request(nic.mac, nic.ip, "10.0.0.11")
    other = world.ports["nic-far"]
    assert world.arrived("nic-web", honest) == ["nic-web"]
    assert world.arrived("nic-web", spoofed(honest, arp_spa=other.ip)) == []
    assert world.arrived("nic-web", spoofed(honest, arp_sha=other.mac)) == []
    assert world.arrived("nic-web", spoofed(honest, eth_src=other.mac)) == []


# --- the tunnel


def _by_tunnel(world: World, packet: Packet, vni: int = 16777215, peer: str = "172.31.0.12") -> list[int]:
    account = world.fabric.switches["n1"].receive(TUNNEL, packet, tun_id=vni, tun_src=peer)
    assert account.outputs or account.lookups[-1].dropped, "what is not delivered is dropped by a table, not by luck"
    return account.ports()


def test_the_tunnel_is_heard_from_known_peers_with_known_vnis_only(world: World) -> None:
    packet = tcp(world.ends("nic-far", "nic-web"), 40000, 22)
    assert _by_tunnel(world, packet) == [world.numbers["nic-web"]]
    assert _by_tunnel(world, packet, vni=5) == []
    assert _by_tunnel(world, packet, peer="172.31.0.99") == []


def test_what_came_by_a_tunnel_is_never_tunnelled_or_routed_again(world: World) -> None:
    assert _by_tunnel(world, tcp(world.ends("nic-far", "nic-other"), 40000, 22)) == []
    to_other = spoofed(tcp(world.ends("nic-far", "nic-web"), 40000, 22), eth_dst=world.ports["nic-other"].mac)
    assert _by_tunnel(world, to_other) == []
    routed = spoofed(tcp(world.ends("nic-far", "nic-web"), 40000, 22), eth_dst=GATEWAY_MAC)
    assert _by_tunnel(world, routed) == []


def test_arp_and_service_traffic_by_the_tunnel_is_dropped(world: World) -> None:
    far = world.ports["nic-far"]
    assert _by_tunnel(world, arp_request(far.mac, far.ip, "10.0.0.10")) == []
    dns = spoofed(udp(world.ends("nic-far", "nic-web"), 4000, 53), ip_dst="10.0.0.2", eth_dst=SERVICE_MAC)
    assert _by_tunnel(world, dns) == []


def test_a_node_that_lost_its_last_nic_of_the_vpc_is_heard_no_more(world: World) -> None:
    packet = tcp(world.ends("nic-far", "nic-web"), 40000, 22)
    world.nic("nic-far", "n1", "vpc-a", "10.0.0.12", "sg-all")
    del world.ports["nic-other"]
    world.apply()
    assert _by_tunnel(world, packet) == []


# --- what produces nothing


def test_absent_ports_and_ports_without_a_place_are_unknown(world: World) -> None:
    world.nic("nic-db", "n1", "vpc-a", "10.0.0.11", "sg-all", absent=True)
    world.nic("nic-far", "n2", "vpc-a", "10.0.0.12", "sg-all", tunnel_ip=None)
    packets = [echo(world.ends("nic-web", name)) for name in ("nic-db", "nic-far")]
    world.apply()
    nic = world.ports["nic-web"]
    for name, packet in zip(("nic-db", "nic-far"), packets, strict=True):
        assert world.arrived("nic-web", packet) == []
        assert world.arrived("nic-web", arp_request(nic.mac, nic.ip, world.ports[name].ip)) == []


def test_vpcs_with_equal_ranges_do_not_meet() -> None:
    world = World()
    for count in (1, 2):
        world.vpc(f"vpc-{count}", count, "10.0.0.0/24")
        world.nic(f"nic-a{count}", "n1", f"vpc-{count}", "10.0.0.10", "sg-all")
        world.nic(f"nic-b{count}", "n2", f"vpc-{count}", "10.0.0.11", "sg-all")
    world.group("sg-all", small_world().groups["sg-all"].rules[0], small_world().groups["sg-all"].rules[1])
    world.apply()
    for count in (1, 2):
        assert world.ping(f"nic-a{count}", f"nic-b{count}")
    into_other = spoofed(echo(world.ends("nic-a1", "nic-b1")), eth_dst=world.ports["nic-b2"].mac)
    assert world.arrived("nic-a1", into_other) == []


def test_of_two_nics_with_one_address_the_later_one_has_it(world: World) -> None:
    world.nic("nic-zz", "n2", "vpc-a", "10.0.0.11", "sg-all")
    world.nic("nic-db", "n2", "vpc-a", "10.0.0.11", "sg-all")
    world.apply()
    nic = world.ports["nic-web"]
    (arrival,) = world.send("nic-web", arp_request(nic.mac, nic.ip, "10.0.0.11")).arrivals
    assert arrival.packet["arp_sha"] == mac(world.ports["nic-zz"].mac)
    assert arrival.packet["arp_spa"] == ip("10.0.0.11")


def test_while_a_vm_migrates_both_nodes_get_what_is_for_it_and_nobody_gets_it_twice(world: World) -> None:
    world.nodes["n3"] = "172.31.0.13"
    far = world.ports["nic-far"]
    world.ports["nic-far"] = far.model_copy(update={"second": ("n3", "172.31.0.13")})
    world.apply()
    journey = world.send("nic-web", echo(world.ends("nic-web", "nic-far")))
    assert sorted(ip_text(out["tun_dst"]) for _, out in journey.hops[0].account.outputs) == [
        "172.31.0.12",
        "172.31.0.13",
    ]
    # One that is on the node it leaves reaches it there, and where it goes.
    web = world.ports["nic-web"]
    world.ports["nic-web"] = web.model_copy(update={"second": ("n2", "172.31.0.12")})
    world.apply()
    journey = world.send("nic-db", echo(world.ends("nic-db", "nic-web")))
    outputs = [(port, out.fields.get("tun_dst")) for port, out in journey.hops[0].account.outputs]
    assert sorted(port for port, _ in outputs) == sorted([TUNNEL, world.numbers["nic-web"]])
    assert [hop.node for hop in journey.hops] == ["n1", "n2"], "what came by a tunnel is not tunnelled again"
