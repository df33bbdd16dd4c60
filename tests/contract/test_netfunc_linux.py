"""What only real namespaces and a real dnsmasq can get wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from netfunc_bench import AAAA, NOERROR, NXDOMAIN, REFUSED, A, LinuxBench, eventually

from scloud.drivers.netfunc import namespace
from scloud.drivers.netfunc.command import batch, run
from scloud.drivers.netfunc.protocol import HostEntry, SubnetEntry, VpcServiceSpec
from scloud.model.errors import CloudError, ErrorKind

pytestmark = pytest.mark.engine


@pytest.fixture
async def bench() -> AsyncIterator[LinuxBench]:
    made = LinuxBench()
    try:
        yield made
    finally:
        await made.close()


def entry(number: int) -> HostEntry:
    return HostEntry(
        nic=f"nic-{number}",
        hostname=f"web-{number}",
        mac=f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}",
        ip=f"10.7.{number >> 8}.{number & 255}",
        subnet="sub-1",
        local=number < 100,
    )


WEB = entry(10)


def vpc(bench: LinuxBench, *hosts: HostEntry) -> VpcServiceSpec:
    return VpcServiceSpec(
        vpc=bench.vpc(),
        domain="blue.internal",
        port=bench.port(),
        service_mac="02:5c:00:00:00:01",
        mtu=1450,
        subnets=(SubnetEntry(id="sub-1", cidr="10.7.0.0/16", gateway="10.7.0.1", service_ip="10.7.0.2"),),
        hosts=hosts or (WEB,),
    )


async def test_the_namespace_is_wired_as_it_should_be(bench: LinuxBench) -> None:
    spec = vpc(bench)
    await bench.functions.ensure(spec)
    name = bench.namespace(spec.vpc)
    links = {link["ifname"]: link for link in json.loads(await run("ip", "-n", name, "-j", "address"))}
    assert set(links) == {"lo", "svc0"}
    foot = links["svc0"]
    assert (foot["address"], foot["mtu"], foot["operstate"]) == ("02:5c:00:00:00:01", 1450, "UP")
    found = {f"{info['local']}/{info['prefixlen']}" for info in foot["addr_info"]}
    assert found == {"10.7.0.2/16", "169.254.169.254/32"}
    (port,) = json.loads(await run("ip", "-j", "address", "show", "dev", spec.port))
    assert (port["mtu"], port["addr_info"], "UP" in port["flags"]) == (1450, [], True)
    net = f"--net=/run/netns/{name}"
    assert "tx-checksumming: off" in await run("nsenter", net, "ethtool", "-k", "svc0")
    forward = Path("/proc/sys/net/ipv4/ip_forward")
    assert await namespace.inside(name, forward.read_text) == "0\n"


async def test_the_routes_of_rfc_3442(bench: LinuxBench) -> None:
    spec = vpc(bench)
    await bench.functions.ensure(spec)
    guest = await bench.guest(spec, WEB)
    await guest.dhcp()
    assert guest.env["staticroutes"] == "169.254.169.254/32 10.7.0.1 0.0.0.0/0 10.7.0.1"


async def test_the_mtu_comes_unasked(bench: LinuxBench) -> None:
    """Some clients do not ask for it, and would send packets that no tunnel carries."""
    spec = vpc(bench)
    await bench.functions.ensure(spec)
    guest = await bench.guest(spec, WEB)
    assert await guest.dhcp("-o", "-O", "subnet", "-O", "router", "-O", "dns", "-O", "domain", "-O", "hostname")
    assert guest.env["mtu"] == "1450"


async def test_a_guest_cannot_choose_its_name_or_hide_behind_a_client_id(bench: LinuxBench) -> None:
    spec = vpc(bench)
    await bench.functions.ensure(spec)
    guest = await bench.guest(spec, WEB)
    for more in ((), ("-x", "hostname:evil"), ("-C", "-x", "0x3d:00aabbccdd"), ("-F", "evil.blue.internal")):
        lease = await guest.dhcp(*more)
        assert lease is not None and (lease.ip, lease.hostname) == (WEB.ip, "web-10")
    assert await guest.resolve("evil") == await guest.resolve("evil.blue.internal") == set()
    assert await guest.reverse(WEB.ip) == {"web-10.blue.internal"}


async def test_answers_that_resolvers_understand(bench: LinuxBench) -> None:
    """A resolver that asks for both families must not take a missing IPv6 address for a failure."""
    spec = vpc(bench)
    await bench.functions.ensure(spec)
    guest = await bench.guest(spec, WEB)
    await guest.dhcp()
    for name in ("web-10", "web-10.blue.internal"):
        assert await guest.ask(name, A) == (NOERROR, {WEB.ip})
        assert await guest.ask(name, AAAA) == (NOERROR, set())
    for name in ("nobody", "nobody.blue.internal", "99.0.7.10.in-addr.arpa"):
        assert await guest.ask(name, A) == (NXDOMAIN, set())
    assert await guest.ask("example.com", A) == (REFUSED, set())


async def test_a_connection_shows_the_guests_address(bench: LinuxBench) -> None:
    spec = vpc(bench)
    await bench.functions.ensure(spec)
    guest = await bench.guest(spec, WEB)
    await guest.dhcp()
    listener = await bench.functions.listen(spec.vpc, "169.254.169.254", 80)
    with listener, await guest.connect("169.254.169.254", 80):
        theirs, peer = await asyncio.get_running_loop().sock_accept(listener)
        theirs.close()
    assert peer[0] == WEB.ip


async def test_nobody_answers(bench: LinuxBench) -> None:
    spec = vpc(bench)
    await bench.functions.ensure(spec)
    await bench.guest(spec, WEB)
    with pytest.raises(CloudError, match=r"10\.7\.0\.10:22 .* did not answer within 0.2 s") as caught:
        await bench.functions.connect(spec.vpc, WEB.ip, 22, 0.2)
    assert caught.value.kind == ErrorKind.TIMED_OUT


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("harm", ["namespace", "veth", "foot", "reboot"])
async def test_whatever_is_broken_is_mended(bench: LinuxBench, harm: str, restarted: bool) -> None:
    spec = vpc(bench)
    await bench.functions.ensure(spec)
    name = bench.namespace(spec.vpc)
    match harm:
        case "namespace":
            # dnsmasq lives on in a namespace without a name, and with it the veth.
            await run("ip", "netns", "delete", name)
        case "veth":
            await batch([f"link delete {spec.port}"])
        case "foot":
            await batch(["link delete svc0"], name)
        case "reboot":
            await bench.kill_service(spec.vpc)
            await run("ip", "netns", "delete", name)
            (namespace.FOLDER / name).touch()
            assert await bench.functions.vpcs() == []
    if restarted:
        bench.restart()
    await bench.functions.ensure(spec)
    assert await bench.functions.vpcs() == [spec.vpc]
    guest = await bench.guest(spec, WEB)
    assert await guest.dhcp() is not None
    assert await guest.resolve("web-10") == {WEB.ip}


async def test_addresses_are_made_right_when_an_agent_starts(bench: LinuxBench) -> None:
    spec = vpc(bench)
    await bench.functions.ensure(spec)
    changes = ["address delete 10.7.0.2/16 dev svc0", "address add 10.8.0.2/24 dev svc0", "link set svc0 mtu 1000"]
    await batch(changes, bench.namespace(spec.vpc))
    bench.restart()
    await bench.functions.ensure(spec)
    (foot,) = json.loads(await run("ip", "-n", bench.namespace(spec.vpc), "-j", "address", "show", "dev", "svc0"))
    assert {info["local"] for info in foot["addr_info"]} == {"10.7.0.2", "169.254.169.254"}
    assert foot["mtu"] == 1450


async def test_a_configuration_written_by_an_agent_that_then_died_takes_effect(bench: LinuxBench) -> None:
    """Its file says 1400, while dnsmasq still runs with 1450."""
    spec = vpc(bench)
    await bench.functions.ensure(spec)
    file = bench.run_dir / spec.vpc / "dnsmasq.conf"
    file.write_text(file.read_text().replace("1450", "1400"))
    bench.restart()
    await bench.functions.ensure(spec.model_copy(update={"mtu": 1400}))
    lease = await (await bench.guest(spec, WEB)).dhcp()
    assert lease is not None and lease.mtu == 1400


@pytest.mark.parametrize("steps", [1, 3, 6, 10, 15, 25, 40])
async def test_an_ensure_cut_short_anywhere_is_finished_by_the_next(bench: LinuxBench, steps: int) -> None:
    spec = vpc(bench)
    task = asyncio.create_task(bench.functions.ensure(spec))
    for _ in range(steps):
        await asyncio.wait([task], timeout=0.002)
    task.cancel()
    await asyncio.wait([task])
    await bench.functions.ensure(spec)
    guest = await bench.guest(spec, WEB)
    assert await guest.dhcp() is not None
    await bench.functions.remove(spec.vpc)
    assert await bench.functions.vpcs() == []
    assert spec.port not in [name for _, name in socket.if_nameindex()]


async def test_no_thread_stays_in_a_namespace(bench: LinuxBench) -> None:
    spec = vpc(bench)
    await bench.functions.ensure(spec)
    own = Path("/proc/self/ns/net").readlink()
    here = Path("/proc/thread-self/ns/net")
    entered = await namespace.inside(bench.namespace(spec.vpc), here.readlink)
    assert entered != own
    seen = await asyncio.gather(*(asyncio.to_thread(here.readlink) for _ in range(16)))
    assert set(seen) == {own} and here.readlink() == own


async def test_a_folder_that_dnsmasq_cannot_reach_is_named(bench: LinuxBench) -> None:
    spec = vpc(bench)
    bench.folder.chmod(0o700)
    with pytest.raises(CloudError, match=f"chmod o\\+x {bench.folder}$"):
        await bench.functions.ensure(spec)
    bench.folder.chmod(0o711)
    await bench.functions.ensure(spec)


async def test_what_is_no_name_never_reaches_a_file(bench: LinuxBench) -> None:
    for field, value in (("hostname", "a\nb"), ("hostname", "a b"), ("ip", "10.7.0.5 x"), ("mac", "02:00")):
        spec = vpc(bench, WEB.model_copy(update={field: value}))
        with pytest.raises(CloudError) as caught:
            await bench.functions.ensure(spec)
        assert caught.value.kind == ErrorKind.INVALID
        assert await bench.functions.vpcs() == []


async def test_the_thousandth_host_is_cheap(bench: LinuxBench) -> None:
    """No restart, no second look at the wiring; nothing at all is written when nothing is new. Figures are generous."""
    hosts = tuple(entry(number) for number in range(10, 1010))
    spec = vpc(bench, *hosts[:-1])
    await bench.functions.ensure(spec)
    guest = await bench.guest(spec, WEB)
    await guest.dhcp()
    before = await bench.service(spec.vpc)
    files = [bench.run_dir / spec.vpc / name for name in ("names", "hosts", "dnsmasq.conf")]
    stamps = [file.stat().st_mtime_ns for file in files]
    await bench.functions.ensure(spec)
    assert [file.stat().st_mtime_ns for file in files] == stamps
    begin = time.perf_counter()
    await bench.functions.ensure(spec.model_copy(update={"hosts": hosts}))
    assert time.perf_counter() - begin < 1.0
    # The new one is on another node: of the files only the names have changed.
    assert [file.stat().st_mtime_ns == stamp for file, stamp in zip(files, stamps, strict=True)] == [False, True, True]
    await eventually(lambda: guest.resolve(hosts[-1].hostname), {hosts[-1].ip}, within_s=5.0)
    assert await bench.service(spec.vpc) == before
