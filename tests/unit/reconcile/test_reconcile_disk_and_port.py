"""Plans of disks, ports and the node's view."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scloud.model.desired import DesiredDisk, DesiredPort
from scloud.reconcile.disk import CreateDisk, DeleteDisk, DiskHere, DiskUse, ResizeDisk, disk_plan
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


DISKS = st.builds(disk, absent=st.booleans(), incarnation=st.integers(0, 2), size_mib=st.sampled_from([100, 200]))
HERE = st.none() | st.builds(DiskHere, st.sampled_from([100, 200]), st.integers(0, 100), st.integers(0, 2))
VMS = st.none() | st.sampled_from(["vm-1", "vm-2"])
USES = st.builds(DiskUse, VMS, VMS, st.none() | st.sampled_from([100, 200]))


@given(DISKS, HERE, USES)
def test_what_a_running_vm_has_open_is_never_thrown_away(
    wanted: DesiredDisk, here: DiskHere | None, use: DiskUse
) -> None:
    plan = disk_plan(wanted, here, use)
    if use.open_by is not None:
        assert not isinstance(plan.action, CreateDisk | DeleteDisk) or here is None
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
    else:
        assert here is not None and here.size_mib > wanted.size_mib and "cannot shrink" in plan.observed.reason


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
