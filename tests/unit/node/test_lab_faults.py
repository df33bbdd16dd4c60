"""Which faults of a lab can be asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from scloud.lab import cuts
from scloud.lab.faults import How, Side, _far, fail
from scloud.lab.plan import LabPlan
from scloud.model.errors import CloudError, ErrorKind
from scloud.setup.manager import Endpoints


@pytest.fixture
def plan(tmp_path: Path) -> LabPlan:
    return LabPlan(
        root=tmp_path,
        nodes=("n1", "n2", "n3"),
        management="10.98.7.0/24",
        endpoints=Endpoints(api="127.0.0.1:7880", link="10.98.7.1:7890"),
        source="src",
        boot="boot",
    )


@pytest.fixture
def two(plan: LabPlan) -> LabPlan:
    """With a second manager."""
    first, second = (Endpoints(api=f"127.0.0.1:788{n}", link=f"10.98.7.{2 + n}:7890") for n in range(2))
    return plan.model_copy(update={"endpoints": first, "standbys": (second,)})


@pytest.mark.parametrize(("victim", "how"), [("n1", How.KILL), ("n1", How.HANG), ("manager", How.PARTITION)])
def test_only_a_node_is_cut_off_from_one_side(plan: LabPlan, victim: str, how: How) -> None:
    with pytest.raises(CloudError) as caught:
        fail(plan, victim, how, side=Side.STORAGE)
    assert caught.value.kind is ErrorKind.INVALID and "--how partition" in caught.value.message


@pytest.mark.parametrize(("victim", "side"), [("n1", Side.DATABASE), ("n1", Side.NODES), ("manager-2", Side.MANAGER)])
def test_what_it_cannot_be_cut_off_from_is_named(two: LabPlan, victim: str, side: Side) -> None:
    with pytest.raises(CloudError, match=f"cut {victim} off from .*, not from {side}") as caught:
        fail(two, victim, How.PARTITION, side=side)
    assert caught.value.kind is ErrorKind.INVALID


def test_a_manager_alone_is_not_cut_off(plan: LabPlan) -> None:
    with pytest.raises(CloudError, match="--managers 2"):
        fail(plan, "manager", How.PARTITION)


@pytest.mark.parametrize(
    ("side", "expected"),
    [(None, {"10.98.7.3", "database"}), (Side.DATABASE, {"database"}), (Side.NODES, {"10.98.7.3"})],
)
def test_one_of_two_managers_is_cut_off_by_the_addresses_that_are_its_own(
    two: LabPlan, monkeypatch: pytest.MonkeyPatch, side: Side | None, expected: set[str]
) -> None:
    lost: list[str] = []
    monkeypatch.setattr(cuts, "run", lambda argv, stdin: lost.append(stdin.splitlines()[-1]))
    assert "manager-2 is cut off from the" in fail(two, "manager-2", How.PARTITION, side=side)
    (said,) = lost
    addresses = set(said.partition("{ ")[2].removesuffix(" }").split(", "))
    mine, others = two.database_addresses[1], {two.database_addresses[0], "10.98.7.2", "10.98.7.1", "127.0.0.1"}
    assert addresses == {mine if one == "database" else one for one in expected}
    assert not addresses & others and mine.startswith("127.")


def test_what_each_side_is(plan: LabPlan, two: LabPlan) -> None:
    assert _far(plan, "n2", Side.MANAGER) == ["10.98.7.1"]
    assert _far(two, "n2", Side.MANAGER) == ["10.98.7.2", "10.98.7.3"]
    assert _far(plan, "n2", Side.STORAGE) == [plan.management_address("n1"), plan.management_address("n3")]
