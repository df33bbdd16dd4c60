"""Whether a VM's process lets its guest run, by its virtual CPUs' time; and whether two of one VM do.

While a VM migrates there are two QEMU processes. At any moment at most one lets its guest run, so in two seconds that
follow each other there is at most one in which both did: that of the switch. Time is counted in nanoseconds: a guest
without an operating system, which only answers its timer, uses 5 ms in a second when it is emulated, and one that is
paused uses none at all.
"""

from __future__ import annotations

import contextlib
from collections import deque
from pathlib import Path

WINDOW_S = 1.0
RAN_NS = 2_000_000
"""More than this in a window, and it ran."""
MADE_S = 1.0
"""So long after they were first seen its virtual CPUs may still be in the making, which takes time of theirs as well:
half a millisecond here, and more on a slower machine."""


def vcpu_ns(pid: int) -> int:
    """Time that all virtual CPUs of a QEMU have used, in nanoseconds; 0 once it is gone."""
    used = 0
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            name = (task / "stat").read_text().rpartition(")")[0]
            if name.partition("(")[2].startswith("CPU "):
                used += int((task / "schedstat").read_text().split()[0])
    return used


class Pace:
    """One process's virtual CPU time, looked at several times a second."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int]] = deque()
        self._made: float | None = None
        """When its virtual CPUs were first seen."""

    def note(self, at: float, used: int) -> None:
        """`at` in seconds, `used` in nanoseconds."""
        if used and self._made is None:
            self._made = at
        if self._made is not None and at < self._made + MADE_S:
            self._looks.clear()
            return
        self._looks.append((at, used))
        while len(self._looks) > 2 and self._looks[1][0] <= at - 2 * WINDOW_S:
            self._looks.popleft()

    def ran(self) -> tuple[bool, bool] | None:
        """Whether it did in the last second but one, and in the last; None if it was not looked at for so long."""
        if not self._looks or self._looks[0][0] > self._looks[-1][0] - 2 * WINDOW_S:
            return None
        first, last = self._looks[0], self._looks[-1]
        middle = max(look for look in self._looks if look[0] <= last[0] - WINDOW_S)
        return middle[1] - first[1] > RAN_NS, last[1] - middle[1] > RAN_NS


def both_run(one: Pace, other: Pace) -> bool:
    """Whether both ran in the last second, and both in the one before; of two that are looked at together."""
    seconds = (one.ran(), other.ran())
    return all(ran is not None and all(ran) for ran in seconds)


def still(pace: Pace) -> bool:
    """Whether it certainly did not let its guest run in the last two seconds."""
    return pace.ran() == (False, False)
