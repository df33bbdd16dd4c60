"""When something that repeats is due. Times are seconds since 1970; windows are of the day, UTC."""

from __future__ import annotations

import math

DAY_S = 86400.0


def opening(window: str, at: float) -> float:
    """The first moment from `at` on in a window such as 22:00-06:00; `at` itself in it, or if there is no window.

    A window that begins when it ends is the whole day.
    """
    if not window:
        return at
    begins, ends = (_second(text) for text in window.split("-"))
    length = (ends - begins) % DAY_S or DAY_S
    since = (at - begins) % DAY_S
    return at if since < length else at + DAY_S - since


def due(every_s: float, window: str, last: float | None, now: float) -> float:
    """When it is due next: at once if it never was, and never outside of the window; what was missed is made up for
    once."""
    return opening(window, now if last is None else max(now, last + every_s))


def _second(text: str) -> float:
    hours, minutes = text.split(":")
    return math.fsum((3600 * int(hours), 60 * int(minutes)))
