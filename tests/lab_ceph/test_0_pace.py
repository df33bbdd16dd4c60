"""What counts as two copies that run; needs no engine."""

from __future__ import annotations

import os

from lab_ceph.pace import MADE_S, RAN_NS, Pace, both_run, still, vcpu_ns

MUCH = 4 * RAN_NS
BLANK = 5 * RAN_NS // 8
"""Per look: what a guest without an operating system uses in a quarter of a second."""

MAKING = 6 * RAN_NS
"""What making its virtual CPUs may take, on a slow machine."""


def _looks(*phases: tuple[float, int, int]) -> list[tuple[bool, bool, bool]]:
    """Looks four times a second; in each phase (seconds, time of the one, of the other, per look): whether both run,
    whether the one is still, whether the other is."""
    one, other, at, used, found = Pace(), Pace(), 0.0, [MAKING, MAKING], []
    for pace in (one, other):
        pace.note(-MADE_S, 0)
        pace.note(0.25 - MADE_S, MAKING)
    for seconds, first, second in phases:
        for _ in range(round(seconds * 4)):
            at, used = at + 0.25, [used[0] + first, used[1] + second]
            one.note(at, used[0])
            other.note(at, used[1])
            found.append((both_run(one, other), still(one), still(other)))
    return found


def _both(*phases: tuple[float, int, int]) -> bool:
    return any(both for both, _, _ in _looks(*phases))


def test_two_that_run_side_by_side_are_found_within_seconds() -> None:
    assert _both((3.0, MUCH, MUCH))
    assert _both((5.0, MUCH, 0), (3.0, MUCH, MUCH), (5.0, 0, MUCH))


def test_two_guests_without_an_operating_system_are_found_as_well() -> None:
    assert _both((3.0, BLANK, BLANK))
    assert _both((5.0, BLANK, 0), (3.0, BLANK, BLANK))


def test_one_after_the_other_is_a_migration() -> None:
    for used in (MUCH, BLANK):
        assert not _both((5.0, used, 0), (5.0, 0, used))
        assert not _both((5.0, used, 0), (0.25, used, used), (5.0, 0, used))
        assert not _both((5.0, used, 0), (0.5, 0, 0), (5.0, 0, used))


def test_one_that_is_only_made_does_not_run() -> None:
    """It is taken over soon: in one second it is made, in the next it runs, and the other stops then."""
    one, other, found = Pace(), Pace(), False
    for look in range(40):
        at = look / 4
        one.note(at, round(min(at, 5.0) * 4 * BLANK))
        if at >= 3.0:
            other.note(at, round(min(at - 2.75, 1.0) * MAKING + max(0.0, at - 5.0) * 4 * BLANK))
        found |= both_run(one, other)
    assert not found


def test_one_is_still_when_it_has_been_so_for_two_seconds() -> None:
    looks = _looks((5.0, BLANK, 0), (5.0, 0, BLANK))
    assert not any(one for _, one, _ in looks[:26]) and all(one for _, one, _ in looks[28:])
    assert all(other for _, _, other in looks[8:20]) and not any(other for _, _, other in looks[23:])
    assert not any(other for _, _, other in looks[:8]), "not looked at for so long"


def test_a_process_without_virtual_cpus_uses_none() -> None:
    assert vcpu_ns(os.getpid()) == 0
