"""What the fake offers beyond the contract: failures on demand, deaf guests, and a host that outlives drivers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from scloud.drivers.hypervisor.fake import FakeHost, FakeHypervisor
from scloud.drivers.hypervisor.protocol import DiskSource, DomainSpec
from scloud.drivers.storage.place import FilePlace
from scloud.model.errors import CloudError, ErrorKind

SPEC = DomainSpec(
    vm="vm-a",
    name="a",
    cpus=1,
    max_cpus=2,
    memory_mib=128,
    max_memory_mib=256,
    disks=(DiskSource(disk="dsk-a", place=FilePlace(path=Path("/disks/a"))),),
    nics=(),
    console_log=Path("/c.log"),
    console_socket=Path("/c.sock"),
)


async def test_failures_come_in_turn_and_by_name() -> None:
    host = FakeHost(failures=[CloudError(ErrorKind.ENGINE, "once")])
    driver = FakeHypervisor(host)
    with pytest.raises(CloudError, match="once"):
        await driver.start(SPEC)
    await driver.start(SPEC)
    host.failing["reboot"] = CloudError(ErrorKind.ENGINE, "always")
    for _ in range(2):
        with pytest.raises(CloudError, match="always"):
            await driver.reboot("vm-a")
    assert host.domains["vm-a"].resets == 0


async def test_a_guest_that_has_not_booted_or_is_deaf_ignores_acpi() -> None:
    host = FakeHost(boot_s=3600)
    driver = FakeHypervisor(host)
    await driver.start(SPEC)
    await driver.shutdown("vm-a")
    assert host.domains["vm-a"].running
    host.domains["vm-a"].booted = 0.0
    host.domains["vm-a"].deaf = True
    await driver.shutdown("vm-a")
    assert host.domains["vm-a"].running
    host.domains["vm-a"].deaf = False
    await driver.shutdown("vm-a")
    assert not host.domains["vm-a"].running


async def test_a_guest_obeys_after_its_agent_has_died() -> None:
    host = FakeHost(react_s=0.01)
    first = FakeHypervisor(host)
    await first.start(SPEC)
    await first.shutdown("vm-a")
    await first.close()
    second = FakeHypervisor(host)
    listener = second.events()
    event = await anext(listener)
    assert (event.kind, event.off_reason) == ("stopped", "guest")
    await listener.aclose()  # type: ignore[attr-defined]
    assert host.listeners == set()


async def test_an_agent_killed_while_it_starts_a_guest_leaves_none() -> None:
    host = FakeHost(start_s=10)
    starting = asyncio.ensure_future(FakeHypervisor(host).start(SPEC))
    await asyncio.sleep(0.01)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert host.domains == {}


async def test_a_power_failure_leaves_definitions() -> None:
    host = FakeHost()
    driver = FakeHypervisor(host)
    await driver.start(SPEC)
    host.power_failure()
    (facts,) = await driver.domains()
    assert (facts.running, facts.off_reason, facts.pid) == (False, "unknown", None)
