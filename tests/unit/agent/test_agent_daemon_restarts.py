"""The agent killed at any moment, engines that fail, managers that come and go: everything converges."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
from agent_clock import VirtualLoop
from agent_clock import run as run_virtually
from agent_node import IMAGE, NODE, POOL, SHA, VPC, Node, disk, one_vm, port, running_node, vm, vm_id

from scloud.agent.calls import Calls
from scloud.flows.ir import Flow
from scloud.link.memory import MemoryChannel
from scloud.model.desired import VmDisk
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.wire import Refused, Removed

VM = vm_id(1)
KEY = f"vm/{VM}"
NIC = "nic-0000000000000001"
DISK = "dsk-0000000000000001"
Scenario = Callable[[Node], Awaitable[None]]


def flows_of(node: Node) -> set[Flow]:
    return set(node.switch.flows.flows())


async def create(node: Node) -> None:
    await node.boss.want(*one_vm())


async def created(node: Node) -> None:
    await node.settled(KEY, "running")
    await node.settled(f"disk/{DISK}", "ready")
    await node.settled(f"port/{NIC}", "ready")
    assert node.host.domains[VM].running
    assert node.disk.makings == 1, "a disk was made twice"
    assert node.journal.memory(VM).restarts == 0
    assert node.switch.flows.flows()


async def rebuild(node: Node) -> None:
    await node.boss.change(f"disk/{DISK}", incarnation=1)


async def rebuilt(node: Node) -> None:
    await node.settled(f"disk/{DISK}", "ready")
    await node.settled(KEY, "running")
    assert node.disk.volumes[DISK].incarnation == 1
    assert node.disk.makings == 2


async def delete(node: Node) -> None:
    await node.boss.change(KEY, power="absent")
    await node.boss.change(f"disk/{DISK}", absent=True)
    await node.boss.change(f"port/{NIC}", absent=True)


async def deleted(node: Node) -> None:
    for key in (KEY, f"disk/{DISK}", f"port/{NIC}"):
        await node.settled(key, "absent")
    await node.boss.want(drop=[KEY, f"disk/{DISK}", f"port/{NIC}", f"vpc/{VPC}"])
    await node.until(lambda: not node.kernel.specs)
    assert not node.host.domains and not node.disk.volumes and not node.switch.taps
    assert not node.journal.ofports


async def restart(node: Node) -> None:
    await node.boss.change(KEY, power="off")
    await node.boss.change(KEY, power="on", starts=2)


async def reboot(node: Node) -> None:
    await node.boss.change(KEY, reboots=1)


async def rebooted(node: Node) -> None:
    await node.settled(KEY, "running")
    # killed between the reset and its record, the agent repeats it; never does it leave one out
    assert 1 <= node.host.domains[VM].resets <= 2


async def crash(node: Node) -> None:
    node.host.crash(VM)


async def restarted(node: Node) -> None:
    await node.until(lambda: node.host.domains[VM].starts >= 2)
    await node.settled(KEY, "running")
    assert node.host.domains[VM].starts == 2


async def plug(node: Node) -> None:
    system = VmDisk(id=DISK, system=True)
    extra, nic = disk(9, image=False), port(9, 1)
    wanted = node.boss.wanted[KEY].model_copy(
        update={"generation": 2, "disks": (system, VmDisk(id=extra.id, system=False)), "nics": (NIC, nic.id)}
    )
    await node.boss.want(extra, nic, wanted)


async def plugged(node: Node) -> None:
    await node.settled(KEY, "running")
    await node.settled("disk/dsk-0000000000000009", "ready")
    await node.settled("port/nic-0000000000000009", "ready")
    assert "dsk-0000000000000009" in node.host.domains[VM].disks


SCENARIOS: dict[str, tuple[Scenario | None, Scenario, Scenario]] = {
    "create": (None, create, created),
    "rebuild": (created, rebuild, rebuilt),
    "delete": (created, delete, deleted),
    "reboot": (created, reboot, rebooted),
    "stop and start": (created, restart, created),
    "crash": (created, crash, restarted),
    "plug": (created, plug, plugged),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_any_moment_it_converges(name: str) -> None:
    """The same again and again, the agent killed one turn of the loop later each time, until it is too late."""
    before, act, after = SCENARIOS[name]
    killed_at = 1
    while one_run(killed_at, before, act, after):
        killed_at += 1
    assert killed_at > 15, "the scenario was over before anything happened"


def one_run(turns: int, before: Scenario | None, act: Scenario, after: Scenario) -> bool:
    """False if everything was done before the agent was to be killed."""

    async def main() -> bool:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        async with running_node() as node:
            # every call of a driver is a moment at which it can be killed
            node.host.call_s = node.disk.call_s = node.kernel.call_s = 0.01
            if before is not None:
                await create(node)
                await before(node)
            reached = asyncio.Event()
            loop.at_step = (loop.steps + turns, reached.set)
            await act(node)
            finishing = asyncio.ensure_future(after(node))
            waiting = asyncio.ensure_future(reached.wait())
            await asyncio.wait({finishing, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if finishing.done():
                await finishing
                loop.at_step = None
                return False
            await node.kill()
            node.start()
            await finishing
            return True

    return run_virtually(main())


def test_a_restarted_agent_touches_nothing_and_needs_no_manager() -> None:
    async def main() -> None:
        async with running_node() as node:
            await create(node)
            await created(node)
            await node.listener.stop()
            await node.kill()
            flows = flows_of(node)
            node.host.calls.clear()
            node.switch.calls.clear()
            changes = node.kernel.changes
            node.start()
            await asyncio.sleep(60)
            assert {method for method, _ in node.host.calls} <= {"domains", "show"}
            assert not {"add_tap", "add_port", "remove_port", "change_flows"} & set(node.switch.calls)
            assert node.switch.calls["replace_flows"] == 1
            assert flows_of(node) == flows
            assert node.kernel.changes == changes
            node.host.crash(VM)
            await node.until(lambda: node.host.domains[VM].starts == 2)

    run_virtually(main())


def test_a_switch_that_lost_its_flows_gets_them_back() -> None:
    async def main() -> None:
        async with running_node() as node:
            await create(node)
            await created(node)
            flows = flows_of(node)
            node.switch.stop()
            await asyncio.sleep(30)
            node.switch.restart()
            await node.until(lambda: flows_of(node) == flows, limit_s=2)

    run_virtually(main())


def test_a_tap_that_went_missing_is_made_again() -> None:
    async def main() -> None:
        async with running_node() as node:
            await create(node)
            await created(node)
            node.switch.taps.clear()
            await node.until(lambda: "t000000000001" in node.switch.taps, limit_s=20)

    run_virtually(main())


def test_dead_services_are_mended() -> None:
    async def main() -> None:
        async with running_node() as node:
            await create(node)
            await created(node)
            node.kernel.broken.add(VPC)
            await node.until(lambda: not node.kernel.broken, limit_s=6)

    run_virtually(main())


def test_a_hypervisor_that_is_away_changes_nothing_and_is_caught_up_with() -> None:
    async def main() -> None:
        async with running_node() as node:
            await create(node)
            await created(node)
            node.host.engine_dies()
            await node.boss.change(KEY, reboots=1)
            await asyncio.sleep(120)
            assert node.boss.heard[KEY].state == "running"
            node.host.engine_returns()
            await node.settled(KEY, "running", limit_s=5)
            assert node.host.domains[VM].resets == 1

    run_virtually(main())


def test_a_vpc_without_services_holds_up_its_own_vms_only() -> None:
    async def main() -> None:
        async with running_node() as node:
            node.kernel.failing["ensure"] = CloudError(ErrorKind.ENGINE, "dnsmasq: no")
            alone = vm(2, nics=())
            await node.boss.want(*one_vm(), disk(2), alone)
            await node.settled(f"vm/{vm_id(2)}", "running")
            await node.settled(KEY, "error")
            assert "dnsmasq: no" in node.boss.heard[KEY].reason
            await node.settled(f"vpc/{VPC}", "error")
            node.kernel.failing.clear()
            await node.settled(KEY, "running")

    run_virtually(main())


def test_a_failing_flow_change_is_made_good_by_replacing_all() -> None:
    async def main() -> None:
        async with running_node() as node:
            await create(node)
            await created(node)
            node.switch.fail["change_flows"] = CloudError(ErrorKind.ENGINE, "bundle failed")
            await node.boss.want(port(2, 2), disk(2), vm(2))
            await node.settled(f"vm/{vm_id(2)}", "running")
            assert node.switch.calls["replace_flows"] == 2
            await node.until(lambda: node.boss.network_revision == node.boss.revision)

    run_virtually(main())


def test_a_number_that_something_unknown_has_is_not_fought_over() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.until(lambda: node.switch.calls["ports"] == 1)
            node.switch.devices.add("stranger")
            await node.switch.add_port("stranger", "somebody", 10)
            await create(node)
            await node.settled(KEY, "running")
            numbers = {facts.owner: facts.ofport for facts in await node.switch.ports()}
            assert numbers["somebody"] == 10 and len(set(numbers.values())) == 3

    run_virtually(main())


def test_an_older_manager_is_refused() -> None:
    async def main() -> None:
        async with running_node() as node:
            node.boss.epoch = 7
            await create(node)
            await created(node)
            await node.listener.stop()
            node.boss.epoch = 6
            node.boss.wanted[KEY] = node.boss.wanted[KEY].model_copy(update={"generation": 9, "power": "off"})
            node.listener.handler = node.boss.handle
            await asyncio.sleep(60)
            assert node.host.domains[VM].running
            assert node.boss.hellos[-1].epoch == 7
            node.boss.epoch = 8
            await node.settled(KEY, "stopped")

    run_virtually(main())


LATE_CALLS: dict[str, dict[str, Any]] = {
    "fence": {"node": "nod-0000000000000009", "pools": [POOL]},
    "evict": {"vms": [VM]},
    "ceph_command": {"cluster": "stc-1", "command": {"prefix": "osd out", "ids": ["0"]}},
}


@pytest.mark.parametrize("method", [*LATE_CALLS, "desired"])
def test_what_an_older_manager_says_late_on_a_connection_that_stands_is_refused(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The node has heard of a newer leader; the older one, which hung, goes on and says what it was about to."""
    answered: list[str] = []
    answer = Calls.answer

    async def note(self: Calls, asked: str, params: Mapping[str, Any]) -> Any:
        answered.append(asked)
        return await answer(self, asked, params)

    monkeypatch.setattr(Calls, "answer", note)

    async def main() -> None:
        async with running_node() as node:
            node.boss.epoch = 6
            await create(node)
            await created(node)
            assert (await node.boss.call("ping")).error is None and answered == ["ping"]
            before, hellos = dict(node.journal.desired), len(node.boss.hellos)
            await node.journal.see_epoch(7)
            if method == "desired":
                await node.boss.change(KEY, power="off")
                node.boss.wanted[KEY] = before[KEY]
            else:
                late = asyncio.ensure_future(node.boss.call(method, **LATE_CALLS[method]))
            await node.until(lambda: len(node.boss.hellos) > hellos)
            assert node.boss.hellos[-1].epoch == 7, "it has hung up, and says of whom it has heard"
            await asyncio.sleep(60)
            assert answered == ["ping"] and dict(node.journal.desired) == before
            assert node.host.domains[VM].running
            if method != "desired":
                assert not late.done(), "it was never answered"
                late.cancel()

    run_virtually(main())


def test_another_manager_is_dialled_without_waiting_for_the_goodbye_of_one_that_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    close = MemoryChannel.close
    farewell_s = 0.0

    async def linger(self: MemoryChannel) -> None:
        await asyncio.sleep(farewell_s)
        await close(self)

    monkeypatch.setattr(MemoryChannel, "close", linger)

    async def main() -> None:
        nonlocal farewell_s
        async with running_node() as node:
            await node.until(lambda: len(node.boss.hellos) == 1)
            farewell_s = 50.0
            await node.journal.see_epoch(7)
            await node.boss.want(*one_vm())  # of an older epoch: the node hangs up
            await node.until(lambda: len(node.boss.hellos) == 2, 5.0)
            farewell_s = 0.0

    run_virtually(main())


def test_only_what_differs_is_sent_to_a_node_that_comes_back() -> None:
    async def main() -> None:
        async with running_node() as node:
            await create(node)
            await created(node)
            await node.listener.stop()
            node.listener.handler = node.boss.handle
            await node.until(lambda: len(node.boss.hellos) == 2)
            assert set(node.boss.hellos[1].have) == set(node.boss.wanted)
            await node.until(lambda: node.boss.network_revision == node.boss.revision)
            await node.until(lambda: node.boss.heartbeats > 5)

    run_virtually(main())


def test_a_new_manager_counts_from_one_and_is_told_in_its_numbers() -> None:
    async def main() -> None:
        async with running_node() as node:
            await create(node)
            await created(node)
            for generation in range(2, 20):
                await node.boss.change(f"port/{NIC}", hostname=f"name-{generation}")
            await node.until(lambda: node.boss.network_revision == node.boss.revision)
            assert node.boss.revision > 15
            await node.listener.stop()
            node.boss.revision = 0
            node.boss.epoch = 2
            node.listener.handler = node.boss.handle
            await node.until(lambda: node.boss.network_revision == node.boss.revision == 1)

    run_virtually(main())


def test_a_broken_link_in_the_middle_of_a_creation() -> None:
    async def main() -> None:
        sent = 0

        def breaks() -> bool:
            nonlocal sent
            sent += 1
            return sent % 7 == 0

        async with running_node() as node:
            node.conditions.breaks = breaks
            node.conditions.delay = lambda: 0.02
            await create(node)
            await created(node)

    run_virtually(main())


def test_a_missing_image_is_waited_for() -> None:
    async def main() -> None:
        async with running_node() as node:
            node.images.missing.add(IMAGE)
            await create(node)
            await node.settled(f"disk/{DISK}", "error")
            node.images.missing.clear()
            await created(node)
            assert SHA in str(node.disk.volumes[DISK].content.source)

    run_virtually(main())


def test_a_vm_waits_for_an_image_as_long_as_the_manager_is_away() -> None:
    async def main() -> None:
        async with running_node() as node:
            node.images.away = True
            await create(node)
            await asyncio.sleep(200)
            heard = [item for item in node.boss.history if item.key in (KEY, f"disk/{DISK}")]
            assert heard and not [item for item in heard if item.state == "error"], "nothing is wrong with either"
            node.images.away = False
            await created(node)

    run_virtually(main())


def test_strangers_are_listed_and_left_alone() -> None:
    async def main() -> None:
        async with running_node() as node:
            await create(node)
            await created(node)
            # the manager forgets the VM without ever having said that it is to go
            await node.boss.want(drop=[KEY, f"disk/{DISK}", f"port/{NIC}"])
            await node.kill()
            node.start()
            await asyncio.sleep(60)
            assert node.host.domains[VM].running and DISK in node.disk.volumes and node.switch.taps
            reply = await node.boss.call("inventory")
            assert reply.error is None
            assert reply.result["running"] == [KEY]
            assert reply.result["disks"] == [f"disk/{DISK}"]
            assert f"port/{NIC}" in reply.result["ports"]
            assert reply.result["namespaces"] == [f"vpc/{VPC}"]

    run_virtually(main())


def test_a_nic_that_is_another_nodes_now_leaves_no_tap() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm(), port(2, 2), disk(2), vm(2))
            await node.settled(KEY, "running")
            await node.boss.change(KEY, power="absent")
            moved = port(1, 1, node="nod-0000000000000002").model_copy(update={"generation": 2})
            await node.boss.want(moved)
            await node.until(lambda: "t000000000001" not in node.switch.taps)
            assert f"port/{NIC}" not in node.journal.ofports
            assert NODE not in str(node.boss.heard.get(f"port/{NIC}"))

    run_virtually(main())


def test_an_agent_that_knows_nothing_takes_no_flows_away() -> None:
    """Its journal is lost; until the manager has spoken, what runs keeps its network."""

    async def main() -> None:
        async with running_node() as node:
            await create(node)
            await created(node)
            flows = flows_of(node)
            await node.kill()
            await node.listener.stop()
            node.journal = type(node.journal)()
            node.start()
            await asyncio.sleep(30)
            assert flows_of(node) == flows
            assert node.kernel.specs
            numbers = {facts.owner: facts.ofport for facts in await node.switch.ports()}
            node.listener.handler = node.boss.handle
            await created(node)
            assert numbers == {facts.owner: facts.ofport for facts in await node.switch.ports()}
            assert node.host.domains[VM].starts == 1
            assert flows_of(node) == flows

    run_virtually(main())


def test_vms_end_on_a_node_that_was_taken_out_of_the_cloud_and_only_then() -> None:
    """Its VMs may run elsewhere by now. Their disks stay. A manager that merely does not know it, as one whose database
    is an older copy, is no reason, nor is one that leads no more."""

    async def main() -> None:
        async with running_node() as node:
            await create(node)
            await created(node)
            node.boss.epoch = 2
            for refusal, removed in (
                (Refused(error=(ErrorKind.FORBIDDEN, "not known")), False),
                (Removed(epoch=0), False),
                (Removed(epoch=2), True),
            ):
                await node.kill()
                node.boss.refusal = refusal
                node.start()
                await asyncio.sleep(30)
                assert (VM in node.host.domains) is not removed
            assert DISK in node.disk.volumes and not node.switch.taps
            await node.kill()
            node.start()
            await asyncio.sleep(30)
            assert VM not in node.host.domains, "it was started again"

    run_virtually(main())
