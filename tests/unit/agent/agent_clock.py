"""An event loop whose clock jumps to the next timer when there is nothing to do, so that minutes pass in an instant."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jumping(selectors.DefaultSelector):
    """Never waits for time to pass; waits for files only when no timer is set."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            return super().select(5)
        self.loop.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """`steps` counts turns of the loop; `at_step` is called once when that many have been made."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.steps = 0
        self.at_step: tuple[int, Callable[[], None]] | None = None
        selector = _Jumping()
        selector.loop = self
        super().__init__(selector)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        self.steps += 1
        if self.at_step is not None and self.steps >= self.at_step[0]:
            act = self.at_step[1]
            self.at_step = None
            act()
        super()._run_once()  # type: ignore[misc]


def run(main: Coroutine[Any, Any, T]) -> T:
    """Like asyncio.run, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
