"""What counts as two copies that run; needs no engine."""

from __future__ import annotations

from lab_ceph.pace import Pace, incoming


def _looks(*phases: tuple[float, int, int]) -> list[bool]:
    """Looks four times a second; in each phase (seconds, ticks of the one, of the other, per look)."""
    pace, at, one, other, found = Pace(), 0.0, 0, 0, []
    for seconds, first, second in phases:
        for _ in range(round(seconds * 4)):
            at, one, other = at + 0.25, one + first, other + second
            found.append(pace.both(at, one, other))
    return found


def test_two_that_run_side_by_side_are_found_within_seconds() -> None:
    assert any(_looks((3.0, 1, 1)))
    assert any(_looks((5.0, 1, 0), (3.0, 1, 1), (5.0, 0, 1)))


def test_one_after_the_other_is_a_migration() -> None:
    assert not any(_looks((5.0, 1, 0), (5.0, 0, 1)))
    assert not any(_looks((5.0, 1, 0), (0.25, 1, 1), (5.0, 0, 1)))
    assert not any(_looks((5.0, 1, 0), (0.5, 0, 0), (5.0, 0, 1)))


def test_only_a_qemu_that_was_started_for_it_takes_over() -> None:
    assert incoming(("qemu-system-x86_64", "-incoming", "defer")) and not incoming(("qemu-system-x86_64",))
