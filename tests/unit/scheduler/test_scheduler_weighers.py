"""Which of the nodes that fit is taken."""

from __future__ import annotations

from dataclasses import replace

from scloud.scheduler.fleet import Fleet
from scloud.scheduler.load import Load, smooth
from scloud.scheduler.plan import place
from scloud.scheduler.snapshot import NodeSnapshot, Request

ONE = NodeSnapshot("nod-1", "n1", True, False, "x86_64", cpus=8, memory_mib=8192, disk_mib=8192)
TWO = replace(ONE, id="nod-2", name="n2")


def choose(nodes: list[NodeSnapshot], request: Request) -> str | None:
    return Fleet(nodes).choose(request)


ASK = Request(cpus=1, memory_mib=512, disk_mib=10, architecture="x86_64")


def test_the_emptier_node_is_taken() -> None:
    assert choose([replace(ONE, cpus_used=4), TWO], ASK) == "nod-2"
    assert choose([ONE, replace(TWO, memory_used_mib=4096)], ASK) == "nod-1"


def test_a_node_that_is_really_busy_is_worse_than_one_that_is_promised() -> None:
    assert choose([replace(ONE, load=Load(cpu=1.0)), replace(TWO, cpus_used=2)], ASK) == "nod-2"


def test_equal_nodes_are_taken_by_id() -> None:
    assert choose([TWO, ONE], ASK) == "nod-1"


def test_an_accounts_vms_are_scattered_unless_nodes_are_much_fuller() -> None:
    ask = replace(ASK, account_vms={"nod-1": 1})
    assert choose([ONE, TWO], ask) == "nod-2"
    assert choose([ONE, replace(TWO, cpus_used=7)], ask) == "nod-1"


def test_a_soft_group_outweighs_load_and_never_refuses() -> None:
    ask = replace(ASK, group_vms={"nod-1": 1})
    assert choose([ONE, replace(TWO, cpus_used=7, load=Load(cpu=1.0))], ask) == "nod-2"
    assert choose([ONE], ask) == "nod-1"
    assert choose([ONE], replace(ask, group_hard=True)) is None


def test_every_reason_is_told() -> None:
    node = replace(ONE, ready=False, reason="is down", cordoned=True, cpus=0, memory_mib=0, disk_mib=0)
    ask = replace(ASK, node="nod-2", architecture="aarch64", group_vms={"nod-1": 1}, group_hard=True)
    [candidate] = place([node], ask).candidates
    assert candidate.reasons == (
        "another node was asked for",
        "is down",
        "is cordoned (`scloud node uncordon` opens it)",
        "is x86_64, the image is aarch64",
        "has too few CPUs left (0 of 0 with overcommit, 1 asked for)",
        "has too little memory left (0 MiB, 512 asked for)",
        "has too little disk left (0 MiB, 10 asked for)",
        "already has a VM of this hard placement group",
    )
    plan = place([node, replace(node, id="nod-3", name="n3")], replace(ASK, cpus=2))
    assert "(2 of 2 nodes)" in plan.explain()


RACKS = [
    replace(ONE, id=f"nod-{rack}{number}", name=f"{rack}{number}", rack=rack)
    for rack in ("a", "b")
    for number in (1, 2)
]


def test_a_group_over_racks_is_spread_evenly_over_racks_then_over_their_nodes() -> None:
    members: dict[str, int] = {}
    chosen = []
    for _ in range(6):
        node = choose(RACKS, replace(ASK, group_vms=members, group_over="rack"))
        assert node is not None
        chosen.append(node)
        members[node] = members.get(node, 0) + 1
    assert chosen == ["nod-a1", "nod-b1", "nod-a2", "nod-b2", "nod-a1", "nod-b1"]


def test_a_hard_group_over_racks_takes_each_rack_once_and_says_so() -> None:
    nodes = [*RACKS, replace(ONE, id="nod-z", name="z")]
    ask = replace(ASK, group_vms={"nod-a1": 1, "nod-b2": 1}, group_over="rack", group_hard=True)
    assert choose(nodes, ask) is None
    reasons = {candidate.name: candidate.reasons for candidate in place(nodes, ask).candidates}
    assert reasons["a2"] == ("stands in rack a, which already has a VM of this hard placement group",)
    assert "no rack that is known" in reasons["z"][0]


def test_every_kind_of_load_counts() -> None:
    for busy in (Load(memory=0.5), Load(disk=0.5), Load(network=0.5), Load(storage=0.5), Load(storage_ms=25.0)):
        assert choose([replace(ONE, load=busy), TWO], ASK) == "nod-2", busy


def test_a_score_is_the_sum_of_the_parts_that_are_told() -> None:
    ask = replace(ASK, account_vms={"nod-1": 2}, group_vms={"nod-1": 1})
    [candidate] = place([replace(ONE, load=Load(cpu=0.5))], ask).candidates
    assert candidate.parts == {"promised": 0.125, "load": 0.25, "gpu": 0.0, "group": 100.0, "account": 1.0}
    assert candidate.score == sum(candidate.parts.values())


def test_a_peak_of_a_second_hardly_counts_and_what_lasts_does() -> None:
    load = smooth(None, Load(), 0.0)
    load = smooth(load, Load(cpu=1.0), 1.0)
    assert load.cpu < 0.05
    for _ in range(89):
        load = smooth(load, Load(cpu=1.0), 1.0)
    assert 0.94 < load.cpu < 0.96, "three time constants"
    assert abs(smooth(smooth(None, Load(), 0.0), Load(cpu=1.0), 90.0).cpu - load.cpu) < 1e-9, "late samples count more"
