"""Whether two processes of one VM run, or one of them only waits for the other's memory: by their virtual CPUs' time.

While a VM migrates there are two QEMU processes. At any moment at most one lets its guest run, so in two seconds that
follow each other there is at most one in which both did: that of the switch.
"""

from __future__ import annotations

import contextlib
from collections import deque
from pathlib import Path

WINDOW_S = 1.0


def incoming(argv: tuple[str, ...]) -> bool:
    """Whether a QEMU was started to take a guest over."""
    return "-incoming" in argv


def vcpu_ticks(pid: int) -> int:
    """Clock ticks that all virtual CPUs of a QEMU have used; 0 once it is gone."""
    ticks = 0
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            name, _, rest = (task / "stat").read_text().rpartition(")")
            if name.partition("(")[2].startswith("CPU "):
                ticks += sum(int(field) for field in rest.split()[11:13])
    return ticks


class Pace:
    """Virtual CPU time of two processes, looked at several times a second."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, int, int]] = deque()

    def both(self, at: float, one: int, other: int) -> bool:
        """After this look: whether both ran in the last second, and both in the one before."""
        self._looks.append((at, one, other))
        while len(self._looks) > 2 and self._looks[1][0] <= at - 2 * WINDOW_S:
            self._looks.popleft()
        if self._looks[0][0] > at - 2 * WINDOW_S:
            return False
        middle = max((look for look in self._looks if look[0] <= at - WINDOW_S), key=lambda look: look[0])
        windows = ((self._looks[0], middle), (middle, self._looks[-1]))
        return all(end[1] > begin[1] and end[2] > begin[2] for begin, end in windows)
