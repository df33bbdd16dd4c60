"""What every switch driver does: bridge, ports, flows, and the packets that follow from them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import pytest
from switch_rig import Connection, FakeRig, OvsRig, Rig, apply, learn, run, service_name

from flow_world import OUT, rule  # isort: skip
from scloud.flows.compile import Compiler, compile_view
from scloud.flows.ir import Flow, Match
from scloud.flows.pipeline import GATEWAY_MAC, METADATA_IP, SERVICE_MAC
from scloud.flows.text import flow_text
from scloud.model.errors import CloudError, ErrorKind

IN_ALL = rule(2, "inbound")
VNI = 16777215


@pytest.fixture(scope="module")
def engines() -> Iterator[OvsRig]:
    rig = OvsRig()
    try:
        yield rig
    finally:
        rig.close()


@pytest.fixture(params=["fake", pytest.param("ovs", marks=pytest.mark.engine)])
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    rig: Rig = FakeRig() if request.param == "fake" else request.getfixturevalue("engines")
    for switch in rig.switches.values():
        await switch.ensure_bridge()
    yield rig
    for switch in rig.switches.values():
        for port in await switch.ports():
            await switch.remove_port(port.name)
        await switch.replace_flows(())
    if isinstance(rig, OvsRig):
        rig.clear()


@pytest.fixture
async def net(rig: Rig) -> Rig:
    """VPC a, two subnets: web and db on n1, far on n2 and other, in the second subnet, on n2. All may do everything."""
    world = rig.world
    world.vpc("vpc-a", VNI, "10.0.0.0/24", "10.0.1.0/24")
    world.group("sg-all", OUT, IN_ALL)
    world.nic("nic-web", "n1", "vpc-a", "10.0.0.10", "sg-all")
    world.nic("nic-db", "n1", "vpc-a", "10.0.0.11", "sg-all")
    world.nic("nic-far", "n2", "vpc-a", "10.0.0.12", "sg-all")
    world.nic("nic-other", "n2", "vpc-a", "10.0.1.10", "sg-all")
    for nic in world.ports:
        await rig.plug(nic)
    await apply(rig)
    await learn(rig)
    return rig


def _flow(match: tuple[Match, ...], actions: tuple[str, ...], cookie: int) -> Flow:
    return Flow(0, 100, match, actions, cookie)


# --- bridge and ports


async def test_making_the_bridge_again_changes_nothing(rig: Rig) -> None:
    switch = rig.switches["n1"]
    before = await switch.incarnation()
    await switch.replace_flows([_flow((), (), 7)])
    await switch.ensure_bridge()
    assert await switch.incarnation() == before
    assert await switch.flow_owners() == {7: 1}
    assert await switch.ports() == []


async def test_taps_have_their_number_and_owner_and_go_whole(rig: Rig) -> None:
    switch = rig.switches["n1"]
    await switch.add_tap("tapx1", "port/nic-1", 50, 1450)
    await switch.add_tap("tapx2", "port/nic-2", 51, 1450)
    await switch.add_tap("tapx1", "port/nic-1", 50, 1450)
    assert [(port.name, port.owner, port.ofport) for port in await switch.ports()] == [
        ("tapx1", "port/nic-1", 50),
        ("tapx2", "port/nic-2", 51),
    ]
    await switch.remove_port("tapx1")
    await switch.remove_port("tapx1")
    assert [port.name for port in await switch.ports()] == ["tapx2"]
    with pytest.raises(CloudError):
        await switch.add_port("tapx1", "port/nic-1", 50)


async def test_an_existing_device_stays_when_it_is_taken_off(rig: Rig) -> None:
    switch = rig.switches["n1"]
    rig.device("n1", "devx1")
    for _ in range(2):
        await switch.add_port("devx1", "vpc/vpc-1", 60)
        assert [port.ofport for port in await switch.ports()] == [60]
        await switch.remove_port("devx1")


async def test_a_number_that_is_taken_is_refused_and_nothing_stays(rig: Rig) -> None:
    switch = rig.switches["n1"]
    await switch.add_tap("tapx1", "port/nic-1", 50, 1450)
    for number in (50, 1):
        with pytest.raises(CloudError) as caught:
            await switch.add_tap("tapx2", "port/nic-2", number, 1450)
        assert caught.value.kind is ErrorKind.CONFLICT
    assert [port.name for port in await switch.ports()] == ["tapx1"]


async def test_a_device_that_is_not_there_is_an_engine_error_that_names_it(rig: Rig) -> None:
    with pytest.raises(CloudError, match="nothere") as caught:
        await rig.switches["n1"].add_port("nothere", "vpc/vpc-1", 60)
    assert caught.value.kind is ErrorKind.ENGINE


# --- flows


async def test_flows_are_replaced_changed_and_counted_by_owner(rig: Rig) -> None:
    switch = rig.switches["n1"]
    world = rig.world
    world.vpc("vpc-a", VNI, "10.0.0.0/24")
    world.group("sg-all", OUT, rule(5, "inbound", "tcp", (1000, 2001), group="sg-all"))
    world.nic("nic-web", "n1", "vpc-a", "10.0.0.10", "sg-all")
    compiler = Compiler()
    await switch.replace_flows(compiler.update(world.view("n1")).add)
    assert await switch.flow_owners() == Counter(flow.cookie for flow in compiler.flows())
    for step in range(4):
        if step == 2:
            world.group("sg-all", OUT, rule(6, "inbound", "udp", (5, 9), cidr="10.0.0.0/8"))
        world.nic("nic-far", "n2", "vpc-a", f"10.0.0.{20 + step}", *(["sg-all"] if step % 2 else []))
        change = compiler.update(world.view("n1"))
        await switch.change_flows(change.remove, change.add)
        assert await switch.flow_owners() == Counter(flow.cookie for flow in compile_view(world.view("n1")))
    await switch.replace_flows(())
    assert await switch.flow_owners() == {}


async def test_a_change_replaces_the_flow_of_the_same_match_and_forgives_a_missing_one(rig: Rig) -> None:
    switch = rig.switches["n1"]
    match = (Match("in_port", "5"),)
    await switch.change_flows([_flow(match, (), 9)], [_flow(match, ("output:6",), 7)])
    await switch.change_flows((), [_flow(match, ("output:7",), 8)])
    assert await switch.flow_owners() == {8: 1}
    await switch.change_flows([_flow(match, (), 0)], ())
    assert await switch.flow_owners() == {}


async def test_a_restart_is_seen_and_mended(net: Rig) -> None:
    switch = net.switches["n1"]
    before = await switch.incarnation()
    assert await net.ping("nic-web", "10.0.0.12")
    await net.restart("n1")
    assert await switch.incarnation() != before
    await switch.ensure_bridge()
    assert [port.ofport for port in await switch.ports()] == [net.world.numbers["nic-db"], net.world.numbers["nic-web"]]
    assert not await net.ping("nic-web", "10.0.0.12", expect=False)
    await apply(net)
    await learn(net)
    assert await net.ping("nic-web", "10.0.0.12")
    assert await net.ping("nic-db", "10.0.0.10")


async def test_trace_says_which_tables_a_packet_meets(net: Rig) -> None:
    packet = {"in_port": net.world.numbers["nic-web"], "eth_type": "0x0800", "eth_src": 1, "ip_proto": 1}
    fields = {name: f"{value:#014x}" if name == "eth_src" else value for name, value in packet.items()}
    if isinstance(net, OvsRig):
        fields["eth_src"] = "00:00:00:00:00:01"
    text = await net.switches["n1"].trace(fields)
    assert "10. " in text
    assert "No match" in text


# --- packets


@pytest.mark.parametrize("ip", ["10.0.0.11", "10.0.0.12", "10.0.1.10", "10.0.0.1", "10.0.1.1"])
async def test_same_node_other_node_other_subnet_and_gateways(net: Rig, ip: str) -> None:
    assert await net.ping("nic-web", ip)
    if not ip.endswith(".1"):
        connection = await net.connect("nic-web", ip, 22)
        assert connection is not None
        assert await connection.echo(300_000)
        assert await net.udp("nic-web", ip, 5000) == "echoed"


async def test_unknown_addresses_do_not_answer(net: Rig) -> None:
    assert not await net.ping("nic-web", "10.0.0.99", expect=False)
    assert not await net.ping("nic-web", "10.0.1.99", expect=False)


async def test_a_false_address_reaches_nobody(net: Rig) -> None:
    assert await net.ping("nic-web", "10.0.0.11")
    assert not await net.ping("nic-web", "10.0.0.11", spoof="10.0.0.77", expect=False)
    assert not await net.ping("nic-web", "10.0.0.12", spoof="10.0.0.77", expect=False)


async def test_vpcs_with_equal_ranges_are_apart(rig: Rig) -> None:
    world = rig.world
    world.group("sg-all", OUT, IN_ALL)
    for letter, vni in (("a", VNI), ("b", VNI - 1)):
        world.vpc(f"vpc-{letter}", vni, "10.0.0.0/24")
        world.nic(f"nic-{letter}1", "n1", f"vpc-{letter}", "10.0.0.10", "sg-all")
    world.nic("nic-a2", "n2", "vpc-a", "10.0.0.20", "sg-all")
    world.nic("nic-b2", "n2", "vpc-b", "10.0.0.30", "sg-all")
    for nic in world.ports:
        await rig.plug(nic)
    await apply(rig)
    await learn(rig)
    assert await rig.ping("nic-a1", "10.0.0.20")
    assert await rig.ping("nic-b1", "10.0.0.30")
    assert not await rig.ping("nic-a1", "10.0.0.30", expect=False)
    assert not await rig.ping("nic-b1", "10.0.0.20", expect=False)


async def cut(connection: Connection) -> None:
    """What the switch's cache knows of it is gone over just now: a byte may still pass for a moment, but no more."""
    deadline = time.monotonic() + 5.0
    while await connection.echo():
        assert time.monotonic() < deadline, "it goes on"


@pytest.mark.parametrize("ip", ["10.0.0.11", "10.0.0.12", "10.0.1.10"])
async def test_groups_changed_live_cut_what_they_allowed_and_nothing_else(net: Rig, ip: str) -> None:
    world = net.world
    target = next(name for name, port in world.ports.items() if port.ip == ip)
    port = world.ports[target]
    ssh, web = rule(5, "inbound", "tcp", (22, 22)), rule(6, "inbound", "tcp", (80, 80), group="sg-all")
    world.group("sg-in", ssh, web)
    world.nic(target, port.node_id, "vpc-a", ip, "sg-in")
    await apply(net)
    assert not await net.ping("nic-web", ip, expect=False)
    to_ssh, to_web = await net.connect("nic-web", ip, 22), await net.connect("nic-web", ip, 80)
    assert to_ssh is not None and to_web is not None
    assert await to_ssh.echo() and await to_web.echo()
    assert await net.connect("nic-web", ip, 5000, expect=False) is None

    world.group("sg-in", web)
    await apply(net)
    await cut(to_ssh)
    assert await to_web.echo()
    assert await net.connect("nic-web", ip, 22, expect=False) is None

    world.group("sg-in", web, rule(7, "inbound", "tcp", cidr="10.0.0.0/16"))
    await apply(net)
    again = await net.connect("nic-web", ip, 22)
    assert again is not None
    assert await again.echo() and await to_web.echo()

    world.group("sg-in", rule(7, "inbound", "tcp", cidr="10.0.0.0/16"))
    await apply(net)
    assert await to_web.echo(), "another rule allows it"
    world.group("sg-all", IN_ALL)
    await apply(net)
    await cut(to_web)  # the sender may not send any more


@pytest.mark.parametrize("ip", ["10.0.0.11", "10.0.0.12"])
async def test_connections_that_a_nic_brings_from_another_zone_go_on_whoever_speaks_first(net: Rig, ip: str) -> None:
    """A nic that migrates has another zone, which has never seen its connections."""
    world, switch = net.world, net.switches["n1"]
    other = next(name for name, port in world.ports.items() if port.ip == ip)
    world.group("sg-out", rule(3, "outbound"))
    world.group("sg-ssh", rule(4, "inbound", "tcp", (22, 22)))
    world.nic("nic-web", "n1", "vpc-a", "10.0.0.10", "sg-out", "sg-ssh")
    await apply(net)
    opened = await net.connect("nic-web", ip, 5000)
    taken = await net.connect(other, "10.0.0.10", 22)
    assert opened is not None and taken is not None
    assert await opened.echo() and await taken.echo()
    known = await switch.connections(world.zone("nic-web"))
    assert {(item.source, item.target, item.target_port, item.mark) for item in known} == {
        ("10.0.0.10", ip, 5000, 3),
        (ip, "10.0.0.10", 22, 4),
    }
    world.group("sg-out")  # who may open nothing: it speaks in what others have opened
    world.zones["nic-web"] = 900
    world.brought["nic-web"] = tuple(known)
    await apply(net)
    assert await switch.connections(900) == []
    assert await taken.pushed("nic-web")

    world.group("sg-out", rule(3, "outbound"))
    world.group("sg-ssh")
    world.zones["nic-web"] = 901
    await apply(net)
    assert await opened.pushed(other)
    assert await opened.echo()
    assert [(item.target_port, item.mark) for item in await switch.connections(901)] == [(5000, 3)]


async def test_a_nic_without_groups_is_alone(net: Rig) -> None:
    net.world.nic("nic-db", "n1", "vpc-a", "10.0.0.11")
    await apply(net)
    assert not await net.ping("nic-web", "10.0.0.11", expect=False)
    assert not await net.ping("nic-db", "10.0.0.10", expect=False)
    assert await net.ping("nic-db", "10.0.0.1")


@pytest.mark.parametrize("ip", ["10.0.0.11", "10.0.0.12", "10.0.1.10"])
async def test_port_unreachable_comes_back_without_an_icmp_rule(net: Rig, ip: str) -> None:
    net.world.group("sg-all", OUT, rule(5, "inbound", "udp"))
    await apply(net)
    assert await net.udp("nic-web", ip, 6000, listening=False) == "refused"
    assert await net.udp("nic-web", ip, 5000) == "echoed"
    assert not await net.ping("nic-web", ip, expect=False)


async def test_services_reach_and_are_reached_without_groups_on_their_node_only(net: Rig) -> None:
    net.world.nic("nic-db", "n1", "vpc-a", "10.0.0.11")
    await net.plug_service("n1", "vpc-a")
    await apply(net)
    for nic in ("nic-db", "nic-web"):
        assert await net.udp(nic, "10.0.0.2", 53) == "echoed"
        assert await net.ping(nic, "10.0.0.2")
        metadata = await net.connect(nic, METADATA_IP, 80)
        assert metadata is not None
        assert await metadata.echo(100_000)
        for address, port in (("10.0.0.2", 22), ("10.0.0.2", 80), (METADATA_IP, 22)):
            assert await net.connect(nic, address, port, expect=False) is None
    service = service_name("n1", "vpc-a")
    login = await net.connect(service, "10.0.0.11", 22)
    assert login is not None
    assert await login.echo(100_000)
    assert await net.ping(service, "10.0.0.10")
    assert await net.connect(service, "10.0.0.12", 22, expect=False) is None


async def test_a_guest_behind_a_tap_gets_arp_answers(net: Rig) -> None:
    net.world.nic("nic-tap", "n1", "vpc-a", "10.0.0.30", "sg-all")
    port = net.world.ports["nic-tap"]
    await net.switches["n1"].add_tap("nic-tap", "port/nic-tap", net.world.numbers["nic-tap"], 1450)
    await apply(net)

    async def ask(target: str, mac: str = port.mac) -> str | None:
        return await net.tap_arp("n1", "nic-tap", mac, port.ip, target)

    assert await ask("10.0.0.1") == GATEWAY_MAC
    assert await ask("10.0.0.2") == SERVICE_MAC
    assert await ask("10.0.0.12") == net.world.ports["nic-far"].mac
    assert await ask("10.0.0.99") is None
    assert await ask("10.0.0.1", mac="06:00:00:00:99:99") is None


async def test_a_peer_that_does_not_answer_is_no_error(rig: Rig) -> None:
    await rig.switches["n1"].learn_peer("172.31.0.77")
    await rig.switches["n1"].learn_peer("172.31.0.78", "02:5c:ac:1f:00:4e")


# --- the real one alone


@pytest.mark.engine
async def test_a_bundle_with_a_bad_flow_changes_nothing(engines: OvsRig) -> None:
    switch = engines.switches["n1"]
    await switch.ensure_bridge()
    await switch.replace_flows([_flow((), (), 7)])
    good = _flow((Match("in_port", "5"),), ("output:6",), 8)
    bad = Flow(0, 100, (Match("in_port", "6"),), ("goto_table:0",), 8)
    for change in (switch.change_flows([_flow((), (), 7)], [good, bad]), switch.replace_flows([good, bad])):
        with pytest.raises(CloudError) as caught:
            await change
        assert caught.value.kind is ErrorKind.ENGINE
        assert await switch.flow_owners() == {7: 1}
    await switch.replace_flows(())


_ALIASES = {
    "eth_src": {"dl_src"},
    "eth_dst": {"dl_dst"},
    "eth_type": {"ip", "arp", "tcp", "udp", "icmp"},
    "ip_proto": {"tcp", "udp", "icmp"},
    "ip_src": {"nw_src"},
    "ip_dst": {"nw_dst"},
    "ip_frag": {"nw_frag"},
    "tcp_src": {"tp_src"},
    "tcp_dst": {"tp_dst"},
    "udp_src": {"tp_src"},
    "udp_dst": {"tp_dst"},
    "xreg2": {"reg4", "reg5"},
    "xreg3": {"reg6", "reg7"},
}
_TOGETHER = {"xreg2", "xreg3"}


@pytest.mark.engine
async def test_no_field_of_a_match_is_dropped_on_the_way(engines: OvsRig) -> None:
    """Open vSwitch silently leaves out a field that lacks what it depends on; such a flow would match too much."""
    world = engines.world
    world.vpc("vpc-a", VNI, "10.0.0.0/24", "10.0.1.0/24")
    world.group(
        "sg-all",
        OUT,
        rule(2, "inbound", "tcp", (1000, 2001), group="sg-all"),
        rule(3, "outbound", "udp", (53, 53), cidr="10.0.0.0/8"),
        rule(4, "inbound", "icmp"),
    )
    world.nic("nic-web", "n1", "vpc-a", "10.0.0.10", "sg-all")
    world.nic("nic-far", "n2", "vpc-a", "10.0.0.12", "sg-all")
    flows = compile_view(world.view("n1"))
    path = engines.root / "flows"
    path.write_text("".join(f"{flow_text(flow)}\n" for flow in flows))
    parsed = [
        line.partition("ADD")[2]
        for line in run("ovs-ofctl", "-O", "OpenFlow15", "parse-flows", str(path)).splitlines()
        if "ADD" in line
    ]
    assert len(parsed) == len(flows)
    for flow, line in zip(flows, parsed, strict=True):
        match = line.partition(" actions=")[0].replace(" ", ",")
        names = {word.partition("=")[0] for word in match.split(",")}
        for field in flow.match:
            known = _ALIASES.get(field.name, {field.name})
            assert known <= names if field.name in _TOGETHER else known & names, (field, line)


@pytest.mark.engine
async def test_settings_that_were_changed_by_hand_are_mended(engines: OvsRig) -> None:
    node, switch = engines.nodes["n1"], engines.switches["n1"]
    await switch.ensure_bridge()
    run(*node.enter, "ovs-vsctl", "set", "bridge", "br-int", "fail_mode=standalone")
    run(*node.enter, "ovs-vsctl", "set", "interface", "vxlan0", "options:remote_ip=10.9.9.9")
    run(*node.enter, "ip", "address", "flush", "dev", "br-phy")
    await switch.ensure_bridge()
    assert run(*node.enter, "ovs-vsctl", "get", "bridge", "br-int", "fail_mode").strip() == "secure"
    assert "remote_ip=flow" in run(*node.enter, "ovs-vsctl", "get", "interface", "vxlan0", "options")
    assert "172.31.0.11/24" in run(*node.enter, "ip", "address", "show", "dev", "br-phy")


@pytest.mark.engine
async def test_a_bridge_made_anew_is_another_incarnation(engines: OvsRig) -> None:
    node, switch = engines.nodes["n2"], engines.switches["n2"]
    await switch.ensure_bridge()
    before = await switch.incarnation()
    run(*node.enter, "ovs-vsctl", "del-br", "br-int")
    with pytest.raises(CloudError, match="br-int"):
        await switch.incarnation()
    await switch.ensure_bridge()
    assert await switch.incarnation() != before


@pytest.mark.engine
async def test_a_dead_daemon_is_an_error_within_its_time(engines: OvsRig) -> None:
    node, switch = engines.nodes["n2"], engines.switches["n2"]
    await switch.ensure_bridge()
    node.kill_switch()
    try:
        for call in (switch.incarnation(), switch.flow_owners(), switch.replace_flows(())):
            with pytest.raises(CloudError):
                await call
    finally:
        node.start_switch()
    await switch.ensure_bridge()


@pytest.mark.engine
async def test_without_an_underlay_device_the_tunnel_address_is_there_alone(engines: OvsRig) -> None:
    node = engines.nodes["n1"]
    full = engines.switch(node)
    run(*node.enter, "ovs-vsctl", "--if-exists", "del-br", "br-phy")
    config = full._config.model_copy(update={"underlay_device": None, "underlay_address": None})
    alone = type(full)(config)
    try:
        await alone.ensure_bridge()
        await alone.ensure_bridge()
        assert "172.31.0.11/32" in run(*node.enter, "ip", "address", "show", "dev", "br-phy")
        assert run(*node.enter, "ovs-vsctl", "list-ports", "br-phy").strip() == ""
    finally:
        run(*node.enter, "ovs-vsctl", "--if-exists", "del-br", "br-phy")
        await full.ensure_bridge()


@pytest.mark.engine
async def test_a_learned_peer_is_known_to_the_tunnels(engines: OvsRig) -> None:
    node, switch = engines.nodes["n1"], engines.switches["n1"]
    for other in engines.switches.values():
        await other.ensure_bridge()
    run(*node.enter, "ovs-appctl", "tnl/neigh/flush")
    await switch.learn_peer("172.31.0.12")
    mac = run(*engines.nodes["n2"].enter, "cat", "/sys/class/net/br-phy/address").strip()
    known = [line.split()[:2] for line in run(*node.enter, "ovs-appctl", "tnl/neigh/show").splitlines()]
    assert ["172.31.0.12", mac] in known


@pytest.mark.engine
async def test_large_datagrams_pass_in_pieces(engines: OvsRig) -> None:
    world = engines.world
    world.vpc("vpc-a", VNI, "10.0.0.0/24")
    world.group("sg-udp", OUT, rule(5, "inbound", "udp", (5000, 5000)))
    world.nic("nic-web", "n1", "vpc-a", "10.0.0.10", "sg-udp")
    world.nic("nic-db", "n1", "vpc-a", "10.0.0.11", "sg-udp")
    world.nic("nic-far", "n2", "vpc-a", "10.0.0.12", "sg-udp")
    try:
        for switch in engines.switches.values():
            await switch.ensure_bridge()
        for nic in world.ports:
            await engines.plug(nic)
        await apply(engines)
        await learn(engines)
        for ip in ("10.0.0.11", "10.0.0.12"):
            assert await engines.udp("nic-web", ip, 5000, sizes=(10, 4000, 1400, 9000)) == "echoed"
    finally:
        for switch in engines.switches.values():
            for port in await switch.ports():
                await switch.remove_port(port.name)
            await switch.replace_flows(())
        engines.clear()
