"""Which faults of a lab can be asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

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


@pytest.mark.parametrize(("victim", "how"), [("n1", How.KILL), ("n1", How.HANG), ("manager", How.PARTITION)])
def test_only_a_node_is_cut_off_from_one_side(plan: LabPlan, victim: str, how: How) -> None:
    with pytest.raises(CloudError) as caught:
        fail(plan, victim, how, side=Side.STORAGE)
    assert caught.value.kind is ErrorKind.INVALID and "--how partition" in caught.value.message


def test_what_each_side_is(plan: LabPlan) -> None:
    assert _far(plan, "n2", Side.MANAGER) == ["10.98.7.1"]
    assert _far(plan, "n2", Side.STORAGE) == [plan.management_address("n1"), plan.management_address("n3")]
