"""Plans of disks, ports and the node's view."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scloud.model.desired import DesiredDisk, DesiredPort, DesiredSnapshot
from scloud.model.snapshots import DiskLimits
from scloud.reconcile.disk import (
    ClearDisk,
    CreateDisk,
    DeleteDisk,
    DeleteSnapshot,
    DiskAction,
    DiskHere,
    DiskUse,
    Flatten,
    LimitDisk,
    MendDisk,
    ResizeDisk,
    RollBack,
    TakeSnapshot,
    disk_plan,
)
from scloud.reconcile.network import node_view, service_name, tap_name
from scloud.reconcile.port import AddTap, PortSituation, RemoveTap, port_plan


def disk(**fields: Any) -> DesiredDisk:
    values = {"id": "dsk-1", "generation": 3, "size_mib": 100, "image": "img", "image_sha256": "s", **fields}
    return DesiredDisk.model_validate(values)


def port(**fields: Any) -> DesiredPort:
    values: dict[str, Any] = {
        **{"id": "nic-1", "generation": 2, "vpc": "v", "subnet": "s", "vm": "vm-1", "hostname": "h"},
        **{"mac": "02:00:00:00:00:01", "ip": "10.0.0.5", "node_id": "me", "tunnel_ip": "1.1.1.1", **fields},
    }
    return DesiredPort.model_validate(values)


SNAPSHOTS = st.sampled_from(["snp-1", "snp-2", "snp-3"])
LIMITS = st.builds(DiskLimits, iops=st.sampled_from([0, 100]))
DISKS = st.builds(
    disk,
    absent=st.booleans(),
    incarnation=st.integers(0, 2),
    size_mib=st.sampled_from([100, 200]),
    snapshots=st.lists(
        st.builds(DesiredSnapshot, id=SNAPSHOTS, absent=st.booleans()), max_size=3, unique_by=lambda one: one.id
    ).map(tuple),
    rollbacks=st.integers(0, 2),
    rollback_to=st.none() | SNAPSHOTS,
    limits=LIMITS,
    flattened=st.booleans(),
)
HERE = st.none() | st.builds(
    DiskHere,
    st.sampled_from([100, 200]),
    st.integers(0, 100),
    st.integers(0, 2),
    st.lists(SNAPSHOTS, unique=True).map(lambda ids: tuple((one, 100) for one in ids)),
    st.integers(0, 2),
    st.sampled_from([None, "image/img", "snapshot/snp-9"]),
    st.none() | LIMITS,
)
VMS = st.none() | st.sampled_from(["vm-1", "vm-2"])
USES = st.builds(DiskUse, VMS, VMS, st.none() | st.sampled_from([100, 200]), LIMITS)


@given(DISKS, HERE, USES)
def test_what_a_running_vm_has_open_is_never_thrown_away(
    wanted: DesiredDisk, here: DiskHere | None, use: DiskUse
) -> None:
    plan = disk_plan(wanted, here, use)
    if use.open_by is not None:
        assert not isinstance(plan.action, CreateDisk | DeleteDisk | RollBack) or here is None
    if plan.action is not None:
        assert not plan.observed.settled


@given(DISKS, HERE, USES)
def test_a_settled_disk_is_as_wanted(wanted: DesiredDisk, here: DiskHere | None, use: DiskUse) -> None:
    plan = disk_plan(wanted, here, use)
    if not plan.observed.settled:
        assert plan.observed.reason
        return
    if wanted.absent:
        assert here is None and plan.observed.state == "absent"
    elif plan.observed.state == "ready":
        assert here is not None
        assert (here.size_mib, here.incarnation) == (wanted.size_mib, wanted.incarnation)
        assert use.open_by == use.wanted_by
        kept = {name for name, _ in here.snapshots}
        assert all((snapshot.id in kept) != snapshot.absent for snapshot in wanted.snapshots)
        assert wanted.rollback_to is None or wanted.rollbacks <= here.rolled_back
        assert here.limits == wanted.limits and not (wanted.flattened and here.origin)
        assert use.open_by is None or use.told_limits == wanted.limits
        assert plan.observed.snapshots == here.snapshots
    else:
        assert here is not None and here.size_mib > wanted.size_mib and "cannot shrink" in plan.observed.reason


@given(DISKS, HERE, USES)
def test_step_by_step_it_becomes_as_wanted(wanted: DesiredDisk, here: DiskHere | None, use: DiskUse) -> None:
    """Each step, carried out, leads to another one, and in the end to nothing but waiting for a guest."""
    for _ in range(12):
        plan = disk_plan(wanted, here, use)
        if plan.action is None:
            break
        here = carried_out(plan.action, here)
    assert plan.action is None
    if use == DiskUse() and plan.observed.state != "error":
        assert plan.observed.settled


def carried_out(action: DiskAction, here: DiskHere | None) -> DiskHere | None:
    match action:
        case CreateDisk(size, _, _, incarnation, _):
            return DiskHere(size, 0, incarnation, limits=None)
        case DeleteDisk():
            return None
    assert here is not None
    match action:
        case ResizeDisk(size):
            return replace(here, size_mib=size)
        case TakeSnapshot(snapshot):
            return replace(here, snapshots=(*here.snapshots, (snapshot, here.size_mib)))
        case DeleteSnapshot(snapshot):
            return replace(here, snapshots=tuple(one for one in here.snapshots if one[0] != snapshot))
        case RollBack(_, number):
            return replace(here, rolled_back=number)
        case Flatten():
            return replace(here, origin=None)
        case LimitDisk(limits):
            return replace(here, limits=limits)


def test_a_snapshot_is_taken_before_another_goes_and_before_a_roll_back() -> None:
    wanted = disk(
        snapshots=(DesiredSnapshot(id="snp-1", absent=True), DesiredSnapshot(id="snp-2")),
        rollbacks=1,
        rollback_to="snp-0",
    )
    here = DiskHere(100, 10, 0, (("snp-0", 100), ("snp-1", 100)))
    steps = []
    for _ in range(3):
        action = disk_plan(wanted, here, DiskUse()).action
        assert action is not None
        steps.append(action)
        after = carried_out(action, here)
        assert after is not None
        here = after
    assert steps == [TakeSnapshot("snp-2"), DeleteSnapshot("snp-1"), RollBack("snp-0", 1)]
    assert disk_plan(wanted, here, DiskUse()).observed.settled


def test_a_roll_back_waits_for_whoever_has_the_disk() -> None:
    wanted, here = disk(rollbacks=1, rollback_to="snp-0"), DiskHere(100, 10, 0, (("snp-0", 100),))
    plan = disk_plan(wanted, here, DiskUse("vm-1", "vm-1", 100))
    assert plan.action is None and not plan.observed.settled and "vm-1" in plan.observed.reason


def test_a_disk_from_a_snapshot_needs_no_image() -> None:
    wanted = disk(origin=("dsk-9", "snp-9"))
    assert disk_plan(wanted, None, DiskUse()).action == CreateDisk(100, None, None, 0, ("dsk-9", "snp-9"))


def test_a_grown_disk_is_settled_when_its_guest_knows() -> None:
    here = DiskHere(200, 10, 0)
    assert disk_plan(disk(size_mib=200), DiskHere(100, 10, 0), DiskUse()).action == ResizeDisk(200)
    use = DiskUse("vm-1", "vm-1", 100)
    assert not disk_plan(disk(size_mib=200), here, use).observed.settled
    assert disk_plan(disk(size_mib=200), here, DiskUse("vm-1", "vm-1", 200)).observed.settled


def test_a_detachment_is_settled_when_the_guest_has_let_go() -> None:
    here = DiskHere(100, 10, 0)
    assert disk_plan(disk(), here, DiskUse("vm-1", None, 100)).observed.reason == "being detached from vm-1"
    assert disk_plan(disk(), here, DiskUse(None, "vm-1")).observed.reason == "being attached to vm-1"
    assert disk_plan(disk(), here, DiskUse()).observed.settled


NUMBERS = st.none() | st.integers(10, 12)
SITUATIONS = st.builds(PortSituation, ofport=NUMBERS, actual=NUMBERS, flowing=st.booleans(), open_by=VMS, wanted_by=VMS)


@given(st.booleans(), SITUATIONS)
def test_a_tap_in_use_is_not_removed_and_a_wired_one_has_tap_and_flows(absent: bool, at: PortSituation) -> None:
    plan = port_plan(port(absent=absent), at)
    if isinstance(plan.action, RemoveTap):
        assert absent and at.open_by is None
    if isinstance(plan.action, AddTap):
        assert not absent and (at.ofport is None or at.ofport != at.actual)
    if plan.wired:
        assert at.flowing and at.ofport == at.actual is not None and not absent
    if plan.observed.settled:
        assert plan.action is None
        assert plan.observed.state == ("absent" if absent else "ready")
        assert plan.wired != absent


@pytest.mark.parametrize("name", [tap_name, service_name])
@given(
    times=st.lists(st.text("0123456789abcdefghjkmnpqrstvwxyz", min_size=16, max_size=16), unique_by=lambda x: x[-12:])
)
def test_device_names_fit_and_differ(name: Any, times: list[str]) -> None:
    names = [name(f"nic-{text}") for text in times]
    assert all(len(one) <= 15 for one in names) and len(set(names)) == len(names)


def test_the_view_has_local_nics_with_a_tap_and_remote_ones_and_nothing_absent() -> None:
    items = [
        port(),
        port(id="nic-2"),
        port(id="nic-3", node_id="other", tunnel_ip="2.2.2.2"),
        port(id="nic-4", absent=True),
        disk(),
    ]
    view = node_view(items, "me", {"port/nic-1": 10, "port/nic-4": 11}, "1.1.1.1", 1)
    assert [(item.port.id, item.ofport, item.zone) for item in view.local] == [("nic-1", 10, 10)]
    assert [item.port.id for item in view.remote] == ["nic-3"]


def test_a_disk_is_gone_or_done_only_when_nothing_is_left_of_what_was_being_removed() -> None:
    absent = disk_plan(disk(absent=True), None, DiskUse(), remains=True)
    assert absent.action == DeleteDisk() and (absent.observed.state, absent.observed.settled) == ("working", False)
    gone = disk_plan(disk(absent=True), None, DiskUse())
    assert gone.action is None and (gone.observed.state, gone.observed.settled) == ("absent", True)
    anew = disk_plan(disk(incarnation=1), DiskHere(100, 0, 1), DiskUse(), remains=True)
    assert anew.action == ClearDisk() and (anew.observed.state, anew.observed.settled) == ("ready", False)
    stale = disk_plan(disk(incarnation=1), DiskHere(100, 0, 0), DiskUse(), remains=True)
    assert isinstance(stale.action, CreateDisk), "the new one is made before the old one goes"


@pytest.mark.parametrize("here", [DiskHere(100, None, 0), DiskHere(100, 10, 0, abandoned=True)])
def test_a_disk_that_no_vm_has_is_mended_and_nobody_waits_for_it(here: DiskHere) -> None:
    plan = disk_plan(disk(), here, DiskUse())
    assert plan.action == MendDisk() and plan.observed.settled and plan.observed.used_mib == here.used_mib
    for use in (DiskUse(open_by="vm-1", wanted_by="vm-1", told_mib=100), DiskUse(wanted_by="vm-1")):
        assert disk_plan(disk(), here, use).action is None
    assert disk_plan(disk(size_mib=200), here, DiskUse()).action == ResizeDisk(200), "what is asked for comes first"
