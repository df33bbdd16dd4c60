"""When the manager collects cyclic garbage.

Nearly everything is freed by reference counts. What is left for Python's collector it finds by walking all objects
there are: a second for every forty thousand VMs held in memory, and meanwhile nobody is answered, no node is heard and
no lease is kept. So what has been looked at once is not looked at again: each collection walks only what has come since
the one before, which is bounded. Cycles among older objects are found too as long as all of them can be walked in a
moment; in a larger cloud they stay, and nothing that comes and goes with nodes or requests may be in one.
"""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

THRESHOLDS = (5_000, 10, 5)
"""Allocations before the youngest generation is collected, and collections of each before the next older one is: the
oldest has at most 250,000 new objects, walked in tens of milliseconds."""
OLDEST = 2
LOOK_EVERY_S = 10.0
IDLE_SHARE = 0.25
"""Of one processor: below it, little else goes on."""
EVERYTHING_EVERY_S = 3600.0
A_MOMENT = 500_000
"""Objects that may be walked at once, while little else goes on: a quarter of a second, the cloud of 10,000 VMs."""


def begin() -> None:
    """Before anything is loaded. What is there now stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    if _keep not in gc.callbacks:
        gc.callbacks.append(_keep)


def _keep(phase: str, info: dict[str, Any]) -> None:
    """What a collection of the oldest generation has left is not looked at again."""
    if phase == "stop" and info["generation"] == OLDEST:
        gc.freeze()


async def collect_when_idle() -> None:
    """For ever: everything once in a while, if it is not too much."""
    last = time.monotonic()
    while True:
        used, began = time.process_time(), time.monotonic()
        await asyncio.sleep(LOOK_EVERY_S)
        now = time.monotonic()
        idle = (time.process_time() - used) / (now - began) < IDLE_SHARE
        if idle and now - last > EVERYTHING_EVERY_S:
            collect_everything()
            last = now


def collect_everything() -> bool:
    """Also cycles among older objects; False if there are too many objects to do that now."""
    if gc.get_freeze_count() > A_MOMENT:
        return False
    gc.unfreeze()
    gc.collect()
    return True
