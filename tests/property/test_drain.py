"""Draining random clouds, step by step as a manager would, until nothing is left to move."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from scloud.scheduler.drain import Leaver, Limits, drain
from scloud.scheduler.snapshot import NodeSnapshot, Request

IDS = [f"nod-{number}" for number in range(5)]


@st.composite
def clouds(draw: st.DrawFn) -> tuple[list[NodeSnapshot], list[Leaver]]:
    draining = draw(st.sets(st.sampled_from(IDS), min_size=1, max_size=2))
    leavers = []
    for number in range(draw(st.integers(0, 10))):
        leavers.append(
            Leaver(
                id=f"vm-{number:02}",
                name=f"v{number}",
                account=draw(st.sampled_from(["a", "b"])),
                node=draw(st.sampled_from(sorted(draining))),
                request=Request(
                    draw(st.integers(1, 4)),
                    draw(st.sampled_from([256, 1024, 3000])),
                    0,
                    "x86_64",
                    reachable_from=draw(st.none() | st.frozensets(st.sampled_from(IDS))),
                ),
                live=draw(st.booleans()),
                group="g" if draw(st.booleans()) else None,
                stays="has GPUs" if draw(st.integers(0, 6)) == 0 else "",
            )
        )
    nodes = []
    for number, id in enumerate(IDS):
        mine = [vm.request for vm in leavers if vm.node == id]
        nodes.append(
            NodeSnapshot(
                id,
                f"n{number}",
                draw(st.integers(0, 5)) > 0,
                id in draining or draw(st.integers(0, 5)) == 0,
                "x86_64",
                cpus=16,
                memory_mib=8192,
                disk_mib=100,
                cpus_used=sum(vm.cpus for vm in mine),
                memory_used_mib=sum(vm.memory_mib for vm in mine),
                draining=id in draining,
            )
        )
    return nodes, leavers


def asked(vm: Leaver, at: dict[str, set[str]]) -> Leaver:
    """With its group, which is hard, where it is: at both ends while on its way."""
    members = Counter(node for other in at if other != vm.id for node in at[other]) if vm.group else Counter[str]()
    return replace(vm, request=replace(vm.request, group_vms=dict(members), group_hard=vm.group is not None))


@given(clouds(), st.integers(1, 3), st.integers(1, 4), st.data())
def test_never_too_many_at_once_never_onto_a_closed_node_and_it_ends(
    cloud: tuple[list[NodeSnapshot], list[Leaver]], per_node: int, in_all: int, data: st.DataObject
) -> None:
    nodes, all_leavers = cloud
    left = {vm.id: vm for vm in all_leavers}
    limits = Limits(per_node, in_all)
    now = {node.id: node for node in nodes}
    under_way: list[tuple[Leaver, str]] = []
    group = {vm.id: {vm.node} for vm in all_leavers if vm.group}
    for _ in range(3 * len(all_leavers) + 1):
        waiting = [asked(vm, group) for vm in left.values()]
        pairs = [(vm.node, target) for vm, target in under_way]
        plan = drain(now.values(), waiting, pairs, limits)
        assert plan == drain(list(now.values())[::-1], waiting[::-1], pairs[::-1], limits)
        begun = {leave.vm.id for leave in plan.begin}
        assert sorted([*begun, *plan.waits, *plan.stays]) == sorted(left), "each VM has exactly one answer"
        assert all(plan.stays.values()) and all(plan.waits.values())
        for leave in plan.begin:
            vm, target = leave.vm, now[leave.target]
            assert not vm.stays and target.ready and not target.cordoned and target.id != vm.node
            assert vm.request.reachable_from is None or target.id in vm.request.reachable_from
            if vm.group:
                assert not any(target.id in places for other, places in group.items() if other != vm.id)
                group[vm.id].add(target.id)
            used = target.cpus_used + vm.request.cpus, target.memory_used_mib + vm.request.memory_mib
            assert used[0] <= target.cpus and used[1] <= target.memory_mib, "and nothing is promised twice"
            now[target.id] = replace(target, cpus_used=used[0], memory_used_mib=used[1])
            del left[vm.id]
            if vm.live:
                under_way.append((vm, leave.target))
            else:
                _arrive(vm, leave.target, now, group)
        at = Counter(node for vm, target in under_way for node in (vm.node, target))
        assert len(under_way) <= in_all and all(number <= per_node for number in at.values())
        if plan.over and not under_way:
            break
        if under_way:
            vm, target = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
            _arrive(vm, target, now, group)
    else:
        raise AssertionError("it does not end")
    assert set(left) == set(plan.stays), "what is left has said why"


def _arrive(vm: Leaver, target: str, now: dict[str, NodeSnapshot], group: dict[str, set[str]]) -> None:
    source = now[vm.node]
    cpus, memory = source.cpus_used - vm.request.cpus, source.memory_used_mib - vm.request.memory_mib
    now[vm.node] = replace(source, cpus_used=cpus, memory_used_mib=memory)
    if vm.group:
        group[vm.id] = {target}


def node(id: str, memory_mib: int, draining: bool = False) -> NodeSnapshot:
    return NodeSnapshot(id, id, True, draining, "x86_64", cpus=64, memory_mib=memory_mib, disk_mib=0, draining=draining)


def test_the_hardest_goes_first_so_that_it_finds_its_only_place() -> None:
    small = Leaver("vm-1", "small", "a", "n1", Request(1, 1000, 0, "x86_64"))
    large = Leaver("vm-2", "large", "a", "n1", Request(1, 4000, 0, "x86_64"))
    plan = drain([node("n1", 9000, True), node("n2", 4000), node("n3", 1500)], [small, large], [], Limits(9, 9))
    assert [(leave.vm.name, leave.target) for leave in plan.begin] == [("large", "n2"), ("small", "n3")]


def test_who_cannot_leave_says_what_stands_in_the_way() -> None:
    vm = Leaver("vm-1", "v", "a", "n1", Request(1, 1000, 0, "x86_64"))
    closed = [node("n1", 9000, True), node("n2", 9000, True), node("n3", 500)]
    plan = drain(closed, [vm], [], Limits(2, 4))
    assert plan.over and "is being drained" in plan.stays["vm-1"] and "too little memory" in plan.stays["vm-1"]
    assert "there is no other node" in drain(closed[:1], [vm], [], Limits(2, 4)).stays["vm-1"]
    again = replace(vm, request=replace(vm.request, away=frozenset({"n2"})))
    assert (
        "still removing" in drain([node("n1", 9000, True), node("n2", 9000)], [again], [], Limits(2, 4)).waits["vm-1"]
    )
    busy = drain([node("n1", 9000, True), node("n2", 9000)], [vm], [("n2", "n3"), ("n3", "n2")], Limits(2, 4))
    assert busy.waits == {"vm-1": "waits for its turn"} and not busy.over
