"""An event loop in virtual time whose every choice comes from a seed, and lives that can be cut short at any await.

A `Life` is a process: the manager or an agent. Whatever runs in a life carries it in its context; when the life is
killed nothing of it runs again, not even a `finally`, as SIGKILL has it. A life that is paused is a process that is
not scheduled: its timers and messages pile up until it goes on.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from random import Random
from typing import Any

LIFE: ContextVar[Life | None] = ContextVar("life", default=None)
WORLD = contextvars.copy_context()
"""The context of what belongs to no process of ours: engines, guests, wires, time itself."""


class Stuck(Exception):
    """Everything waits and no timer is set."""


class Life:
    """One process. `steps` counts what it has run; `kill_at` is the step before which it dies."""

    def __init__(self, name: str, loop: SimLoop) -> None:
        self.name = name
        self.dead = False
        self.steps = 0
        self.kill_at: int | None = None
        self.on_death: Callable[[], None] | None = None
        self._loop = loop
        self._paused = False
        self._backlog: list[asyncio.Handle] = []
        self.context = contextvars.copy_context()
        self.context.run(LIFE.set, self)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something inside this process."""
        return self._loop.create_task(work, context=self.context.copy())

    def kill(self) -> None:
        """At once; what its death means to others happens in `on_death`."""
        if self.dead:
            return
        self.dead = True
        self._backlog.clear()
        if self.on_death is not None:
            self._loop.call_soon(self.on_death, context=WORLD)

    def kill_soon(self, steps: int) -> None:
        """Before one of its next steps: at some await of whatever it does then."""
        self.kill_at = self.steps + 1 + steps

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        backlog, self._backlog = self._backlog, []
        self._loop.again(backlog)

    @property
    def paused(self) -> bool:
        return self._paused

    def admits(self, handle: asyncio.Handle) -> bool:
        """Whether this may run now."""
        if self.dead:
            self._loop.graveyard.append(handle)
            return False
        if self._paused:
            self._backlog.append(handle)
            return False
        self.steps += 1
        if self.kill_at is not None and self.steps >= self.kill_at:
            self.kill()
            self._loop.graveyard.append(handle)
            return False
        return True


class _Future(asyncio.Future[Any]):
    """Has the same place in a set in every run of a seed."""

    def __init__(self, *, loop: SimLoop) -> None:
        super().__init__(loop=loop)
        self._number = next(loop.numbers)

    def __hash__(self) -> int:
        return self._number


class _Task(asyncio.Task[Any]):
    def __init__(self, work: Any, *, loop: SimLoop, **more: Any) -> None:
        self._number = next(loop.numbers)
        context = more.get("context")
        self.life: Life | None = LIFE.get() if context is None else context.get(LIFE)
        super().__init__(work, loop=loop, **more)

    def __hash__(self) -> int:
        return self._number


class SimLoop(asyncio.BaseEventLoop):
    """`problems` are defects that the loop has heard of. Processes are run in an order drawn from the seed."""

    def __init__(self, rng: Random) -> None:
        super().__init__()
        self._rng = rng
        self._now = 1000.0
        self._soon: list[asyncio.Handle] = []
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = itertools.count()
        self.numbers = itertools.count()
        self.turns = 0
        self.graveyard: list[Any] = []
        """Kept, so that what is dead is not collected: a collected coroutine would run its `finally`."""
        self.problems: list[dict[str, Any]] = []
        self.set_task_factory(self._make_task)  # type: ignore[arg-type]
        self.set_exception_handler(lambda _, problem: self.problems.append(problem))

    def _make_task(self, loop: SimLoop, work: Coroutine[Any, Any, Any], **more: Any) -> _Task:
        task = _Task(work, loop=loop, **more)
        self.graveyard.append(task)
        return task

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(loop=self)

    def time(self) -> float:
        return self._now

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._soon.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def unheard(self) -> list[tuple[str, BaseException]]:
        """Tasks that ended with an error which nobody has looked at, and of whom somebody still lives."""
        tasks = [
            task for task in self.graveyard if isinstance(task, _Task) and (task.life is None or not task.life.dead)
        ]
        ended = [task for task in tasks if task.done() and task._log_traceback]
        return [(repr(task.get_coro()), error) for task in ended if (error := task.exception()) is not None]

    def again(self, handles: list[asyncio.Handle]) -> None:
        """What was held back, in its order."""
        self._soon.extend(handles)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are passed over when their time comes."""

    def _run_once(self) -> None:
        timers = self._timers
        if not self._soon:
            while timers and timers[0][2].cancelled():
                heapq.heappop(timers)
            if not timers:
                raise Stuck("nothing is left to happen")
            self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            timer = heapq.heappop(timers)[2]
            if not timer.cancelled():
                self._soon.append(timer)
        ready, self._soon = self._soon, []
        self.turns += 1
        for handle in self._shuffled(ready) if len(ready) > 1 else ready:
            if handle.cancelled():
                continue
            life = handle._context.get(LIFE)  # type: ignore[attr-defined]
            if life is None or life.admits(handle):
                handle._run()

    def _shuffled(self, ready: list[asyncio.Handle]) -> list[asyncio.Handle]:
        """Within a process things come in asyncio's order; the processes come in any."""
        groups: dict[Life | None, list[asyncio.Handle]] = {}
        for handle in ready:
            life = handle._context.get(LIFE)  # type: ignore[attr-defined]
            groups.setdefault(life, []).append(handle)
        if len(groups) == 1:
            return ready
        order = list(groups.values())
        self._rng.shuffle(order)
        return [handle for group in order for handle in group]

    def _write_to_self(self) -> None:
        """Nobody else is there."""

    def _process_events(self, event_list: Any) -> None:
        """There are none."""

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        raise AssertionError(f"the simulation has no threads, and {func} wants one")
