"""When the manager collects cyclic garbage.

Nearly everything is freed by reference counts; a full collection walks all objects there are, 0.2 s for every thousand
VMs held in memory, and nobody is answered meanwhile. So the young generations are collected as always, and everything
only while little else goes on, or when it has not been done for long.
"""

from __future__ import annotations

import asyncio
import gc
import time

YOUNG = (5_000, 10)
"""Allocations before the youngest generation is collected, and its collections before the next one is."""
NEVER = 1_000_000_000
LOOK_EVERY_S = 10.0
IDLE_SHARE = 0.25
"""Of one processor: below it, little else goes on."""
AT_LEAST_S = 120.0
AT_MOST_S = 3600.0


def begin() -> None:
    """Once everything is loaded: what is there now stays, and is never looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*YOUNG, NEVER)


async def collect_when_idle() -> None:
    """For ever."""
    last = time.monotonic()
    while True:
        used, began = time.process_time(), time.monotonic()
        await asyncio.sleep(LOOK_EVERY_S)
        now = time.monotonic()
        idle = (time.process_time() - used) / (now - began) < IDLE_SHARE
        if now - last > (AT_LEAST_S if idle else AT_MOST_S):
            gc.collect()
            last = time.monotonic()
