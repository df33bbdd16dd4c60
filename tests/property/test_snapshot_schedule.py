"""When scheduled snapshots are due, and which of them are too many."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from scloud.controllers.snapshot_schedule import excess, following

times = st.integers(0, 10**9)


@given(times, st.integers(0, 10**7), st.integers(60, 366 * 86400))
def test_the_next_one_is_the_first_of_its_grid_to_come(due: int, late: int, every: int) -> None:
    now = due + late
    after = following(due, now, every)
    assert now < after <= now + every
    assert (after - due) % every == 0


@given(st.lists(st.integers(), max_size=40), st.integers(1, 30))
def test_the_newest_are_kept(taken: list[Any], keep: int) -> None:
    thrown = excess(taken, keep)
    assert thrown == taken[: len(thrown)]
    assert len(taken) - len(thrown) == min(keep, len(taken))
