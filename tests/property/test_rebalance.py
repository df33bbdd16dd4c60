"""Rebalancing over random clouds: only what may be moved, only for a gain, never too much anywhere."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from scloud.scheduler.load import Load
from scloud.scheduler.rebalance import MIN_GAIN, Placed, propose
from scloud.scheduler.snapshot import NodeSnapshot
from scloud.scheduler.weighers import fullness

IDS = [f"nod-{number}" for number in range(5)]


@st.composite
def clouds(draw: st.DrawFn) -> tuple[list[NodeSnapshot], list[Placed]]:
    vms = []
    for number in range(draw(st.integers(0, 14))):
        grouped = draw(st.booleans())
        vms.append(
            Placed(
                id=f"vm-{number:02}",
                name=f"v{number}",
                account=draw(st.sampled_from(["a", "b"])),
                node=draw(st.sampled_from(IDS)),
                cpus=draw(st.integers(1, 4)),
                memory_mib=draw(st.integers(64, 1024)),
                disk_mib=draw(st.integers(0, 100)),
                architecture="x86_64",
                group="g" if grouped else None,
                group_hard=grouped,
                stays="may be on one node only" if draw(st.integers(0, 4)) == 0 else "",
                reachable_from=draw(st.none() | st.frozensets(st.sampled_from(IDS))),
            )
        )
    nodes = []
    for number, id in enumerate(IDS[: draw(st.integers(1, 5))]):
        mine = [vm for vm in vms if vm.node == id]
        nodes.append(
            NodeSnapshot(
                id,
                f"n{number}",
                draw(st.integers(0, 5)) > 0,
                draw(st.integers(0, 5)) == 0,
                "x86_64",
                cpus=16,
                memory_mib=8192,
                disk_mib=500,
                cpus_used=sum(vm.cpus for vm in mine),
                memory_used_mib=sum(vm.memory_mib for vm in mine),
                disk_used_mib=sum(vm.disk_mib for vm in mine),
                load=Load(cpu=draw(st.floats(0, 1))),
                rack=draw(st.sampled_from(["", "r1"])),
            )
        )
    return nodes, vms


@given(clouds(), st.integers(1, 20))
def test_moves_are_allowed_worth_while_and_fit_one_after_the_other(
    cloud: tuple[list[NodeSnapshot], list[Placed]], limit: int
) -> None:
    nodes, vms = cloud
    proposal = propose(nodes, vms, limit=limit)
    assert proposal == propose(nodes[::-1], vms[::-1], limit=limit)
    assert len(proposal.moves) <= limit
    now = {node.id: node for node in nodes}
    members = [vm.node for vm in vms if vm.group]
    for move in proposal.moves:
        vm = move.vm
        assert move.gain >= MIN_GAIN and not vm.stays and move.target != vm.node
        assert now[vm.node].ready and now[move.target].ready and not now[move.target].cordoned
        assert vm.reachable_from is None or move.target in vm.reachable_from
        if vm.group:
            members.remove(vm.node)
            assert move.target not in members
            members.append(move.target)
        for id, sign in ((vm.node, -1), (move.target, 1)):
            node = now[id]
            now[id] = replace(
                node,
                cpus_used=node.cpus_used + sign * vm.cpus,
                memory_used_mib=node.memory_used_mib + sign * vm.memory_mib,
                disk_used_mib=node.disk_used_mib + sign * vm.disk_mib,
            )
        full = now[move.target]
        assert full.cpus_used <= 16 and full.memory_used_mib <= 8192 and full.disk_used_mib <= 500
    assert len({move.vm.id for move in proposal.moves}) == len(proposal.moves), "each at most once"
    for after in proposal.nodes:
        assert (after.cpus_used, after.memory_used_mib) == (now[after.id].cpus_used, now[after.id].memory_used_mib)


def test_an_empty_node_takes_over_until_all_are_alike_and_then_nothing_is_proposed() -> None:
    vms = [Placed(f"vm-{n:02}", f"v{n}", f"acc-{n}", f"nod-{n % 2}", 2, 512, 0, "x86_64") for n in range(12)]
    nodes = [
        NodeSnapshot(f"nod-{n}", f"n{n}", True, False, "x86_64", 16, 65536, 500, cpus_used=0 if n == 2 else 12)
        for n in range(3)
    ]
    proposal = propose(nodes, vms)
    assert [fullness(node) for node in proposal.nodes] == [0.5, 0.5, 0.5]
    assert len(proposal.moves) == 4 and {move.target for move in proposal.moves} == {"nod-2"}
    gains = [move.gain for move in proposal.moves]
    assert gains == sorted(gains, reverse=True)
    moved = {move.vm.id: move.target for move in proposal.moves}
    again = propose(proposal.nodes, [replace(vm, node=moved.get(vm.id, vm.node)) for vm in vms])
    assert again.moves == ()


def test_members_of_a_group_that_share_a_node_are_moved_apart_first() -> None:
    vms = [
        Placed("vm-1", "v1", "a", "nod-0", 1, 64, 0, "x86_64", group="g"),
        Placed("vm-2", "v2", "b", "nod-0", 1, 64, 0, "x86_64", group="g"),
        Placed("vm-3", "v3", "c", "nod-0", 8, 64, 0, "x86_64"),
    ]
    nodes = [NodeSnapshot(f"nod-{n}", f"n{n}", True, False, "x86_64", 16, 4096, 500, 10 * (not n)) for n in range(2)]
    assert [move.vm.name for move in propose(nodes, vms, limit=1).moves] == ["v1"]
