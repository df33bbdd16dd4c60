"""Waking those who wait for a change of something: long polls and live pages."""

from __future__ import annotations

import asyncio
from collections import defaultdict


class Waiters:
    """Waits by key. A wake reaches everyone who waits at that moment."""

    def __init__(self) -> None:
        self._futures: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)

    def wake(self, key: str) -> None:
        for future in self._futures.pop(key, ()):
            if not future.done():
                future.set_result(None)

    def expect(self, key: str) -> asyncio.Future[None]:
        """Take this before looking at the state that is waited for, then `wait` on it."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._futures[key].add(future)
        return future

    async def wait(self, key: str, future: asyncio.Future[None], timeout_s: float) -> bool:
        """True if woken, False when the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                await future
            return True
        except TimeoutError:
            return False
        finally:
            self.cancel(key, future)

    def cancel(self, key: str, future: asyncio.Future[None]) -> None:
        waiting = self._futures.get(key)
        if waiting is not None:
            waiting.discard(future)
            if not waiting:
                del self._futures[key]
