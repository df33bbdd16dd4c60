"""How long requests take that may never be answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

KEPT_S = 60.0
"""For so long the last answer tells how it is; after that nothing is known."""


class AnswerClock:
    """Several may be under way, and one that hangs may be given up by whoever waits for it."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._under_way: dict[int, float] = {}
        self._number = 0
        self._last = 0.0
        self._ended = self._now()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around a request; one that fails counts as well."""
        self._number += 1
        number, began = self._number, self._now()
        self._under_way[number] = began
        try:
            yield
        finally:
            del self._under_way[number]
            self._ended = self._now()
            self._last = self._ended - began

    def seconds(self) -> float:
        """What the last one took that has ended, or the oldest has waited that has not, if that is longer; 0 if none
        has ended lately."""
        now = self._now()
        waited = now - min(self._under_way.values(), default=now)
        return max(waited, self._last if now - self._ended <= KEPT_S else 0.0)
