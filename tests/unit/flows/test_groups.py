"""Security groups: what passes, what is answered, and what a change cuts."""

from __future__ import annotations

import pytest
from flow_world import ALL, OUT, World, rule, small_world

from scloud.flows.packet import ACK, SYN, Ends, Packet, answer_to, echo, icmp_error, tcp, udp


@pytest.fixture
def world() -> World:
    """sg-all may only send; web, far and other have a second group of their own to fill."""
    world = small_world()
    world.group("sg-all", OUT)
    world.group("sg-web")
    world.nic("nic-web", "n1", "vpc-a", "10.0.0.10", "sg-all", "sg-web")
    return world.apply()


def test_without_an_inbound_rule_nothing_comes_in_but_answers(world: World) -> None:
    assert not world.tcp("nic-db", "nic-web", 22)
    assert not world.ping("nic-far", "nic-web")
    world.group("sg-db", rule(9, "inbound"))
    world.nic("nic-db", "n1", "vpc-a", "10.0.0.11", "sg-db")
    world.apply()
    assert world.tcp("nic-web", "nic-db", 22)


def test_without_an_outbound_rule_nothing_goes_out_but_answers(world: World) -> None:
    world.group("sg-db", rule(9, "inbound"))
    world.nic("nic-db", "n1", "vpc-a", "10.0.0.11", "sg-db")
    world.nic("nic-far", "n2", "vpc-a", "10.0.0.12", "sg-all", "sg-web")
    world.group("sg-web", rule(5, "inbound"))
    world.apply()
    assert not world.tcp("nic-db", "nic-far", 22)
    assert world.tcp("nic-far", "nic-db", 22)


def test_a_nic_without_groups_neither_sends_nor_receives(world: World) -> None:
    world.nic("nic-db", "n1", "vpc-a", "10.0.0.11")
    world.group("sg-web", rule(5, "inbound"))
    world.apply()
    assert world.arrived("nic-db", echo(world.ends("nic-db", "nic-web"))) == []
    assert world.arrived("nic-web", echo(world.ends("nic-web", "nic-db"))) == []


def test_a_group_that_the_node_does_not_know_allows_nothing(world: World) -> None:
    world.nic("nic-db", "n1", "vpc-a", "10.0.0.11", "sg-unheard")
    world.apply()
    assert world.arrived("nic-db", echo(world.ends("nic-db", "nic-web"))) == []


@pytest.mark.parametrize(("protocol", "tcp_in", "udp_in", "icmp_in"), [
    ("tcp", True, False, False),
    ("udp", False, True, False),
    ("icmp", False, False, True),
    ("any", True, True, True),
])  # fmt: skip
def test_protocols(world: World, protocol: str, tcp_in: bool, udp_in: bool, icmp_in: bool) -> None:
    world.group("sg-web", rule(5, "inbound", protocol))
    world.apply()
    assert world.tcp("nic-far", "nic-web", 22) is tcp_in
    assert world.udp("nic-far", "nic-web", 22) is udp_in
    assert world.ping("nic-far", "nic-web") is icmp_in


@pytest.mark.parametrize("source", ["nic-db", "nic-far", "nic-other"])
def test_port_ranges_end_where_they_say(world: World, source: str) -> None:
    world.group("sg-web", rule(5, "inbound", "tcp", (1000, 2001)))
    world.apply()
    passed = {
        port for port in (0, 22, 999, 1000, 1001, 1536, 2000, 2001, 2002, 65535) if world.tcp(source, "nic-web", port)
    }
    assert passed == {1000, 1001, 1536, 2000, 2001}


def test_cidrs(world: World) -> None:
    world.group("sg-web", rule(5, "inbound", "any", cidr="10.0.0.8/30"))
    world.apply()
    assert world.ping("nic-db", "nic-web")
    assert not world.ping("nic-far", "nic-web")


def test_outbound_rules_look_at_the_receiver(world: World) -> None:
    world.group("sg-all", rule(3, "inbound"))
    world.group("sg-web", rule(5, "outbound", "tcp", (80, 80), cidr="10.0.0.12/32"))
    world.apply()
    assert world.tcp("nic-web", "nic-far", 80)
    assert not world.tcp("nic-web", "nic-far", 81)
    assert not world.tcp("nic-web", "nic-db", 80)


def test_a_peer_group_is_its_members_of_the_vpc(world: World) -> None:
    world.group("sg-client")
    world.group("sg-web", rule(5, "inbound", "tcp", (80, 80), group="sg-client"))
    world.nic("nic-far", "n2", "vpc-a", "10.0.0.12", "sg-all", "sg-client")
    world.vpc("vpc-b", 7, "10.0.0.0/24")
    world.nic("nic-alien", "n2", "vpc-b", "10.0.0.11", "sg-all", "sg-client")
    world.apply()
    assert world.tcp("nic-far", "nic-web", 80)
    assert not world.tcp("nic-far", "nic-web", 81)
    assert not world.tcp("nic-db", "nic-web", 80), "10.0.0.11 is a member in another VPC only"


def test_each_peer_group_has_its_own_rules(world: World) -> None:
    world.group("sg-admin")
    world.group("sg-client")
    world.group(
        "sg-web",
        rule(5, "inbound", "tcp", (80, 80), group="sg-client"),
        rule(6, "inbound", "tcp", (22, 22), group="sg-admin"),
    )
    world.nic("nic-far", "n2", "vpc-a", "10.0.0.12", "sg-all", "sg-client")
    world.nic("nic-db", "n1", "vpc-a", "10.0.0.11", "sg-admin", "sg-all")
    world.nic("nic-other", "n2", "vpc-a", "10.0.1.10", "sg-all", "sg-client", "sg-admin")
    world.apply()
    passed = {
        (name, port)
        for name in ("nic-far", "nic-db", "nic-other")
        for port in (22, 80)
        if world.tcp(name, "nic-web", port)
    }
    assert passed == {("nic-far", 80), ("nic-db", 22), ("nic-other", 22), ("nic-other", 80)}


def test_a_group_may_name_itself_in_both_directions() -> None:
    world = small_world()
    world.group("sg-self", rule(1, "inbound", group="sg-self"), rule(2, "outbound", group="sg-self"))
    world.nic("nic-web", "n1", "vpc-a", "10.0.0.10", "sg-self")
    world.nic("nic-far", "n2", "vpc-a", "10.0.0.12", "sg-self")
    world.apply()
    assert world.tcp("nic-web", "nic-far", 22)
    assert world.tcp("nic-far", "nic-web", 22)
    assert not world.tcp("nic-web", "nic-db", 22)
    assert not world.tcp("nic-db", "nic-web", 22)


# --- changes on live connections


def _segment(world: World, source: str, target: str, port: int, sport: int = 40000) -> Packet:
    return tcp(world.ends(source, target), sport, port, ACK)


@pytest.mark.parametrize("source", ["nic-db", "nic-far", "nic-other"])
def test_a_rule_taken_away_cuts_its_connections_in_both_directions(world: World, source: str) -> None:
    world.group("sg-web", rule(5, "inbound", "tcp", (22, 22)))
    world.apply()
    journey = world.send(source, tcp(world.ends(source, "nic-web"), 40000, 22))
    answer = answer_to(journey.arrivals[0].packet)
    assert world.arrived("nic-web", answer) == [source]
    world.group("sg-web")
    world.apply()
    assert world.arrived(source, _segment(world, source, "nic-web", 22)) == []
    assert world.arrived("nic-web", answer) == []


def test_a_connection_that_another_rule_allows_lives_on(world: World) -> None:
    world.group("sg-web", rule(5, "inbound", "tcp", (22, 22)), rule(6, "inbound", "tcp", cidr="10.0.0.0/8"))
    world.apply()
    assert world.tcp("nic-far", "nic-web", 22)
    world.group("sg-web", rule(6, "inbound", "tcp", cidr="10.0.0.0/8"))
    world.apply()
    assert world.round_trip("nic-far", "nic-web", _segment(world, "nic-far", "nic-web", 22))
    world.group("sg-web", rule(7, "inbound", "tcp", (22, 22)))
    world.apply()
    assert world.round_trip("nic-far", "nic-web", _segment(world, "nic-far", "nic-web", 22))


def test_a_better_rule_does_not_take_over_a_connection(world: World) -> None:
    world.group("sg-web", rule(6, "inbound", "tcp"))
    world.apply()
    assert world.tcp("nic-far", "nic-web", 22)
    world.group("sg-web", rule(5, "inbound", "tcp"), rule(6, "inbound", "tcp"))
    world.apply()
    journey = world.send("nic-far", _segment(world, "nic-far", "nic-web", 22))
    world.group("sg-web", rule(6, "inbound", "tcp"))
    world.apply()
    assert world.arrived("nic-web", answer_to(journey.arrivals[0].packet)) == ["nic-far"]


def test_where_two_rules_allow_it_the_lower_mark_has_the_connection(world: World) -> None:
    both = (rule(6, "inbound", "tcp"), rule(5, "inbound", "tcp", (22, 22)))
    world.group("sg-web", *both)
    world.apply()
    journey = world.send("nic-far", tcp(world.ends("nic-far", "nic-web"), 40000, 22))
    answer = answer_to(journey.arrivals[0].packet)
    world.group("sg-web", both[1])
    world.apply()
    assert world.arrived("nic-web", answer) == ["nic-far"]
    world.group("sg-web", both[0])
    world.apply()
    assert world.arrived("nic-web", answer) == []


def test_other_connections_are_not_touched(world: World) -> None:
    world.group("sg-web", rule(5, "inbound", "tcp", (22, 22)), rule(6, "inbound", "tcp", (80, 80)))
    world.apply()
    assert world.tcp("nic-far", "nic-web", 22)
    assert world.tcp("nic-far", "nic-web", 80)
    world.group("sg-web", rule(6, "inbound", "tcp", (80, 80)))
    world.apply()
    assert not world.tcp("nic-far", "nic-web", 22)
    assert world.round_trip("nic-far", "nic-web", _segment(world, "nic-far", "nic-web", 80))


def test_the_outbound_rule_cuts_too(world: World) -> None:
    world.group("sg-web", rule(5, "inbound"))
    world.apply()
    journey = world.send("nic-far", udp(world.ends("nic-far", "nic-web"), 4000, 4001))
    answer = answer_to(journey.arrivals[0].packet)
    assert world.arrived("nic-web", answer) == ["nic-far"]
    world.nic("nic-far", "n2", "vpc-a", "10.0.0.12", "sg-none")
    world.apply()
    assert world.arrived("nic-far", udp(world.ends("nic-far", "nic-web"), 4000, 4001)) == []
    assert world.arrived("nic-web", answer) == []


def test_leaving_the_peer_group_cuts(world: World) -> None:
    world.group("sg-client")
    world.group("sg-web", rule(5, "inbound", group="sg-client"))
    world.nic("nic-far", "n2", "vpc-a", "10.0.0.12", "sg-all", "sg-client")
    world.apply()
    assert world.tcp("nic-far", "nic-web", 22)
    world.nic("nic-far", "n2", "vpc-a", "10.0.0.12", "sg-all")
    world.apply()
    assert world.arrived("nic-far", _segment(world, "nic-far", "nic-web", 22)) == []


def test_an_answer_does_not_open_the_way_back(world: World) -> None:
    """web may be answered by db, but db may open nothing to web."""
    world.group("sg-db", rule(9, "inbound"), rule(8, "outbound"))
    world.nic("nic-db", "n1", "vpc-a", "10.0.0.11", "sg-db")
    world.apply()
    assert world.tcp("nic-web", "nic-db", 22)
    assert not world.tcp("nic-db", "nic-web", 22)


# --- ICMP errors, fragments, invalid


@pytest.mark.parametrize("target", ["nic-db", "nic-far"])
def test_errors_about_an_allowed_connection_pass_without_an_icmp_rule(world: World, target: str) -> None:
    world.group("sg-in", rule(9, "inbound", "udp", (5000, 5000)))
    for name in ("nic-db", "nic-far"):
        port = world.ports[name]
        world.nic(name, port.node_id, "vpc-a", port.ip, "sg-in")
    world.apply()
    (arrival,) = world.send("nic-web", udp(world.ends("nic-web", target), 4000, 5000)).arrivals
    back = Ends(world.ports[target].mac, world.ports["nic-web"].mac, world.ports[target].ip, "10.0.0.10")
    assert world.arrived(target, icmp_error(back, arrival.packet)) == ["nic-web"]
    unrelated = arrival.packet.but(udp_src=4001)
    assert world.arrived(target, icmp_error(back, unrelated)) == []
    world.group("sg-in")
    world.apply()
    assert world.arrived(target, icmp_error(back, arrival.packet)) == []


def test_errors_about_an_answer_pass_too(world: World) -> None:
    world.group("sg-web", rule(5, "inbound", "udp", (5000, 5000)))
    world.apply()
    (there,) = world.send("nic-far", udp(world.ends("nic-far", "nic-web"), 4000, 5000)).arrivals
    (back,) = world.send("nic-web", answer_to(there.packet)).arrivals
    error = icmp_error(world.ends("nic-far", "nic-web"), back.packet)
    assert world.arrived("nic-far", error) == ["nic-web"]


@pytest.mark.parametrize("source", ["nic-db", "nic-far"])
def test_fragments_pass_where_their_connection_is_known_and_its_rule_is_there(world: World, source: str) -> None:
    world.group("sg-web", rule(5, "inbound", "udp", (5000, 5000)))
    world.apply()
    whole = udp(world.ends(source, "nic-web"), 4000, 5000)
    piece = whole.but(ip_frag=1)
    assert world.arrived(source, piece) == []
    assert world.round_trip(source, "nic-web", whole)
    assert world.round_trip(source, "nic-web", piece)
    assert world.arrived(source, piece.but(udp_dst=5001)) == []
    world.group("sg-web", rule(6, "inbound", "udp", (5001, 5001)))
    world.apply()
    assert world.arrived(source, piece) == []


def test_fragments_of_protocols_without_ports_need_no_connection(world: World) -> None:
    world.group("sg-web", rule(5, "inbound", "icmp"))
    world.apply()
    assert world.round_trip("nic-far", "nic-web", echo(world.ends("nic-far", "nic-web")).but(ip_frag=1))


def test_an_answer_to_nothing_is_invalid(world: World) -> None:
    world.group("sg-web", rule(5, "inbound"))
    world.apply()
    assert world.arrived("nic-far", tcp(world.ends("nic-far", "nic-web"), 40000, 22, SYN | ACK)) == []


def test_two_groups_with_overlapping_rules_and_a_repeated_group(world: World) -> None:
    world.group("sg-one", rule(5, "inbound", "tcp", (20, 30)), OUT)
    world.group("sg-two", rule(6, "inbound", "tcp", (25, 40)), rule(7, "inbound", "any", cidr=ALL))
    world.nic("nic-web", "n1", "vpc-a", "10.0.0.10", "sg-two", "sg-one", "sg-two")
    world.apply()
    for port in (20, 27, 35, 99):
        assert world.tcp("nic-far", "nic-web", port)


@pytest.fixture
def moving(world: World) -> World:
    """nic-web, which may open connections and takes none but on port 80, has one each way, and migrates to n2."""
    world.group("sg-web", rule(5, "inbound", "tcp", (80, 80)))
    world.group("sg-all", OUT)
    world.group("sg-in", OUT, rule(6, "inbound"))
    world.nic("nic-db", "n1", "vpc-a", "10.0.0.11", "sg-in")
    world.apply()
    assert world.tcp("nic-web", "nic-db", 5432, sport=40001)
    assert world.udp("nic-web", "nic-db", 53, sport=40002)
    assert world.tcp("nic-db", "nic-web", 80, sport=40003)
    return world


def pushed(world: World, source: str, target: str, sport: int, port: int) -> bool:
    """Whether a packet in the middle of a TCP connection arrives, with nothing said in the other direction."""
    return world.arrived(source, tcp(world.ends(source, target), sport, port, ACK)) == [target]


def test_a_migrated_nic_hears_answers_in_its_connections_though_it_is_silent(moving: World) -> None:
    moving.migrate("nic-web", "n2")
    assert pushed(moving, "nic-db", "nic-web", 5432, 40001)
    assert moving.arrived("nic-db", udp(moving.ends("nic-db", "nic-web"), 53, 40002)) == ["nic-web"]
    assert not pushed(moving, "nic-db", "nic-web", 5432, 40009), "there was no such connection"
    assert not pushed(moving, "nic-db", "nic-web", 5433, 40001)
    assert not pushed(moving, "nic-far", "nic-web", 5432, 40001)
    # It answers: from now on the connection is tracked as ever, and ends with its rule.
    assert moving.tcp("nic-web", "nic-db", 5432, sport=40001)
    assert pushed(moving, "nic-db", "nic-web", 5432, 40001)


def test_a_migrated_nic_that_may_open_nothing_speaks_in_connections_that_others_opened(moving: World) -> None:
    moving.migrate("nic-web", "n2")
    moving.nic("nic-web", "n2", "vpc-a", "10.0.0.10", "sg-web")
    moving.apply()
    assert pushed(moving, "nic-web", "nic-db", 80, 40003)
    assert not pushed(moving, "nic-web", "nic-db", 80, 40004)
    assert not pushed(moving, "nic-web", "nic-db", 5432, 40001)
    assert pushed(moving, "nic-db", "nic-web", 40003, 80)


def test_what_a_nic_brings_ends_with_the_rule_that_let_it_begin(moving: World) -> None:
    moving.migrate("nic-web", "n2")
    moving.nic("nic-web", "n2", "vpc-a", "10.0.0.10")
    moving.apply()
    assert not pushed(moving, "nic-db", "nic-web", 5432, 40001)
    moving.nic("nic-web", "n2", "vpc-a", "10.0.0.10", "sg-web")
    moving.apply()
    assert not pushed(moving, "nic-db", "nic-web", 5432, 40001), "it was allowed by a rule of another group"


def test_nothing_is_brought_that_is_not_the_nics_own(moving: World) -> None:
    moving.migrate("nic-web", "n2")
    own = moving.brought["nic-web"][0]
    assert (own.source, own.target_port) == ("10.0.0.10", 5432)
    moving.brought["nic-web"] = (own.model_copy(update={"source": "10.0.0.12"}),)
    moving.apply()
    assert not pushed(moving, "nic-db", "nic-far", 5432, 40001)
    assert not pushed(moving, "nic-db", "nic-web", 5432, 40001)
