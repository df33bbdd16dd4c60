"""A VM on its way: what the target's agent answers when only it can say, and when one is given up."""

from __future__ import annotations

import asyncio

import pytest
from agent_clock import run
from agent_node import Node, disk, running_node, vm, vm_id

from scloud.agent.moves import GIVE_UP_AFTER, hopeless
from scloud.drivers.hypervisor.fake import FakeDomain
from scloud.model.desired import DesiredVm, MoveIn, MoveOut
from scloud.model.migrations import DiskCopy, MoveProgress, MoveSeen, OnStuck

VM = vm_id(1)
KEY = f"vm/{VM}"


def coming(asked: int = 0) -> DesiredVm:
    copy = DiskCopy(disk=disk(1).id, size_mib=8)
    move = MoveIn(number=1, source="nod-0000000000000002", pools={}, copies=(copy,), asked=asked)
    return vm(1, nics=(), generation=1 + asked, move_in=move)


def said(node: Node) -> MoveSeen | None:
    heard = node.boss.heard.get(KEY)
    return heard.move if heard is not None else None


async def expected(node: Node) -> None:
    await node.boss.want(coming())
    await node.until(lambda: (seen := said(node)) is not None and seen.state == "ready")
    assert VM in node.passages.expected


def answered(node: Node, state: str) -> bool:
    seen = said(node)
    return seen is not None and (seen.state, seen.asked) == (state, 1)


def test_who_is_asked_whether_it_has_come_lets_nothing_more_come() -> None:
    async def main() -> None:
        async with running_node() as node:
            await expected(node)
            await node.boss.want(coming(asked=1))
            await node.until(lambda: answered(node, "ready"))
            assert VM not in node.passages.expected, "it could come after this node has said that it has not"

    run(main())


def test_there_is_no_answer_while_what_came_last_is_still_on_its_way_into_the_engine() -> None:
    async def main() -> None:
        async with running_node() as node:
            await expected(node)
            spec = node.passages.expected[VM][1]
            arriving = FakeDomain(spec=spec, running=True, paused=True, moving=True)
            node.host.domains[VM] = arriving
            await node.boss.want(coming(asked=1))
            await node.until(lambda: VM not in node.passages.expected)
            await asyncio.sleep(10)
            seen = said(node)
            assert seen is not None and (seen.state, seen.asked) == ("arriving", 0)
            arriving.moving, arriving.complete = False, True
            await node.until(lambda: answered(node, "complete"))
            assert arriving.paused, "the manager lets it run"

    run(main())


def test_a_guest_whose_memory_is_divided_for_ever_is_started_anew() -> None:
    """A post-copy broke off, and the manager has decided who has it."""

    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(disk(1), vm(1, nics=()))
            await node.settled(KEY, "running")
            domain = node.host.domains[VM]
            domain.halved, pid = True, domain.pid
            await node.boss.want(vm(1, nics=(), generation=2))
            await node.until(lambda: node.boss.settled(KEY, "running") and node.host.domains[VM].pid != pid)
            assert not node.host.domains[VM].halved

    run(main())


def test_the_source_of_a_post_copy_that_broke_off_does_not_say_that_it_stays() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(disk(1), vm(1, nics=()))
            await node.settled(KEY, "running")
            domain = node.host.domains[VM]
            domain.paused = domain.halved = True
            await node.journal.remember(VM, node.journal.memory(VM).model_copy(update={"migration": 1}))
            move = MoveOut(number=1, target="nod-0000000000000002", address="192.0.2.1:7", stuck="post-copy")
            await node.boss.want(vm(1, nics=(), generation=2, move_out=move))
            await node.until(lambda: (seen := said(node)) is not None and seen.state == "held")

    run(main())


def at(iteration: int, downtime_ms: int | None) -> MoveProgress:
    return MoveProgress(
        iteration=iteration, total_mib=256, remaining_mib=32, rate_mib_s=8, dirty_mib_s=30, downtime_ms=downtime_ms
    )


def out(stuck: OnStuck) -> MoveOut:
    return MoveOut(number=1, target="b", address="192.0.2.1:7", stuck=stuck, downtime_ms=300)


def test_one_that_does_not_converge_is_given_up_with_the_figures_if_so_asked() -> None:
    words = hopeless(out("give-up"), at(GIVE_UP_AFTER + 1, 4000))
    for part in ("8 MiB/s copied", "30 MiB/s written", "32 of 256 MiB", "pause 4000 ms", "--stuck"):
        assert part in words


@pytest.mark.parametrize(
    ("stuck", "progress"),
    [
        ("give-up", at(GIVE_UP_AFTER, 4000)),
        ("give-up", at(GIVE_UP_AFTER + 1, 300)),
        ("give-up", at(GIVE_UP_AFTER + 1, None)),
        ("auto-converge", at(50, 4000)),
        ("post-copy", at(50, 4000)),
    ],
)
def test_others_go_on(stuck: OnStuck, progress: MoveProgress) -> None:
    assert hopeless(out(stuck), progress) == ""
