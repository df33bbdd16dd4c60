"""Parts of a node, a manager together with a node, and most nodes at once lose power, hang or are cut off.

About 60 s on two CPUs with TCG for those that CI runs; the others are run by `scloud test --long`.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from lab.cloud import Lab, until
from lab_ceph.neighbours import UNNOTICED_S
from lab_ceph.protected import Protected, conditions
from lab_ceph.storage import Storage

LONGER_S = 10.0
"""Than the profile `fast` needs for a verdict (6 s), and than its lease (4 s)."""
AGENT_BACK_S = 15.0
"""Until an agent that is started has started the switch as well, and the switch has its flows."""
SWITCH_BACK_S = 4.0
"""Until a switch that was killed runs again and has its flows."""


def heal(lab: Lab) -> Callable[[str], None]:
    return lambda node: print(lab.ok("lab", "heal", node))


def one(lab: Lab, role: str, node: str) -> int:
    (pid,) = lab.pids(role, node)
    return pid


def test_cut_off_from_storage_alone(lab: Lab, protected: Protected) -> None:
    """Its writes stand still meanwhile; the manager hears it, so nobody else may have its disks."""
    with protected.nothing_is_done("cut off from storage only", heal(lab)) as node:
        lab.ok("lab", "fail", node, "--how", "partition", "--from", "storage")
        began = time.monotonic()
        until(lambda: time.monotonic() - began > LONGER_S, "a lease and a verdict's time are over", LONGER_S + 5)
        assert lab.show("nodes", node)["status"]["state"] == "ready" and not lab.json("ha", "status")["incidents"]


@pytest.mark.long
def test_libvirtd_hangs(lab: Lab, protected: Protected) -> None:
    with protected.nothing_is_done("libvirtd hangs", heal(lab)) as node:
        os.kill(one(lab, "libvirtd", node), signal.SIGSTOP)
        protected.writer.go_on_for(LONGER_S)
        assert lab.show("nodes", node)["status"]["state"] == "ready" and not lab.json("ha", "status")["incidents"]


def test_manager_and_node_are_killed_together(lab: Lab, protected: Protected) -> None:
    """The manager is started again by its keeper; it gives all nodes the time to connect before it misses one."""

    def both(node: str) -> None:
        pid = lab.unit_pid("manager")
        assert pid is not None
        print(lab.ok("lab", "fail", node, "--how", "kill"))
        lab.kill(pid)

    protected.recovers("manager and node killed together", both)


@pytest.mark.long
def test_a_node_falls_silent_with_the_leading_monitor_while_the_manager_hangs(
    lab: Lab, storage: Storage, protected: Protected
) -> None:
    """Monitors elect another, OSDs wait for those that are gone, and the manager says nothing, for longer than a lease:
    who is well is not to take itself for cut off."""
    lost = str(storage.show()["status"]["leader"])
    if protected.node == lost:
        lab.ok("vm", "migrate", protected.guest.name, "--to", protected.others()[0])
        protected.guest.forget()
        until(lambda: not protected.guest.resource["status"]["leaving"], "it has left", 60.0)
    protected.neighbours.apart()
    well = [one for one in (protected.guest, *protected.neighbours.others) if one.node != lost]
    boots = {one.name: one.boot_id() for one in well}
    manager = lab.unit_pid("manager")
    assert manager is not None and len(well) == 2
    os.kill(manager, signal.SIGSTOP)
    try:
        lab.ok("lab", "fail", lost, "--how", "partition")
        began = time.monotonic()
        until(lambda: time.monotonic() - began > LONGER_S + 2.0, "a lease is over, twice", LONGER_S + 5.0)
    finally:
        os.kill(manager, signal.SIGCONT)
        lab.ok("lab", "heal", lost)
    lab.wait_manager()
    for one in well:
        one.forget()
    assert {one.name: one.boot_id() for one in well} == boots, "switched off though they were well"
    until(lambda: not lab.json("ha", "status")["incidents"], f"{lost} is let in", 90.0)
    storage.healthy()
    lab.converged()


@pytest.mark.long
def test_the_agent_is_killed(lab: Lab, protected: Protected) -> None:
    what = "agent killed"
    with protected.neighbours.talk(what, UNNOTICED_S), protected.nothing_is_done(what, heal(lab)) as node:
        lab.ok("lab", "fail", node, "--how", "kill", "--only-agent")
        until(lambda: "answers layer-2 probes" in conditions(lab), "a condition says that it answers probes")
        assert not lab.json("ha", "status")["incidents"]


@pytest.mark.long
def test_the_agent_and_the_switch_are_killed(lab: Lab, protected: Protected) -> None:
    """Nobody starts the switch again: no probe is answered on the tunnels' network, and some on the other. Its guests'
    traffic stands still until the agent is back, and goes on then."""
    what = "agent and Open vSwitch killed"
    with protected.neighbours.talk(what) as flow, protected.nothing_is_done(what, heal(lab)) as node:
        lab.ok("lab", "fail", node, "--how", "kill", "--only-agent")
        lab.kill(one(lab, "ovs-vswitchd", node))
        began = time.monotonic()
        until(lambda: "answers layer-2 probes" in conditions(lab), "a condition says that it answers probes")
        assert not lab.json("ha", "status")["incidents"]
        dead = time.monotonic() - began
    assert dead - 1.0 <= flow.gap <= dead + AGENT_BACK_S, f"the switch was dead for {dead:.1f} s: {flow}"


@pytest.mark.long
def test_the_switch_is_killed(lab: Lab, protected: Protected) -> None:
    what = "Open vSwitch killed"
    with protected.neighbours.talk(what, SWITCH_BACK_S), protected.nothing_is_done(what, heal(lab)) as node:
        pid = one(lab, "ovs-vswitchd", node)
        lab.kill(pid)
        protected.writer.go_on_for(LONGER_S)
        assert lab.pids("ovs-vswitchd", node) not in ([], [pid])


@pytest.mark.long
def test_two_of_three_nodes_are_lost(lab: Lab, protected: Protected) -> None:
    """Nothing is begun, with words why; the guest's node is one of them, and it starts there again when it is back."""
    lost = [protected.node, protected.others()[1]]
    with protected.watched("two of three nodes lost", protected.others()[0]) as (watch, heard):
        for node in lost:
            print(lab.ok("lab", "fail", node, "--how", "kill"))
        protected.guest.forget()
        try:
            until(lambda: "2 of 3 are missing at once" in conditions(lab), "a condition says that too many are missing")
            began = time.monotonic()
            until(lambda: time.monotonic() - began > LONGER_S, "time for a wrong verdict", LONGER_S + 5)
            assert not lab.json("ha", "status")["incidents"] and protected.home() == lost[0]
        finally:
            for node in lost:
                lab.ok("lab", "heal", node)
        lab.wait_manager(120.0)
        protected.storage.healthy()
        lab.wait_state("safe", "running")
        protected.back_with_its_writes(heard.last)
        lab.converged()
    assert watch.running.of(protected.guest.id) == [[lost[0]], [], [lost[0]]], watch.running.changes
