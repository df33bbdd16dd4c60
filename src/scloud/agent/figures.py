"""What the node and its VMs use, from /proc and libvirt."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from scloud.agent.deadlines import within
from scloud.agent.hostload import meminfo
from scloud.drivers.hypervisor.protocol import DomainFigures, Hypervisor
from scloud.model.observed import VmFigures
from scloud.model.statuses import Capacity

RESERVED_MEMORY_MIB = 512
"""Kept from guests for the host, its engines and the agent; half the memory where that is less."""


def capacity(disk_total_mib: int, proc: Path = Path("/proc")) -> Capacity:
    """What can be promised to VMs: physical CPUs this process may use, memory less the host's share, disk."""
    memory = meminfo(proc)["MemTotal"] // 1024
    return Capacity(
        cpus=len(os.sched_getaffinity(0)),
        memory_mib=memory - min(RESERVED_MEMORY_MIB, memory // 2),
        disk_mib=disk_total_mib,
    )


class Figures:
    """Per-VM figures. `wall` is seconds since 1970, `now` the monotonic clock that fractions are counted on."""

    def __init__(self, hypervisor: Hypervisor, wall: Callable[[], float], now: Callable[[], float]) -> None:
        self._hypervisor = hypervisor
        self._wall = wall
        self._now = now
        self._last: dict[str, tuple[float, float]] = {}

    async def vms(self) -> list[VmFigures]:
        """Of every running VM of ours."""
        figures = await within("query", "reading the VMs' figures", self._hypervisor.figures())
        now, wall = self._now(), self._wall()
        result = [self._one(item, now, wall) for item in figures]
        self._last = {item.vm: (now, item.cpu_seconds) for item in figures}
        return result

    def _one(self, item: DomainFigures, now: float, wall: float) -> VmFigures:
        fraction = None
        last = self._last.get(item.vm)
        # a counter that went back is that of a VM started anew
        if last is not None and now > last[0] and item.cpu_seconds >= last[1]:
            fraction = (item.cpu_seconds - last[1]) / ((now - last[0]) * max(1, item.cpus))
        return VmFigures(
            vm=item.vm,
            cpu_seconds=item.cpu_seconds,
            cpu_fraction=None if fraction is None else min(1.0, fraction),
            memory_mib=item.memory_mib,
            memory_used_mib=item.memory_used_mib,
            resident_mib=item.resident_mib,
            sampled_at=wall,
        )
