"""What becomes of a lost node's VMs, and when a node is certainly cut off."""

from __future__ import annotations

from dataclasses import replace

from scloud.reconcile.ha.recovery import Fences, LostVm, left_behind, order, stale, why_not

VM = LostVm("vm-1", "one", True, True, 50, False, (), False, frozenset({"stc-1"}))


def test_higher_priorities_first_and_those_that_are_off_last() -> None:
    vms = [
        replace(VM, id="vm-1", priority=10),
        replace(VM, id="vm-2", priority=90, on=False),
        replace(VM, id="vm-4", priority=90),
        replace(VM, id="vm-3", priority=90),
    ]
    assert [vm.id for vm in order(vms)] == ["vm-3", "vm-4", "vm-1", "vm-2"]


def test_what_stays_says_why() -> None:
    stays = {
        "local": replace(VM, id="local", local=("data", "root")),
        "off": replace(VM, id="off", ha=False),
        "pinned": replace(VM, id="pinned", pinned=True),
        "leaving": replace(VM, id="leaving", leaving=True),
    }
    words = left_behind([VM, *stays.values()])
    assert words.keys() == stays.keys() and all(words.values())
    assert "disks data, root are files" in words["local"]
    assert order([VM, *stays.values()]) == [VM] and why_not(VM) == ""


def test_a_fence_is_certain_only_with_the_key_away_and_the_sessions_cut_or_the_power_off() -> None:
    both = frozenset({"stc-1", "stc-2"})
    one = frozenset({"stc-1"})
    assert not Fences().certain(one)
    assert not Fences(cut=one).certain(one), "a new session could begin"
    assert not Fences(keys=one).certain(one), "old sessions go on"
    assert not Fences(power_off=True).certain(one), "switched on again it would start its VMs"
    assert Fences(cut=one, keys=one).certain(one)
    assert Fences(keys=one, power_off=True).certain(one)
    assert not Fences(cut=one, keys=one).certain(both)
    assert Fences(cut=both, keys=both).certain(one)


def test_what_a_node_must_be_rid_of_when_it_returns() -> None:
    have = ["vm-1", "vm-2", "vm-3", "vm-4"]
    wished = {"vm-1": True, "vm-2": False}
    moved = {"vm-3"}
    assert stale(have, moved, wished, fenced=False) == ["vm-3"], "vm-4 is unknown: the audit tells of it"
    assert stale(have, moved, wished, fenced=True) == ["vm-1", "vm-3"], "its sessions are cut off: they write nothing"
    assert stale([], moved, wished, fenced=True) == []
