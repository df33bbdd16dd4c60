"""The whole agent on a fake node: what becomes of VMs."""

from __future__ import annotations

import asyncio

import pytest
from agent_clock import run
from agent_node import NODE, VPC, disk, one_vm, port, running_node, vm, vm_id

from scloud.model.desired import VmDisk
from scloud.model.errors import CloudError, ErrorKind

VM = vm_id(1)
KEY = f"vm/{VM}"
NIC = "nic-0000000000000001"
DISK = "dsk-0000000000000001"


def test_a_vm_is_created_with_disk_port_and_services_before_it_starts() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm())
            await node.settled(KEY, "running")
            await node.settled(f"disk/{DISK}", "ready")
            await node.settled(f"port/{NIC}", "ready")
            domain = node.host.domains[VM]
            assert domain.running and domain.starts == 1
            assert list(domain.disks) == [DISK, f"{VM}-cidata"]
            assert domain.disks[f"{VM}-cidata"].read_only
            assert [nic.tap for nic in domain.nics.values()] == ["t000000000001"]
            assert node.kernel.lease(VPC, "02:00:00:00:00:01") is not None
            assert node.boss.network_revision == node.boss.revision
            assert node.switch.flows.flows()
            calls = [method for method, _ in node.host.calls]
            assert calls.count("start") == 1

    run(main())


def test_a_vm_stops_by_acpi_and_starts_again_only_when_asked() -> None:
    async def main() -> None:
        async with running_node() as node:
            node.host.react_s = 3
            await node.boss.want(*one_vm())
            await node.settled(KEY, "running")
            await node.boss.change(KEY, power="off")
            await node.settled(KEY, "stopped")
            assert ("destroy", VM) not in node.host.calls
            await node.boss.change(KEY, power="on", starts=2)
            await node.settled(KEY, "running")
            assert node.host.domains[VM].starts == 2

    run(main())


def test_a_deaf_guest_is_switched_off_after_its_grace() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm(stop_grace_s=30.0))
            await node.settled(KEY, "running")
            node.host.domains[VM].deaf = True
            began = asyncio.get_running_loop().time()
            await node.boss.change(KEY, power="off")
            await node.settled(KEY, "stopped")
            assert 30 <= asyncio.get_running_loop().time() - began < 32
            assert node.host.calls.count(("shutdown", VM)) == 3

    run(main())


def test_force_stop_waits_for_nobody() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm())
            await node.settled(KEY, "running")
            await node.boss.change(KEY, power="off", force_stop=True)
            await node.settled(KEY, "stopped", limit_s=1)
            assert ("shutdown", VM) not in node.host.calls

    run(main())


def test_a_reboot_is_carried_out_once() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm())
            await node.settled(KEY, "running")
            await node.boss.change(KEY, reboots=1)
            await node.settled(KEY, "running")
            await node.boss.change(KEY, name="other")
            await node.settled(KEY, "running")
            assert node.host.domains[VM].resets == 1

    run(main())


def test_a_dead_vm_is_restarted_until_its_limit_then_only_when_asked() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm())
            await node.settled(KEY, "running")
            for death in (1, 2):
                node.host.crash(VM)
                await node.until(lambda death=death: node.host.domains[VM].starts == death + 1)
                await node.until(lambda death=death: node.boss.heard[KEY].restarts == death)
            await node.settled(KEY, "running")
            node.host.crash(VM)
            await node.settled(KEY, "error")
            reason = node.boss.heard[KEY].reason
            assert "scloud vm log web-1" in reason and "scloud vm start web-1" in reason
            await asyncio.sleep(1000)
            assert not node.host.domains[VM].running
            await node.boss.change(KEY, starts=2)
            await node.settled(KEY, "running")

    run(main())


def test_deaths_long_ago_are_forgiven() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm())
            for _ in range(6):
                await node.settled(KEY, "running")
                node.host.crash(VM)
                await asyncio.sleep(400)
            await node.settled(KEY, "running")
            assert node.host.domains[VM].starts == 7

    run(main())


def test_a_guest_that_powers_itself_off_stays_off() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm())
            await node.settled(KEY, "running")
            node.host.guest_poweroff(VM)
            await node.settled(KEY, "stopped")
            assert node.boss.heard[KEY].guest_stopped
            await node.kill()
            node.start()
            await asyncio.sleep(100)
            assert not node.host.domains[VM].running
            await node.boss.change(KEY, starts=2)
            await node.settled(KEY, "running")
            assert not node.boss.heard[KEY].guest_stopped

    run(main())


def test_after_a_power_failure_everything_that_ran_runs_again() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm(1), port(2, 2), disk(2), vm(2), port(3, 3), disk(3), vm(3))
            for number in (1, 2, 3):
                await node.settled(f"vm/{vm_id(number)}", "running")
            await node.boss.change(f"vm/{vm_id(2)}", power="off")
            await node.settled(f"vm/{vm_id(2)}", "stopped")
            node.host.guest_poweroff(vm_id(3))
            await node.settled(f"vm/{vm_id(3)}", "stopped")
            await node.listener.stop()  # no manager is needed for it
            await node.reboot()
            await node.until(lambda: node.host.domains[VM].running)
            await asyncio.sleep(100)
            assert not node.host.domains[vm_id(2)].running and not node.host.domains[vm_id(3)].running
            assert node.journal.memory(VM).restarts == 0
            assert "t000000000001" in node.switch.taps
            assert node.kernel.lease(VPC, "02:00:00:00:00:01") is not None

    run(main())


def test_a_rebuild_switches_off_makes_the_disk_anew_and_starts() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm())
            await node.settled(KEY, "running")
            making = node.disk.volumes[DISK].making
            await node.boss.change(f"disk/{DISK}", incarnation=1)
            await node.settled(f"disk/{DISK}", "ready")
            await node.until(lambda: node.host.domains[VM].starts == 2)
            assert node.disk.volumes[DISK].making > making
            assert node.disk.volumes[DISK].incarnation == 1
            await node.settled(KEY, "running")
            assert node.boss.heard[KEY].restarts == 0

    run(main())


def test_a_deleted_vm_leaves_nothing() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm())
            await node.settled(KEY, "running")
            await node.boss.change(KEY, power="absent")
            await node.boss.change(f"disk/{DISK}", absent=True)
            await node.boss.change(f"port/{NIC}", absent=True)
            for key in (KEY, f"disk/{DISK}", f"port/{NIC}"):
                await node.settled(key, "absent")
            await node.boss.want(drop=[KEY, f"disk/{DISK}", f"port/{NIC}", f"vpc/{VPC}"])
            await node.until(lambda: not node.kernel.specs)
            await node.until(lambda: node.boss.network_revision == node.boss.revision)
            assert not node.host.domains and not node.disk.volumes and not node.seeds.built
            assert not node.switch.taps and not await node.switch.ports()
            assert not node.journal.ofports

    run(main())


def test_a_vm_that_leaves_takes_its_tap_along_though_its_port_is_told_no_more() -> None:
    """It came by a migration whose source is out of the cloud since: else this node waits for ever for the tap to go,
    and cannot be let in again (simulation seed 1969)."""

    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm())
            await node.settled(KEY, "running")
            gone = node.boss.wanted[KEY].model_copy(update={"generation": 2, "power": "absent", "force_stop": True})
            await node.boss.want(gone, drop=[f"port/{NIC}"])
            await node.settled(KEY, "absent")
            assert not node.switch.taps and VM not in node.host.domains

    run(main())


def test_a_vm_whose_tap_cannot_be_removed_is_not_looked_at_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm())
            await node.settled(KEY, "running")
            remove, tried = node.switch.remove_port, []

            async def down(device: str) -> None:
                tried.append(device)
                raise CloudError(ErrorKind.ENGINE, "the switch does not answer")

            monkeypatch.setattr(node.switch, "remove_port", down)
            calls = len(node.host.calls)
            await node.boss.change(KEY, power="absent", force_stop=True)
            await node.boss.change(f"port/{NIC}", absent=True)
            await asyncio.sleep(30)
            assert tried and len(node.host.calls) - calls < 200
            assert "are being removed" in node.boss.heard[KEY].reason
            monkeypatch.setattr(node.switch, "remove_port", remove)
            await node.settled(KEY, "absent")

    run(main())


def test_sizes_change_live_or_at_the_next_start() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm())
            await node.settled(KEY, "running")
            await node.boss.change(KEY, cpus=2, memory_mib=512)
            await node.settled(KEY, "running")
            heard = node.boss.heard[KEY]
            assert (heard.cpus, heard.memory_mib, heard.reason) == (2, 512, "")
            await node.boss.change(KEY, cpus=1, memory_mib=300)
            await node.settled(KEY, "running")
            heard = node.boss.heard[KEY]
            assert (heard.cpus, heard.memory_mib) == (2, 512)
            assert "1 CPUs and 300 MiB of memory at the next start" in heard.reason
            await node.boss.change(KEY, power="off")
            await node.settled(KEY, "stopped")
            await node.boss.change(KEY, power="on", starts=2)
            await node.settled(KEY, "running")
            heard = node.boss.heard[KEY]
            assert (heard.cpus, heard.memory_mib, heard.reason) == (1, 300, "")

    run(main())


def test_disks_and_nics_come_and_go_while_it_runs() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm())
            await node.settled(KEY, "running")
            system = VmDisk(id=DISK, system=True)
            extra, nic = disk(9, image=False), port(9, 1)
            wanted = node.boss.wanted[KEY].model_copy(
                update={"disks": (system, VmDisk(id=extra.id, system=False)), "nics": (NIC, nic.id)}
            )
            await node.boss.want(extra, nic, wanted)
            await node.settled(f"disk/{extra.id}", "ready")
            await node.settled(f"port/{nic.id}", "ready")
            domain = node.host.domains[VM]
            assert extra.id in domain.disks and nic.id in domain.nics
            await node.boss.change(f"disk/{extra.id}", size_mib=2048)
            await node.settled(f"disk/{extra.id}", "ready")
            assert node.disk.volumes[extra.id].size_mib == 2048
            assert domain.sizes_mib[extra.id] == 2048
            back = wanted.model_copy(update={"disks": (system,), "nics": (NIC,)})
            gone = nic.model_copy(update={"generation": 2, "absent": True})
            await node.boss.want(extra.model_copy(update={"generation": 5, "size_mib": 2048}), gone, back)
            await node.settled(f"disk/{extra.id}", "ready")
            await node.settled(f"port/{nic.id}", "absent")
            assert extra.id not in domain.disks and nic.id not in domain.nics
            assert node.host.domains[VM].starts == 1

    run(main())


def test_a_guest_that_holds_on_to_a_disk_is_reported_and_the_rest_goes_on() -> None:
    async def main() -> None:
        async with running_node() as node:
            extra = disk(9, image=False)
            system = VmDisk(id=DISK, system=True)
            items = one_vm(disks=(system, VmDisk(id=extra.id, system=False)))
            await node.boss.want(extra, *items)
            await node.settled(KEY, "running")
            node.host.domains[VM].deaf = True
            await node.boss.change(f"disk/{extra.id}", absent=True)
            await node.boss.change(KEY, disks=(system,), cpus=2)
            await node.until(lambda: node.host.domains[VM].cpus == 2)
            await node.until(lambda: "did not let go" in node.boss.heard[KEY].reason)
            assert node.boss.heard[KEY].state == "running" and not node.boss.heard[KEY].settled
            assert not node.boss.heard[f"disk/{extra.id}"].settled
            assert extra.id in node.disk.volumes
            node.host.domains[VM].deaf = False
            await node.settled(KEY, "running")
            await node.settled(f"disk/{extra.id}", "absent")

    run(main())


def test_a_start_that_keeps_failing_is_an_error_and_recovers_by_itself() -> None:
    async def main() -> None:
        async with running_node() as node:
            node.host.failing["start"] = CloudError(ErrorKind.ENGINE, "QEMU says no")
            await node.boss.want(*one_vm())
            await node.settled(KEY, "error")
            assert "QEMU says no" in node.boss.heard[KEY].reason
            errors = [item for item in node.boss.history if item.key == KEY and item.state == "error"]
            await asyncio.sleep(200)
            assert len([item for item in node.boss.history if item.key == KEY and item.state == "error"]) == len(errors)
            del node.host.failing["start"]
            await node.settled(KEY, "running")

    run(main())


@pytest.mark.parametrize("failing", [{"call_timeout_s": 5.0}, {"call_timeout_s": 1000.0}])
def test_a_hung_start_holds_up_no_other_vm_and_is_not_left_half_done(failing: dict[str, float]) -> None:
    """Whether libvirt's own deadline comes first or the agent's."""

    async def main() -> None:
        async with running_node() as node:
            node.host.call_timeout_s = failing["call_timeout_s"]
            node.host.start_s = 100_000
            hung = [item for number in range(1, 7) for item in (port(number, number), disk(number), vm(number))]
            await node.boss.want(*one_vm()[:2], *hung)
            await node.until(lambda: len([call for call in node.host.calls if call[0] == "start"]) >= 4)
            node.host.start_s = 0
            began = asyncio.get_running_loop().time()
            await node.boss.want(port(20, 20), disk(20), vm(20))
            await node.settled(f"vm/{vm_id(20)}", "running")
            assert asyncio.get_running_loop().time() - began < 15
            for number in range(1, 7):
                await node.settled(f"vm/{vm_id(number)}", "running", limit_s=400)

    run(main())


def test_a_full_disk_is_an_error_with_the_reason_and_goes_on_when_there_is_room() -> None:
    async def main() -> None:
        async with running_node() as node:
            node.disk.filled_mib = node.disk.capacity_mib
            await node.boss.want(*one_vm())
            await node.settled(f"disk/{DISK}", "error")
            await node.settled(KEY, "error")
            assert "MiB" in node.boss.heard[KEY].reason
            node.disk.filled_mib = 0
            await node.settled(KEY, "running")
            await node.settled(f"disk/{DISK}", "ready")

    run(main())


def test_whoever_makes_room_and_asks_for_a_start_is_not_told_of_the_failure_before() -> None:
    async def main() -> None:
        async with running_node() as node:
            node.disk.filled_mib = node.disk.capacity_mib
            items = one_vm()
            await node.boss.want(*items)
            await node.settled(KEY, "error")
            await asyncio.sleep(200)  # the next try of its own accord is far away now
            node.disk.filled_mib = 0
            asked = items[-1].model_copy(update={"generation": items[-1].generation + 1, "starts": 2})
            heard = len(node.boss.history)
            began = asyncio.get_running_loop().time()
            await node.boss.want(asked)
            await node.settled(KEY, "running")
            assert asyncio.get_running_loop().time() - began < 10
            assert not [item for item in node.boss.history[heard:] if item.key == KEY and item.state == "error"]

    run(main())


def test_a_data_disk_moves_to_another_vm_only_after_the_first_let_it_go() -> None:
    async def main() -> None:
        async with running_node() as node:
            node.host.react_s = 5
            extra = VmDisk(id=disk(9).id, system=False)
            first, second = VmDisk(id=DISK, system=True), VmDisk(id=disk(2).id, system=True)
            await node.boss.want(disk(9, image=False), *one_vm(disks=(first, extra)), port(2, 2), disk(2), vm(2))
            await node.settled(KEY, "running")
            await node.settled(f"vm/{vm_id(2)}", "running")
            node.host.calls.clear()
            await node.boss.change(f"vm/{vm_id(2)}", disks=(second, extra))
            await node.boss.change(KEY, disks=(first,))
            await node.settled(f"vm/{vm_id(2)}", "running")
            calls = [call for call in node.host.calls if call[0] in ("attach_disk", "detach_disk")]
            assert calls == [("detach_disk", VM), ("attach_disk", vm_id(2))]

    run(main())


def test_another_nodes_port_gets_no_tap_here() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm(), port(5, 5, node="nod-0000000000000002"))
            await node.settled(KEY, "running")
            await node.until(lambda: "172.31.0.2" in node.switch.peers)
            assert list(node.switch.taps) == ["t000000000001"]
            assert node.kernel.resolve(VPC, "web-5") == {"10.0.0.15"}
            assert NODE not in node.boss.heard

    run(main())


@pytest.mark.parametrize("turns", range(0, 120, 4))
def test_a_rebuild_that_comes_during_a_start_never_takes_the_disk_from_under_it(turns: int) -> None:
    """The fake storage fails the test if a disk is made anew while a running domain has it open."""

    async def main() -> None:
        async with running_node() as node:
            node.seeds.takes_s = 1.0
            node.host.start_s = 1.0
            node.disk.call_s = 0.05
            await node.boss.want(*one_vm())
            await node.until(lambda: DISK in node.disk.volumes)
            await asyncio.sleep(turns * 0.02)
            await node.boss.change(f"disk/{DISK}", incarnation=1)
            await node.settled(f"disk/{DISK}", "ready")
            await node.settled(KEY, "running")
            path = node.host.domains[VM].disks[DISK].place.path
            assert path.name == f"{DISK}.1.raw", "it runs with the bytes of before"

    run(main())


def test_what_a_link_of_a_real_size_carries() -> None:
    """A hundred VMs at once, through one connection that is slow."""

    async def main() -> None:
        async with running_node() as node:
            node.conditions.delay = lambda: 0.05
            node.host.start_s = 0.1
            numbers = range(1, 101)
            items = [item for number in numbers for item in (port(number, number), disk(number), vm(number))]
            await node.boss.want(*one_vm()[:2], *items)
            for number in numbers:
                await node.settled(f"vm/{vm_id(number)}", "running")
            assert all(domain.starts == 1 for domain in node.host.domains.values())
            ofports = {facts.ofport for facts in await node.switch.ports()}
            assert len(ofports) == 101
            reply = await node.boss.call("inventory")
            assert len(reply.result["running"]) == 100
            figures = await node.boss.call("figures", vm=VM)
            assert figures.result["vm"] == VM
            unknown = await node.boss.call("sing")
            assert unknown.error is not None and unknown.error[0] == "not_found"
            trace = await node.boss.call("trace", port=NIC, fields={"eth_type": 0x800})
            assert isinstance(trace.result, str) and trace.result
            log = await node.boss.call("console_log", vm=VM, bytes=100)
            assert log.result == ""

    run(main())
