"""How busy a node is: what its agent tells once a second, smoothed, and as one number.

Smoothing is an exponentially weighted moving average whose weight follows from the time between two samples, so a
heartbeat that is late counts for more. A peak of a second moves it little; a change that stays is seen to 63 % after
one time constant and to 95 % after three.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from scloud.model.observed import NodeLoad

TIME_CONSTANT_S = 30.0
"""Of what is a rate: CPU, network, storage. Long beside a guest's boot, short beside the life of a VM."""
LEVEL_CONSTANT_S = 5.0
"""Of what is a level: memory and disk space hardly jitter."""
FULL_LATENCY_MS = 50.0
"""Storage that takes so long for one request counts as fully busy: the whole of a spinning disk's queue."""
MOST_LATENCY_MS = 2 * FULL_LATENCY_MS
"""One sample counts for no more: an OSD that hangs for ten seconds is not to be remembered for minutes."""

CPU_SHARE = 1.0
MEMORY_SHARE = 0.5
DISK_SHARE = 0.25
NETWORK_SHARE = 0.5
STORAGE_SHARE = 0.5
LATENCY_SHARE = 0.5
"""How much each of them weighs. CPU most: it is overcommitted, so it is what runs out first. Space least: what is
promised of it is checked, not weighed."""


@dataclass(frozen=True, slots=True)
class Load:
    """Fractions, 0..1, but for `storage_ms`: how long one request to the storage takes, in ms.

    `network` is of the busier direction of the busiest link; `storage` the time in which requests were under way.
    """

    cpu: float = 0.0
    memory: float = 0.0
    disk: float = 0.0
    network: float = 0.0
    storage: float = 0.0
    storage_ms: float = 0.0
    pressure: float = field(init=False)
    """All of them as one number, 0 for a node that does nothing, 3.25 for one with nothing left."""

    def __post_init__(self) -> None:
        total = (
            CPU_SHARE * self.cpu
            + MEMORY_SHARE * self.memory
            + DISK_SHARE * self.disk
            + NETWORK_SHARE * self.network
            + STORAGE_SHARE * self.storage
            + LATENCY_SHARE * min(1.0, self.storage_ms / FULL_LATENCY_MS)
        )
        object.__setattr__(self, "pressure", total)


IDLE = Load()


def smooth(before: Load | None, sample: Load | NodeLoad, elapsed_s: float) -> Load:
    """The average after one more sample, `elapsed_s` after the one before; the first sample is the average.

    Called for every heartbeat of thousands of nodes, hence without loops.
    """
    if before is None:
        before, rate, level = IDLE, 1.0, 1.0
    else:
        elapsed = max(0.0, elapsed_s)
        rate, level = -math.expm1(-elapsed / TIME_CONSTANT_S), -math.expm1(-elapsed / LEVEL_CONSTANT_S)
    return Load(
        cpu=before.cpu + rate * (sample.cpu - before.cpu),
        memory=before.memory + level * (sample.memory - before.memory),
        disk=before.disk + level * (sample.disk - before.disk),
        network=before.network + rate * (sample.network - before.network),
        storage=before.storage + rate * (sample.storage - before.storage),
        storage_ms=before.storage_ms + rate * (min(sample.storage_ms, MOST_LATENCY_MS) - before.storage_ms),
    )
