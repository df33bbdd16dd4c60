"""Commits are carried into the directory; whoever waits for it waits for what was there, not for what comes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TypeVar

from scloud.controllers.directory import Directory
from scloud.controllers.following import Following
from scloud.controllers.sessions import Sessions
from scloud.store import tables
from scloud.store.database import Store, Tx

T = TypeVar("T")


class SlowStore(Store):
    """A read lasts until it is let through."""

    def __init__(self) -> None:
        super().__init__("sqlite://", clock=lambda: 0.0, rng=random.Random(1), inline=True)
        tables.metadata.create_all(self.engine)
        self.reading = asyncio.Event()
        self.through = asyncio.Semaphore(0)

    async def read(self, fn: Callable[[Tx], T]) -> T:
        self.reading.set()
        await self.through.acquire()
        self.reading.clear()
        return self.read_now(fn)


async def waiting(following: Following) -> asyncio.Task[None]:
    task = asyncio.create_task(following.caught_up())
    await asyncio.sleep(0)
    return task


async def test_nobody_waits_for_commits_that_come_later() -> None:
    store = SlowStore()
    following = Following(store, Directory(), Sessions())
    await asyncio.wait_for(following.caught_up(), 1)
    running = asyncio.create_task(following.run())
    following.touched("vm/vm-1")
    first = await waiting(following)
    await store.reading.wait()
    during = await waiting(following)
    following.touched("vm/vm-2")
    after = await waiting(following)
    store.through.release()
    await asyncio.wait_for(asyncio.gather(first, during), 1)
    await store.reading.wait()
    following.touched("vm/vm-3")
    assert not after.done()
    store.through.release()
    await asyncio.wait_for(after, 1)
    running.cancel()
    store.close()
