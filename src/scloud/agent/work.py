"""Work by key: one task at a time for each object, woken by whatever concerns it, tried again when it fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from scloud.model.errors import CloudError

log = logging.getLogger(__name__)

FIRST_RETRY_S = 0.5
LAST_RETRY_S = 60.0
SLOT_S = 5.0
"""A step that takes longer than this gives its slot to the next: it hangs or waits rather than works."""

Handler = Callable[[str], Awaitable[float | None]]
"""Does what is to do for a key; returns the loop time at which to look again, if ever."""


def _is_cancelled() -> bool:
    """Whether the running task itself was told to end."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


class _Job:
    __slots__ = ("dirty", "failures", "not_before", "task", "timer", "urgent")

    def __init__(self) -> None:
        self.dirty = False
        self.urgent = False
        self.failures = 0
        self.not_before = 0.0
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None


class Workers:
    """Level-triggered: many wakes while a key is worked on make one more round, and none is lost."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._jobs: dict[str, _Job] = {}
        self._stopped = False

    def wake(self, key: str, *, urgent: bool = False) -> None:
        """Look at this key again: at once, or, if it fails at the moment and this is not urgent, at its next try."""
        if self._stopped:
            return
        job = self._jobs.setdefault(key, _Job())
        if job.task is not None:
            job.dirty = True
            job.urgent = job.urgent or urgent
            return
        if urgent:
            job.not_before = 0.0
        loop = asyncio.get_running_loop()
        if job.not_before > loop.time():
            return  # its timer is set
        self._cancel_timer(job)
        job.task = loop.create_task(self._run(key, job), name=f"work {key}")

    def retry(self, key: str) -> None:
        """Try at once, and forget how often it has failed: somebody asked anew, and what failed may work by now."""
        job = self._jobs.get(key)
        if job is not None:
            job.failures = 0
        self.wake(key, urgent=True)

    @staticmethod
    def now() -> float:
        """The clock that handlers' wake times are on: seconds, monotonic."""
        return asyncio.get_running_loop().time()

    def failures(self, key: str) -> int:
        """How often in a row the key's handler has failed."""
        job = self._jobs.get(key)
        return job.failures if job else 0

    def working(self, key: str) -> bool:
        """Whether the key is being worked on now."""
        job = self._jobs.get(key)
        return job is not None and job.task is not None

    def forget(self, key: str) -> None:
        """No more timers for this key; a round under way ends by itself."""
        job = self._jobs.get(key)
        if job is not None:
            self._cancel_timer(job)
            if job.task is None:
                del self._jobs[key]

    def tasks(self) -> list[asyncio.Task[None]]:
        """What is being worked on now."""
        return [job.task for job in self._jobs.values() if job.task is not None]

    async def stop(self) -> None:
        """Cancel everything and wait for it."""
        self._stopped = True
        tasks = []
        for job in self._jobs.values():
            self._cancel_timer(job)
            if job.task is not None:
                job.task.cancel()
                tasks.append(job.task)
        await asyncio.gather(*tasks, return_exceptions=True)
        self._jobs.clear()

    async def _run(self, key: str, job: _Job) -> None:
        loop = asyncio.get_running_loop()
        wake_at: float | None = None
        try:
            while True:
                job.dirty = job.urgent = False
                try:
                    wake_at = await self._handler(key)
                    job.failures = 0
                    job.not_before = 0.0
                except (Exception, asyncio.CancelledError) as error:
                    # Cancelled is also who waits for something that is: only if this task itself is meant, it ends.
                    if isinstance(error, asyncio.CancelledError) and (self._stopped or _is_cancelled()):
                        raise
                    job.failures += 1
                    delay = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(job.failures - 1, 10))
                    job.not_before = wake_at = loop.time() + delay
                    if isinstance(error, CloudError | OSError):
                        log.warning("%s: %s (try %d, next in %.1f s)", key, error, job.failures, delay)
                    else:
                        log.exception("%s: a defect of the agent; next try in %.1f s", key, delay)
                if not job.urgent and (not job.dirty or job.not_before > loop.time()):
                    break
        finally:
            job.task = None
        if self._stopped:
            return
        if wake_at is not None:
            job.timer = loop.call_at(max(wake_at, loop.time()), self._due, key)
        elif self._jobs.get(key) is job:
            del self._jobs[key]

    def _due(self, key: str) -> None:
        job = self._jobs.get(key)
        if job is not None:
            job.timer = None
            job.not_before = 0.0
        self.wake(key)

    @staticmethod
    def _cancel_timer(job: _Job) -> None:
        if job.timer is not None:
            job.timer.cancel()
            job.timer = None


class Slots:
    """Bounds how many heavy steps go on at once, without letting hung ones hold up the rest."""

    def __init__(self, count: int) -> None:
        self._free = asyncio.Semaphore(count)

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        await self._free.acquire()
        held = True

        def give_back() -> None:
            nonlocal held
            if held:
                held = False
                self._free.release()

        timer = asyncio.get_running_loop().call_later(SLOT_S, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()
