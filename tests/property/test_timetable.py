"""When a rebalance is due by itself."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scloud.scheduler.timetable import DAY_S, due, opening

HOUR = 3600.0
clock_times = st.builds(lambda hour, minute: f"{hour:02}:{minute:02}", st.integers(0, 23), st.integers(0, 59))
windows = st.builds(lambda begins, ends: f"{begins}-{ends}", clock_times, clock_times)


def inside(window: str, at: float) -> bool:
    """Minute by minute, as people would count."""
    begins, ends = (60 * int(text[:2]) + int(text[3:]) for text in window.split("-"))
    minute = int(at % DAY_S // 60)
    if begins == ends:
        return True
    return begins <= minute < ends if begins < ends else minute >= begins or minute < ends


@given(windows, st.integers(0, 10**9))
def test_it_opens_at_the_first_minute_of_the_window(window: str, at: int) -> None:
    opens = opening(window, float(at))
    assert 0 <= opens - at < DAY_S and inside(window, opens)
    assert opens == at if inside(window, at) else not inside(window, opens - 1)


@given(st.integers(600, 10**6), windows | st.just(""), st.none() | st.integers(0, 10**6), st.integers(10**6, 10**7))
def test_it_is_never_before_its_time_nor_outside_of_the_window(
    every: int, window: str, last: int | None, now: int
) -> None:
    at = due(every, window, last, now)
    assert at >= now and (last is None or at >= last + every) and (not window or inside(window, at))
    assert at - max(now, 0 if last is None else last + every) < DAY_S


def test_a_window_over_midnight() -> None:
    assert opening("22:00-06:00", 3 * HOUR) == 3 * HOUR
    assert opening("22:00-06:00", 6 * HOUR) == 22 * HOUR
    assert due(6 * HOUR, "", None, 5.0) == 5.0 and due(6 * HOUR, "", 5.0, 6.0) == 6 * HOUR + 5.0
