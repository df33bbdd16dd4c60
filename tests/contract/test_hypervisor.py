"""What every hypervisor owes the agent; the same tests on the fake and on QEMU under libvirt."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

import pytest
from hypervisor_rig import Console, Rig, alive, kill_and_wait

from scloud.drivers.hypervisor.fake import FakeHost, FakeHypervisor
from scloud.drivers.hypervisor.libvirt import LibvirtHypervisor
from scloud.drivers.hypervisor.protocol import (
    DiskSource,
    DomainEvent,
    DomainFacts,
    DomainSpec,
    Hypervisor,
    NicDevice,
)
from scloud.drivers.storage.place import FilePlace
from scloud.images import micro
from scloud.model.errors import CloudError, ErrorKind

VM = "vm-0123456789abcdef"
SYSTEM = "dsk-0123456789abcdef"
DATA = "dsk-0123456789abcdeg"
NIC = "nic-0123456789abcdef"
SECOND_NIC = "nic-0123456789abcdeg"


class Bench(Protocol):
    """A driver, the machine under it, and a hand on its guests."""

    def driver(self) -> Hypervisor: ...
    def disk(self, disk: str) -> DiskSource: ...
    def nic(self, nic: str) -> NicDevice: ...
    def spec(self, vm: str = VM) -> DomainSpec: ...
    async def booted(self, vm: str = VM) -> None: ...
    async def guest_poweroff(self, vm: str = VM) -> None: ...
    async def crash(self, facts: DomainFacts) -> None: ...
    def engine_dies(self) -> None: ...
    def engine_returns(self) -> None: ...
    def engine_hangs(self) -> None: ...
    def engine_goes_on(self) -> None: ...
    async def foreign_domain(self) -> None: ...
    def clean(self) -> None: ...


def make_spec(bench: Bench, vm: str, folder: Path) -> DomainSpec:
    return DomainSpec(
        vm=vm,
        name="web-1",
        cpus=1,
        max_cpus=3,
        memory_mib=192,
        max_memory_mib=1024,
        disks=(bench.disk(SYSTEM if vm == VM else f"dsk-of-{vm}"),),
        nics=(bench.nic(NIC if vm == VM else f"nic-of-{vm}"),),
        console_log=folder / f"{vm}.log",
        console_socket=folder / f"{vm}.sock",
    )


class FakeBench:
    def __init__(self) -> None:
        self.host = FakeHost(start_s=0.01, boot_s=0.05, react_s=0.02, call_timeout_s=0.3)

    def driver(self) -> Hypervisor:
        return FakeHypervisor(self.host)

    def disk(self, disk: str) -> DiskSource:
        return DiskSource(disk=disk, place=FilePlace(path=Path(f"/disks/{disk}")))

    def nic(self, nic: str) -> NicDevice:
        return NicDevice(nic=nic, tap="tap0", mac="52:54:00:00:00:01", mtu=1450, offload=False)

    def spec(self, vm: str = VM) -> DomainSpec:
        return make_spec(self, vm, Path("/run"))

    async def booted(self, vm: str = VM) -> None:
        await asyncio.sleep(0.06)

    async def guest_poweroff(self, vm: str = VM) -> None:
        self.host.guest_poweroff(vm)

    async def crash(self, facts: DomainFacts) -> None:
        self.host.crash(facts.vm)

    def engine_dies(self) -> None:
        self.host.engine_dies()

    def engine_returns(self) -> None:
        self.host.engine_returns()

    def engine_hangs(self) -> None:
        self.host.hung = True

    def engine_goes_on(self) -> None:
        self.host.engine_returns()

    async def foreign_domain(self) -> None:
        """The fake knows no domains but ours."""

    def clean(self) -> None:
        """Nothing of the fake outlives the test."""


class RealBench:
    def __init__(self, rig: Rig, image: Path) -> None:
        self.rig = rig
        self._image = image
        self._taps = 0

    def driver(self) -> Hypervisor:
        return LibvirtHypervisor("tcg", uri=self.rig.uri, state_dir=self.rig.state_dir, call_timeout_s=20)

    def disk(self, disk: str) -> DiskSource:
        path = self.rig.scratch / f"{disk}.raw"
        if not path.exists():
            if disk == DATA:
                subprocess.run(["truncate", "-s", "16M", path], check=True)
            else:
                subprocess.run(["cp", "--sparse=always", self._image, path], check=True)
        return DiskSource(disk=disk, place=FilePlace(path=path))

    def nic(self, nic: str) -> NicDevice:
        self._taps += 1
        self.rig.make_tap(f"tap{self._taps}")
        mac = f"52:54:00:00:01:{self._taps:02x}"
        return NicDevice(nic=nic, tap=f"tap{self._taps}", mac=mac, mtu=1450, offload=False)

    def spec(self, vm: str = VM) -> DomainSpec:
        return make_spec(self, vm, self.rig.scratch)

    @asynccontextmanager
    async def console(self, vm: str = VM) -> AsyncIterator[Console]:
        console = await Console.open(self.rig.scratch / f"{vm}.sock")
        try:
            yield console
        finally:
            console.close()

    async def booted(self, vm: str = VM) -> None:
        async with self.console(vm) as console:
            await console.login()

    async def guest_poweroff(self, vm: str = VM) -> None:
        async with self.console(vm) as console:
            await console.login()
            await console.type("poweroff")
            with suppress(AssertionError):
                await console.expect("nothing: it goes down", 30)

    async def crash(self, facts: DomainFacts) -> None:
        assert facts.pid is not None
        kill_and_wait(facts.pid)

    def engine_dies(self) -> None:
        self.rig.kill_daemon()

    def engine_returns(self) -> None:
        self.rig.start_daemon()

    def engine_hangs(self) -> None:
        self.rig.signal_daemon(signal.SIGSTOP)

    def engine_goes_on(self) -> None:
        self.rig.signal_daemon(signal.SIGCONT)

    async def foreign_domain(self) -> None:
        xml = "<domain type='qemu'><name>vm-theirs</name><memory>65536</memory><os><type>hvm</type></os></domain>"
        path = self.rig.scratch / "foreign.xml"
        path.write_text(xml)
        self.rig.run("virsh", "-c", "qemu:///system", "define", str(path))

    def clean(self) -> None:
        self.rig.remove_domains()
        for path in self.rig.scratch.glob("*.raw"):
            path.unlink()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealBench]:
    folder = tmp_path_factory.mktemp("micro")
    micro.build(folder / "micro.raw")
    with Rig() as rig:
        yield RealBench(rig, folder / "micro.raw")


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.engine)])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    if request.param == "fake":
        yield FakeBench()
        return
    found: RealBench = request.getfixturevalue("real")
    try:
        yield found
    finally:
        found.clean()


@pytest.fixture
async def driver(bench: Bench) -> AsyncIterator[Hypervisor]:
    made = bench.driver()
    yield made
    await made.close()


class Events:
    """Hears everything from the moment it is made."""

    def __init__(self, driver: Hypervisor) -> None:
        self.heard: list[DomainEvent] = []
        self._more = asyncio.Condition()
        self._task = asyncio.ensure_future(self._listen(driver))

    async def _listen(self, driver: Hypervisor) -> None:
        async for event in driver.events():
            async with self._more:
                self.heard.append(event)
                self._more.notify_all()

    async def wait(self, kind: str, timeout_s: float = 30) -> DomainEvent:
        """The first event of this kind."""

        def found() -> DomainEvent | None:
            return next((event for event in self.heard if event.kind == kind), None)

        async with asyncio.timeout(timeout_s), self._more:
            await self._more.wait_for(lambda: found() is not None)
        event = found()
        assert event is not None
        return event

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
async def events(driver: Hypervisor) -> AsyncIterator[Events]:
    listening = Events(driver)
    await driver.domains()
    yield listening
    await listening.stop()


async def facts_of(driver: Hypervisor, vm: str = VM) -> DomainFacts:
    facts = await driver.show(vm)
    assert facts is not None
    return facts


async def eventually(check: Callable[[], Awaitable[bool]], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not await check():
            await asyncio.sleep(0.05)


async def test_starts_shows_lists_and_forgets(driver: Hypervisor, bench: Bench, events: Events) -> None:
    assert await driver.domains() == []
    assert await driver.show(VM) is None
    await driver.start(bench.spec())
    assert await events.wait("started") == DomainEvent(kind="started", vm=VM)
    facts = await facts_of(driver)
    assert (facts.running, facts.paused, facts.cpus, facts.memory_mib) == (True, False, 1, 192)
    assert (facts.disks, facts.nics) == ((SYSTEM,), (NIC,))
    assert facts.pid is not None
    assert await driver.domains() == [facts]

    await driver.start(bench.spec())
    assert (await facts_of(driver)).pid == facts.pid, "a running domain is left as it is"

    with pytest.raises(CloudError) as refused:
        await driver.undefine(VM)
    assert refused.value.kind is ErrorKind.CONFLICT
    await driver.destroy(VM)
    stopped = await events.wait("stopped")
    assert (stopped.vm, stopped.off_reason) == (VM, "requested")
    facts = await facts_of(driver)
    assert (facts.running, facts.off_reason, facts.pid) == (False, "requested", None)
    await driver.undefine(VM)
    assert await driver.show(VM) is None


async def test_what_does_not_exist(driver: Hypervisor, bench: Bench) -> None:
    await driver.destroy(VM)
    await driver.undefine(VM)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: driver.shutdown(VM),
        lambda: driver.reboot(VM),
        lambda: driver.attach_disk(VM, bench.disk(DATA)),
        lambda: driver.detach_disk(VM, DATA),
        lambda: driver.grow_disk(VM, DATA, 32),
        lambda: driver.attach_nic(VM, bench.nic(SECOND_NIC)),
        lambda: driver.detach_nic(VM, SECOND_NIC),
        lambda: driver.set_cpus(VM, 2),
        lambda: driver.set_memory(VM, 320),
    ]
    for call in calls:
        with pytest.raises(CloudError) as refused:
            await call()
        assert refused.value.kind is ErrorKind.NOT_FOUND
    await driver.start(bench.spec())
    with pytest.raises(CloudError) as refused:
        await driver.grow_disk(VM, DATA, 32)
    assert refused.value.kind is ErrorKind.NOT_FOUND
    await driver.detach_disk(VM, DATA)
    await driver.detach_nic(VM, SECOND_NIC)
    await driver.destroy(VM)
    await driver.shutdown(VM)
    for call in calls[1:]:
        with pytest.raises(CloudError) as refused:
            await call()
        assert refused.value.kind is ErrorKind.CONFLICT


async def test_bad_specs_are_refused_before_anything_happens(driver: Hypervisor, bench: Bench) -> None:
    spec = bench.spec()
    for change, field in (
        ({"cpus": 4}, "cpus"),
        ({"memory_mib": 2048}, "memory_mib"),
        ({"disks": ()}, "disks"),
        ({"disks": spec.disks * 2}, "disks"),
        ({"disks": (DiskSource(disk="a/b", place=spec.disks[0].place),)}, "disks"),
        ({"console_socket": Path("/" + "x" * 120)}, "console_socket"),
        ({"name": "bell\a"}, "name"),
    ):
        with pytest.raises(CloudError) as refused:
            await driver.start(spec.model_copy(update=change))
        assert refused.value.kind is ErrorKind.INVALID
        assert [error.field for error in refused.value.fields] == [field]
    assert await driver.domains() == []


async def test_a_disk_is_not_given_to_two_guests(driver: Hypervisor, bench: Bench) -> None:
    await driver.start(bench.spec())
    other = bench.spec("vm-other")
    stolen = other.model_copy(update={"disks": bench.spec().disks})
    with pytest.raises(CloudError) as refused:
        await driver.start(stolen)
    assert refused.value.kind is ErrorKind.ENGINE
    assert "lock" in refused.value.message
    await driver.start(other)
    assert {facts.vm for facts in await driver.domains() if facts.running} == {VM, "vm-other"}


async def test_a_crash_is_told_from_a_request(driver: Hypervisor, bench: Bench, events: Events) -> None:
    await driver.start(bench.spec())
    await bench.crash(await facts_of(driver))
    stopped = await events.wait("stopped")
    assert (stopped.vm, stopped.off_reason) == (VM, "crashed")
    assert (await facts_of(driver)).off_reason == "crashed"
    await driver.start(bench.spec())
    assert (await facts_of(driver)).running, "a crashed domain starts again"


async def test_the_guest_switches_itself_off(driver: Hypervisor, bench: Bench, events: Events) -> None:
    await driver.start(bench.spec())
    await bench.guest_poweroff()
    stopped = await events.wait("stopped", 60)
    assert (stopped.vm, stopped.off_reason) == (VM, "guest")
    assert (await facts_of(driver)).off_reason == "guest"


async def test_reboot_then_acpi_shutdown(driver: Hypervisor, bench: Bench, events: Events) -> None:
    await driver.start(bench.spec())
    await bench.booted()
    before = await facts_of(driver)
    await driver.reboot(VM)
    assert await events.wait("rebooted") == DomainEvent(kind="rebooted", vm=VM)
    await bench.booted()
    assert await facts_of(driver) == before
    await driver.shutdown(VM)
    stopped = await events.wait("stopped", 60)
    assert (stopped.vm, stopped.off_reason) == (VM, "guest")
    assert [event.kind for event in events.heard].count("rebooted") == 1


async def test_plugging_in_and_out(driver: Hypervisor, bench: Bench) -> None:
    await driver.start(bench.spec())
    await bench.booted()
    for _ in range(2):  # asking twice is asking once
        await driver.attach_disk(VM, bench.disk(DATA))
        await driver.attach_nic(VM, nic := bench.nic(SECOND_NIC))
    facts = await facts_of(driver)
    assert (facts.disks, facts.nics) == ((SYSTEM, DATA), (NIC, SECOND_NIC))
    await driver.grow_disk(VM, DATA, 32)
    await asyncio.gather(driver.detach_disk(VM, DATA), driver.detach_nic(VM, SECOND_NIC))
    facts = await facts_of(driver)
    assert (facts.disks, facts.nics) == ((SYSTEM,), (NIC,))
    await driver.detach_disk(VM, DATA)
    await driver.attach_nic(VM, nic)
    assert (await facts_of(driver)).nics == (NIC, SECOND_NIC)
    await driver.destroy(VM)
    await driver.start(bench.spec())
    assert (await facts_of(driver)).nics == (NIC,), "the spec of the start is what counts"


async def test_cpus_and_memory_grow_live_and_shrink_at_the_next_start(driver: Hypervisor, bench: Bench) -> None:
    await driver.start(bench.spec())
    await bench.booted()
    assert await driver.set_cpus(VM, 3)
    assert await driver.set_cpus(VM, 3)
    assert not await driver.set_cpus(VM, 4)
    assert not await driver.set_cpus(VM, 2)
    assert await driver.set_memory(VM, 192 + 256)
    assert await driver.set_memory(VM, 192 + 256)
    assert not await driver.set_memory(VM, 192 + 256 + 100)
    assert not await driver.set_memory(VM, 192)
    assert not await driver.set_memory(VM, 192 + 128 * 8)
    assert await driver.set_memory(VM, 192 + 384)
    facts = await facts_of(driver)
    assert (facts.cpus, facts.memory_mib) == (3, 576)

    async def counted() -> bool:
        (figures,) = await driver.figures()
        return (figures.vm, figures.cpus, figures.memory_mib) == (VM, 3, 576) and figures.cpu_seconds > 0

    await eventually(counted)


async def test_the_engine_dies_and_returns(driver: Hypervisor, bench: Bench, events: Events) -> None:
    await driver.start(bench.spec())
    before = await facts_of(driver)
    bench.engine_dies()
    asked = asyncio.ensure_future(driver.show(VM))
    await asyncio.sleep(0.1)
    assert not asked.done()
    bench.engine_returns()
    assert await asked == before, "the guest ran on, and the question was asked again"
    await events.wait("reconnected")
    # While libvirtd takes up its guests again it may tell nothing of one that goes: a start is always told.
    await driver.destroy(VM)
    assert (await facts_of(driver)).running is False
    events.heard.clear()
    await driver.start(bench.spec())
    await events.wait("started")


async def test_a_crash_while_the_engine_is_away(driver: Hypervisor, bench: Bench, events: Events) -> None:
    await driver.start(bench.spec())
    facts = await facts_of(driver)
    bench.engine_dies()
    await bench.crash(facts)
    bench.engine_returns()
    await events.wait("reconnected")
    # libvirtd answers before it has looked at each guest, and until then tells what it knew.
    async with asyncio.timeout(20):
        while (await facts_of(driver)).running:
            await asyncio.sleep(0.05)
    assert (await facts_of(driver)).off_reason in ("crashed", "unknown")


async def test_a_hung_engine_does_not_hang_its_caller(driver: Hypervisor, bench: Bench, events: Events) -> None:
    await driver.start(bench.spec())
    bench.engine_hangs()
    try:
        async with asyncio.timeout(25):
            with pytest.raises(CloudError) as failed:
                await driver.show(VM)
        assert failed.value.kind is ErrorKind.TIMED_OUT
    finally:
        bench.engine_goes_on()
    await events.wait("reconnected")
    assert (await facts_of(driver)).running


async def test_guests_outlive_the_agent(bench: Bench) -> None:
    first = bench.driver()
    await first.start(bench.spec())
    before = await facts_of(first)
    await first.close()
    second = bench.driver()
    assert await second.domains() == [before]
    await second.destroy(VM)
    await second.close()


async def test_others_domains_are_left_alone(driver: Hypervisor, bench: Bench) -> None:
    await bench.foreign_domain()
    await driver.start(bench.spec())
    assert [facts.vm for facts in await driver.domains()] == [VM]
    assert [figures.vm for figures in await driver.figures()] == [VM]


@pytest.mark.engine
async def test_a_gpu_that_the_node_cannot_give_is_refused_in_libvirts_words(real: RealBench) -> None:
    """When the domain starts: the host has no IOMMU, or no such device. Without it the same VM starts."""
    missing = "fffe:3b:00.0"
    assert not Path(f"/sys/bus/pci/devices/{missing}").exists()
    driver = real.driver()
    try:
        with pytest.raises(CloudError) as refused:
            await driver.start(real.spec().model_copy(update={"gpus": (missing,)}))
        assert refused.value.kind is ErrorKind.ENGINE
        words = refused.value.message
        assert missing in words or "support passthrough of host PCI devices" in words, words
        assert not [facts for facts in await driver.domains() if facts.running]
        await driver.start(real.spec())
        assert (await facts_of(driver)).running
    finally:
        await driver.close()
        real.clean()


@pytest.mark.engine
async def test_at_once_does_not_wait_for_a_process_that_does_not_obey(real: RealBench) -> None:
    """As one does not that waits for storage which is gone: libvirt alone takes 10 s to kill it."""
    driver = real.driver()
    try:
        await driver.start(real.spec())
        pid = (await facts_of(driver)).pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(6.0):
            await driver.destroy(VM, at_once=True)
        assert not alive(pid)
        facts = await facts_of(driver)
        assert (facts.running, facts.off_reason) == (False, "requested")
    finally:
        await driver.close()
        real.clean()


@pytest.mark.engine
async def test_no_process_is_left_of_a_domain_that_is_off(real: RealBench) -> None:
    driver = real.driver()
    try:
        await driver.start(real.spec())
        pid = (await facts_of(driver)).pid
        assert pid is not None and alive(pid)
        await driver.destroy(VM)
        assert not alive(pid)
    finally:
        await driver.close()
        real.clean()
