"""Which of the nodes that fit is taken."""

from __future__ import annotations

from dataclasses import replace

from scloud.scheduler.fleet import Fleet
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
    assert choose([replace(ONE, cpu_load=1.0), replace(TWO, cpus_used=2)], ASK) == "nod-2"


def test_equal_nodes_are_taken_by_id() -> None:
    assert choose([TWO, ONE], ASK) == "nod-1"


def test_an_accounts_vms_are_scattered_unless_nodes_are_much_fuller() -> None:
    ask = replace(ASK, account_vms={"nod-1": 1})
    assert choose([ONE, TWO], ask) == "nod-2"
    assert choose([ONE, replace(TWO, cpus_used=7)], ask) == "nod-1"


def test_a_soft_group_outweighs_load_and_never_refuses() -> None:
    ask = replace(ASK, group_vms={"nod-1": 1})
    assert choose([ONE, replace(TWO, cpus_used=7, cpu_load=1.0)], ask) == "nod-2"
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
