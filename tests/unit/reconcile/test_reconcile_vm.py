"""The VM plan: what it does case by case, and that following it always ends where it should."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scloud.model.desired import DesiredVm, VmDisk
from scloud.reconcile import vm as plans
from scloud.reconcile.memory import FRESH, VmMemory
from scloud.reconcile.vm import DiskView, DomainView, NicView, Plan, Situation, vm_plan

READY = DiskView("ready", 1024)


def wanted(**fields: Any) -> DesiredVm:
    values: dict[str, Any] = {
        "id": "vm-1",
        "generation": 1,
        "name": "web",
        "account": "acc-1",
        "cpus": 1,
        "memory_mib": 256,
        "power": "on",
        "starts": 1,
        "reboots": 0,
        "restart_limit": 2,
        "disks": (VmDisk(id="sys", system=True),),
        "nics": ("nic-1",),
        **fields,
    }
    return DesiredVm.model_validate(values)


def at(**fields: Any) -> Situation:
    values: dict[str, Any] = {
        "desired": wanted(),
        "domain": None,
        "disks": {"sys": READY},
        "nics": {"nic-1": NicView(True)},
        "memory": FRESH,
        "now": 1000.0,
        "boot_id": "boot",
        **fields,
    }
    return Situation(**values)


UP = VmMemory(phase="up", starts=1, boot_id="boot", told={"sys": 1024})
RUNNING = DomainView(True, 1, 256, disks=("sys", "vm-1-cidata"), nics=("nic-1",))
OFF = DomainView(False, 1, 256)


def actions(plan: Plan) -> list[plans.Action]:
    return [step.action for step in plan.steps]


@pytest.mark.parametrize(
    ("disk", "nic", "word"),
    [
        (DiskView("missing"), NicView(True), "waiting for disk sys"),
        (DiskView("stale", 10), NicView(True), "waiting for disk sys"),
        (READY, NicView(False, reason="no flows yet"), "waiting for nic nic-1: no flows yet"),
    ],
)
def test_nothing_starts_before_disks_and_nics_are_there(disk: DiskView, nic: NicView, word: str) -> None:
    plan = vm_plan(at(disks={"sys": disk}, nics={"nic-1": nic}))
    assert not plan.steps and not plan.observed.settled
    assert plan.observed.reason == word and plan.observed.state == "working"


def test_what_fails_for_good_is_an_error_of_the_vm() -> None:
    plan = vm_plan(at(disks={"sys": DiskView("missing", failed=True, reason="no room")}))
    assert plan.observed.state == "error" and plan.observed.settled and "no room" in plan.observed.reason


def test_off_wants_nothing_but_off() -> None:
    plan = vm_plan(at(desired=wanted(power="off"), disks={}, nics={}))
    assert not plan.steps and plan.observed.state == "stopped" and plan.observed.settled


def test_a_zero_grace_is_no_shutdown() -> None:
    plan = vm_plan(at(desired=wanted(power="off", stop_grace_s=0.0), domain=RUNNING, memory=UP))
    assert actions(plan) == [plans.Destroy()]


def test_a_start_wanted_during_a_shutdown_happens_after_it() -> None:
    stopping = UP.model_copy(update={"phase": "off", "stop_since": 990.0})
    still = at(desired=wanted(starts=2), domain=RUNNING, memory=stopping)
    plan = vm_plan(still)
    assert not plan.steps and plan.observed.state == "running" and plan.wake_at == 1050.0
    gone = replace(still, domain=replace(OFF, off_reason="guest"), memory=plan.memory)
    assert actions(vm_plan(gone)) == [plans.Start()]
    ignored = vm_plan(replace(still, memory=plan.memory, now=1060.0))
    assert ignored.memory.phase == "up" and not ignored.steps


def test_a_reboot_whose_outcome_was_lost_is_repeated_only_for_a_while() -> None:
    first = vm_plan(at(desired=wanted(reboots=1), domain=RUNNING, memory=UP))
    assert actions(first) == [plans.Reboot()]
    lost = first.steps[0].before
    assert actions(vm_plan(at(desired=wanted(reboots=1), domain=RUNNING, memory=lost, now=1010.0))) == [plans.Reboot()]
    later = vm_plan(at(desired=wanted(reboots=1), domain=RUNNING, memory=lost, now=1200.0))
    assert not later.steps and later.memory.reboots == 1


def test_an_adopted_vm_is_not_rebooted_for_requests_of_the_past() -> None:
    plan = vm_plan(at(desired=wanted(reboots=3, starts=5), domain=RUNNING, memory=VmMemory(told={"sys": 1024})))
    assert not plan.steps
    assert (plan.memory.reboots, plan.memory.starts, plan.memory.phase) == (3, 5, "up")


def test_deaths_are_counted_backed_off_and_limited() -> None:
    memory, now, delays = UP, 1000.0, []
    for _ in range(2):
        plan = vm_plan(at(domain=OFF, memory=memory, now=now))
        assert not plan.steps and plan.wake_at is not None
        delays.append(plan.wake_at - now)
        now = plan.wake_at
        again = vm_plan(at(domain=OFF, memory=plan.memory, now=now))
        assert actions(again) == [plans.Start()]
        memory = again.steps[0].after
        now += 5
    assert delays == [0.5, 1.0]
    last = vm_plan(at(domain=OFF, memory=memory, now=now))
    assert last.observed.state == "error" and last.memory.phase == "failed" and last.observed.restarts == 2
    asked = vm_plan(at(desired=wanted(starts=2), domain=OFF, memory=last.memory, now=now))
    assert actions(asked) == [plans.Start()] and asked.steps[0].after.deaths == ()


def test_no_restarts_allowed_means_none() -> None:
    plan = vm_plan(at(desired=wanted(restart_limit=0), domain=OFF, memory=UP))
    assert plan.observed.state == "error" and "QEMU died once" in plan.observed.reason


def test_another_boot_of_the_host_is_not_the_vms_death() -> None:
    plan = vm_plan(at(domain=OFF, memory=UP, boot_id="next"))
    assert actions(plan) == [plans.Start()] and plan.memory.restarts == 0


def test_a_domain_that_vanished_is_a_death() -> None:
    assert vm_plan(at(domain=None, memory=UP)).memory.phase == "dead"


def test_a_paused_guest_is_an_error_that_says_what_to_do() -> None:
    plan = vm_plan(at(domain=replace(RUNNING, paused=True), memory=UP))
    assert plan.observed.state == "error" and "scloud vm stop web --force" in plan.observed.reason


def test_a_clock_that_started_anew_loses_no_vm() -> None:
    dead = UP.model_copy(update={"phase": "dead", "deaths": (90_000.0,), "restart_at": 90_001.0})
    assert actions(vm_plan(at(domain=OFF, memory=dead, now=5.0))) == [plans.Start()]
    stopping = UP.model_copy(update={"phase": "off", "stop_since": 90_000.0, "button_at": 90_000.0})
    plan = vm_plan(at(desired=wanted(power="off"), domain=RUNNING, memory=stopping, now=5.0))
    assert actions(plan) == [plans.Shutdown()] and plan.memory.stop_since == 5.0


# --- the world, driven at random


class World:
    """A host that does what steps say, and whatever else happens to a host."""

    def __init__(self) -> None:
        self.desired = wanted()
        self.domain: DomainView | None = None
        self.incarnation = 0
        self.made = 0
        self.memory = FRESH
        self.now = 1000.0
        self.boots = 0
        self.resets = 0
        self.requested_resets = 0

    def situation(self) -> Situation:
        disk = READY if self.made == self.incarnation else DiskView("stale", 1024)
        return at(
            desired=self.desired,
            domain=self.domain,
            disks={"sys": disk},
            memory=self.memory,
            now=self.now,
            boot_id=f"boot-{self.boots}",
        )

    def turn(self, *, lose: str = "") -> bool:
        """One round of the agent; `lose` kills it before the step, or between the step and its record."""
        if self.made != self.incarnation and not (self.domain and self.domain.running):
            self.made = self.incarnation  # the disk's own worker
        plan = vm_plan(self.situation())
        self.memory = plan.memory
        if not plan.steps:
            if plan.wake_at is not None:
                self.now = max(self.now, plan.wake_at)
                return True
            return False
        step = plan.steps[0]
        self.memory = step.before
        if lose == "before":
            return True
        taken = self.do(step.action)
        if lose != "after":
            self.memory = step.after if taken or step.refused is None else step.refused
        return True

    def do(self, action: plans.Action) -> bool:
        domain, desired = self.domain, self.desired
        match action:
            case plans.Start():
                assert not (domain and domain.running), "started what runs"
                assert self.made == self.incarnation, "started with a disk of the past"
                assert desired.power == "on", "started what is not wanted on"
                disks = tuple(disk.id for disk in desired.disks)
                self.domain = DomainView(True, desired.cpus, desired.memory_mib, disks=disks, nics=desired.nics)
            case plans.Shutdown():
                assert desired.power == "off"
            case plans.Destroy():
                self.domain = replace(domain, running=False, off_reason="requested") if domain else None
            case plans.Undefine():
                assert domain and not domain.running
                self.domain = None
            case plans.Reboot():
                self.resets += 1
            case plans.SetCpus(cpus):
                assert domain
                if cpus < domain.cpus:
                    return False
                self.domain = replace(domain, cpus=cpus)
            case plans.SetMemory(size):
                assert domain
                if size < domain.memory_mib:
                    return False
                self.domain = replace(domain, memory_mib=size)
            case plans.GrowDisk():
                assert domain and domain.running
            case _:
                raise AssertionError(action)
        return True

    def settle(self) -> None:
        for _ in range(100):
            if not self.turn():
                return
        raise AssertionError(f"no end: {vm_plan(self.situation())}")


EVENTS = st.lists(
    st.sampled_from(
        [
            *("on", "off", "force", "reboot", "rebuild", "crash", "poweroff", "host", "grow", "shrink", "wait"),
            *("turn", "turn", "turn", "lost before", "lost after"),
        ]
    ),
    max_size=40,
)


def happen(world: World, event: str) -> None:
    desired, domain = world.desired, world.domain
    running = domain is not None and domain.running

    def change(**fields: Any) -> None:
        world.desired = desired.model_copy(update={"generation": desired.generation + 1, **fields})

    match event:
        case "on":
            change(power="on", starts=desired.starts + 1, force_stop=False)
        case "off" | "force":
            change(power="off", force_stop=event == "force")
        case "reboot":
            change(reboots=desired.reboots + 1)
            world.requested_resets += 1
        case "rebuild":
            world.incarnation += 1
        case "crash" if running:
            world.domain = replace(domain, running=False, off_reason="crashed")
        case "poweroff" if running:
            world.domain = replace(domain, running=False, off_reason="guest")
        case "host":
            world.boots += 1
            world.now = 10.0
            if domain is not None:
                world.domain = replace(domain, running=False, off_reason="unknown")
        case "grow":
            change(cpus=4)
        case "shrink":
            change(cpus=1)
        case "wait":
            world.now += 200
        case "turn":
            world.turn()
        case "lost before":
            world.turn(lose="before")
        case "lost after":
            world.turn(lose="after")


@given(EVENTS)
def test_whatever_happens_it_settles_as_wanted(events: list[str]) -> None:
    world = World()
    for event in events:
        happen(world, event)
    world.settle()
    observed = vm_plan(world.situation()).observed
    assert observed.settled and observed.generation == world.desired.generation
    running = world.domain is not None and world.domain.running
    if world.desired.power == "off":
        assert observed.state == "stopped" and not running
    elif observed.state == "running":
        assert running and world.made == world.incarnation
    else:
        # not up only by the guest's own will, or because it died too often
        assert not running
        assert observed.guest_stopped or (observed.state == "error" and len(world.memory.deaths) > 2)
    assert world.resets <= 2 * world.requested_resets + events.count("lost after")


@given(EVENTS)
def test_a_start_request_always_brings_it_up_and_a_delete_always_ends_it(events: list[str]) -> None:
    world = World()
    for event in events:
        happen(world, event)
    happen(world, "on")
    world.settle()
    assert vm_plan(world.situation()).observed.state == "running"
    world.desired = world.desired.model_copy(update={"power": "absent"})
    world.settle()
    assert world.domain is None and world.memory == FRESH
    assert vm_plan(world.situation()).observed.state == "absent"


@given(EVENTS)
def test_plans_do_not_change_what_they_are_made_from_and_are_the_same_twice(events: list[str]) -> None:
    world = World()
    for event in events:
        happen(world, event)
    situation = world.situation()
    assert vm_plan(situation) == vm_plan(situation)
