"""The database's clock under a test's control."""

from __future__ import annotations

import time


class Clock:
    """Runs with the real time, never gives the same millisecond twice (so ids sort as made), and can be put forward."""

    def __init__(self) -> None:
        self._ahead = 0.0
        self._last = 0.0

    def __call__(self) -> float:
        self._last = max(self._last + 0.001, time.time() + self._ahead)
        return self._last

    def advance(self, seconds: float) -> None:
        self._ahead += seconds
