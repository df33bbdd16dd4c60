"""What network functions owe the agent and the guests; the same tests on the fake and on namespaces with dnsmasq."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from netfunc_bench import Bench, FakeBench, LinuxBench, eventually

from scloud.drivers.netfunc.fake import FakeLease
from scloud.drivers.netfunc.protocol import HostEntry, SubnetEntry, VpcServiceSpec
from scloud.model.errors import CloudError, ErrorKind

FRONT = SubnetEntry(id="sub-front", cidr="10.7.0.0/24", gateway="10.7.0.1", service_ip="10.7.0.2")
BACK = SubnetEntry(id="sub-back", cidr="10.7.4.0/22", gateway="10.7.4.1", service_ip="10.7.4.2")


def host(name: str, number: int, subnet: SubnetEntry = FRONT, *, local: bool = True, mac: int = 0) -> HostEntry:
    prefix = subnet.cidr.rsplit(".", 1)[0]
    return HostEntry(
        nic=f"nic-{number}",
        hostname=name,
        mac=f"02:00:00:00:00:{mac or number:02x}",
        ip=f"{prefix}.{number}",
        subnet=subnet.id,
        local=local,
    )


WEB, DB = host("web", 10), host("db", 11)


@pytest.fixture(params=["fake", pytest.param("linux", marks=pytest.mark.engine)])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    made: Bench = FakeBench() if request.param == "fake" else LinuxBench()
    try:
        yield made
    finally:
        await made.close()


def vpc(bench: Bench, *hosts: HostEntry, subnets: tuple[SubnetEntry, ...] = (FRONT,)) -> VpcServiceSpec:
    return VpcServiceSpec(
        vpc=bench.vpc(),
        domain="blue.internal",
        port=bench.port(),
        service_mac="02:5c:00:00:00:01",
        mtu=1450,
        subnets=subnets,
        hosts=hosts,
    )


def changed(spec: VpcServiceSpec, **fields: object) -> VpcServiceSpec:
    return spec.model_copy(update=fields)


async def test_a_guest_is_told_its_address_name_and_way_out(bench: Bench) -> None:
    spec = vpc(bench, WEB, DB)
    await bench.functions.ensure(spec)
    guest = await bench.guest(spec, WEB)
    assert await guest.dhcp() == FakeLease(
        ip="10.7.0.10",
        hostname="web",
        cidr="10.7.0.0/24",
        gateway="10.7.0.1",
        dns="10.7.0.2",
        domain="blue.internal",
        mtu=1450,
    )


async def test_names_of_the_vpc_and_nothing_else(bench: Bench) -> None:
    far = host("far", 12, local=False)
    spec = vpc(bench, WEB, DB, host("db", 13), far)
    await bench.functions.ensure(spec)
    guest = await bench.guest(spec, WEB)
    await guest.dhcp()
    assert await guest.resolve("db.blue.internal") == {"10.7.0.11", "10.7.0.13"}
    assert await guest.resolve("far") == {"10.7.0.12"}
    assert await guest.reverse("10.7.0.12") == {"far.blue.internal"}
    for name in ("cache", "cache.blue.internal", "web.green.internal", "example.com"):
        assert await guest.resolve(name) == set()
    assert await guest.reverse("10.7.0.99") == set()


@pytest.mark.parametrize("stranger", [host("far", 12, local=False), host("unknown", 13)])
async def test_only_local_nics_get_an_address(bench: Bench, stranger: HostEntry) -> None:
    spec = vpc(bench, WEB, host("far", 12, local=False))
    await bench.functions.ensure(spec)
    assert await (await bench.guest(spec, stranger)).dhcp() is None


async def test_names_that_are_words_to_the_engines_are_names(bench: Bench) -> None:
    odd = [host(name, 20 + index) for index, name in enumerate(("ignore", "infinite", "a1", "localhost"))]
    spec = vpc(bench, *odd)
    await bench.functions.ensure(spec)
    for entry in odd:
        lease = await (await bench.guest(spec, entry)).dhcp()
        assert lease is not None and (lease.ip, lease.hostname) == (entry.ip, entry.hostname)


async def test_each_subnet_has_its_own_way_out(bench: Bench) -> None:
    inner = host("inner", 40, BACK)
    spec = vpc(bench, WEB, inner, subnets=(FRONT, BACK))
    await bench.functions.ensure(spec)
    guest = await bench.guest(spec, inner)
    lease = await guest.dhcp()
    assert lease is not None
    assert (lease.cidr, lease.gateway, lease.dns) == ("10.7.4.0/22", "10.7.4.1", "10.7.4.2")
    assert await guest.resolve("web") == {"10.7.0.10"}
    front = await (await bench.guest(spec, WEB)).dhcp()
    assert front is not None and front.gateway == "10.7.0.1"


async def test_equal_ranges_side_by_side(bench: Bench) -> None:
    blue = vpc(bench, WEB)
    green = changed(vpc(bench, host("shop", 10), DB), domain="green.internal")
    await asyncio.gather(bench.functions.ensure(blue), bench.functions.ensure(green))
    in_blue, in_green = await bench.guest(blue, WEB), await bench.guest(green, host("shop", 10))
    leases = await asyncio.gather(in_blue.dhcp(), in_green.dhcp())
    assert [(lease.ip, lease.hostname, lease.domain) for lease in leases if lease] == [
        ("10.7.0.10", "web", "blue.internal"),
        ("10.7.0.10", "shop", "green.internal"),
    ]
    assert await in_blue.resolve("db") == set()
    assert await in_green.resolve("db") == {"10.7.0.11"}
    assert await in_blue.reverse("10.7.0.10") == {"web.blue.internal"}
    assert await bench.functions.vpcs() == sorted([blue.vpc, green.vpc])


async def test_hosts_come_and_go_without_an_interruption(bench: Bench) -> None:
    spec = vpc(bench, WEB)
    await bench.functions.ensure(spec)
    guest = await bench.guest(spec, WEB)
    await guest.dhcp()
    before = await bench.service(spec.vpc)

    await bench.functions.ensure(changed(spec, hosts=(WEB, DB)))
    await eventually(lambda: guest.resolve("db"), {"10.7.0.11"})
    other = await bench.guest(spec, DB)
    assert await other.dhcp() is not None

    await bench.functions.ensure(changed(spec, hosts=(WEB,)))
    await eventually(lambda: guest.resolve("db"), set())
    await eventually(lambda: guest.resolve("db.blue.internal"), set())
    await eventually(lambda: guest.reverse("10.7.0.11"), set())
    assert await other.dhcp() is None

    await bench.functions.ensure(changed(spec, hosts=(host("www", 10),)))
    await eventually(lambda: guest.resolve("web"), set())
    await eventually(lambda: guest.reverse("10.7.0.10"), {"www.blue.internal"})
    lease = await guest.dhcp()
    assert lease is not None and lease.hostname == "www"
    assert await bench.service(spec.vpc) == before


async def test_an_address_goes_to_another_nic_at_once(bench: Bench) -> None:
    spec = vpc(bench, WEB)
    await bench.functions.ensure(spec)
    assert await (await bench.guest(spec, WEB)).dhcp() is not None
    heir = host("heir", 10, mac=0x77)
    await bench.functions.ensure(changed(spec, hosts=(heir,)))
    guest = await bench.guest(spec, heir)

    async def leased() -> tuple[str, str] | None:
        lease = await guest.dhcp()
        return (lease.ip, lease.hostname) if lease is not None else None

    await eventually(leased, ("10.7.0.10", "heir"))
    await eventually(lambda: guest.reverse("10.7.0.10"), {"heir.blue.internal"})


async def test_subnets_and_mtu_change(bench: Bench) -> None:
    inner = host("inner", 40, BACK)
    spec = vpc(bench, WEB)
    await bench.functions.ensure(spec)
    first = await bench.guest(spec, WEB)
    assert await first.dhcp() is not None
    moved = changed(spec, subnets=(BACK,), hosts=(inner,), mtu=1400)
    await bench.functions.ensure(moved)
    guest = await bench.guest(moved, inner)
    lease = await guest.dhcp()
    assert lease is not None and (lease.ip, lease.mtu) == (inner.ip, 1400)
    assert await first.dhcp() is None
    assert await guest.resolve("web") == set()


async def test_a_dead_service_is_mended(bench: Bench) -> None:
    spec = vpc(bench, WEB, DB)
    await bench.functions.ensure(spec)
    guest = await bench.guest(spec, WEB)
    await guest.dhcp()
    await bench.kill_service(spec.vpc)
    await bench.functions.ensure(spec)
    assert await guest.resolve("db") == {"10.7.0.11"}
    assert await guest.dhcp() is not None


async def test_a_restarted_agent_interrupts_nothing_and_catches_up(bench: Bench) -> None:
    spec = vpc(bench, WEB)
    await bench.functions.ensure(spec)
    guest = await bench.guest(spec, WEB)
    await guest.dhcp()
    before = await bench.service(spec.vpc)
    bench.restart()
    assert await bench.functions.vpcs() == [spec.vpc]
    await bench.functions.ensure(spec)
    assert await guest.resolve("web") == {"10.7.0.10"}
    bench.restart()
    await bench.functions.ensure(changed(spec, hosts=(DB,)))
    await eventually(lambda: guest.resolve("db"), {"10.7.0.11"})
    await eventually(lambda: guest.resolve("web"), set())
    assert await bench.service(spec.vpc) == before


async def test_guests_reach_what_the_agent_listens_on(bench: Bench) -> None:
    spec = vpc(bench, WEB)
    await bench.functions.ensure(spec)
    guest = await bench.guest(spec, WEB)
    await guest.dhcp()
    listener = await bench.functions.listen(spec.vpc, "169.254.169.254", 80)
    with pytest.raises(CloudError, match=r"169.254.169.254:80") as caught:
        await bench.functions.listen(spec.vpc, "169.254.169.254", 80)
    assert caught.value.kind == ErrorKind.ENGINE

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        writer.close()

    async with await asyncio.start_server(answer, sock=listener):
        reader, writer = await asyncio.open_connection(sock=await guest.connect("169.254.169.254", 80))
        writer.write(b"who am i\n")
        assert await reader.read() == b"WHO AM I\n"
        writer.close()
    again = await bench.functions.listen(spec.vpc, "169.254.169.254", 80)
    again.close()


async def test_the_agent_reaches_guests(bench: Bench) -> None:
    spec = vpc(bench, WEB)
    await bench.functions.ensure(spec)
    guest = await bench.guest(spec, WEB)
    await guest.dhcp()
    with pytest.raises(CloudError, match=r"10\.7\.0\.10:22") as caught:
        await bench.functions.connect(spec.vpc, "10.7.0.10", 22, 5)
    assert caught.value.kind == ErrorKind.UNAVAILABLE
    with await guest.serve(22) as listener, await bench.functions.connect(spec.vpc, "10.7.0.10", 22, 5) as ours:
        loop = asyncio.get_running_loop()
        assert not ours.getblocking()
        theirs, _ = await loop.sock_accept(listener)
        with theirs:
            await loop.sock_sendall(ours, b"ping")
            assert await loop.sock_recv(theirs, 100) == b"ping"


async def test_without_network_functions_there_are_no_sockets(bench: Bench) -> None:
    unknown = bench.vpc()
    for call in (
        bench.functions.listen(unknown, "169.254.169.254", 80),
        bench.functions.connect(unknown, "10.7.0.10", 22, 1),
    ):
        with pytest.raises(CloudError, match=unknown) as caught:
            await call
        assert caught.value.kind == ErrorKind.NOT_FOUND


async def test_removing_works_always_and_ensure_makes_it_again(bench: Bench) -> None:
    spec = vpc(bench, WEB)
    await bench.functions.remove(spec.vpc)
    await bench.functions.ensure(spec)
    bench.restart()
    await bench.functions.remove(spec.vpc)
    await bench.functions.remove(spec.vpc)
    assert await bench.functions.vpcs() == []
    await bench.functions.ensure(spec)
    assert await bench.functions.vpcs() == [spec.vpc]
    assert await (await bench.guest(spec, WEB)).dhcp() is not None
