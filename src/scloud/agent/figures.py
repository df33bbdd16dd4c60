"""What the node and its VMs use, from /proc and libvirt."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from scloud.agent.deadlines import within
from scloud.drivers.hypervisor.protocol import DomainFigures, Hypervisor
from scloud.model.observed import NodeLoad, VmFigures
from scloud.model.statuses import Capacity

MIB = 1024 * 1024
RESERVED_MEMORY_MIB = 512
"""Kept from guests for the host, its engines and the agent; half the memory where that is less."""


class ProcLoad:
    """The host's load. CPU is over the time since the last call, everything else of this moment."""

    def __init__(self, disks: Path, proc: Path = Path("/proc")) -> None:
        self._disks = disks
        self._proc = proc
        self._last: tuple[float, float] | None = None

    def sample(self) -> NodeLoad:
        """OSError if /proc or the disks' folder cannot be read."""
        busy, total = self._cpu_times()
        cpu = 0.0
        if self._last is not None and total > self._last[1]:
            cpu = (busy - self._last[0]) / (total - self._last[1])
        self._last = (busy, total)
        memory = meminfo(self._proc)
        disk = os.statvfs(self._disks)
        size, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
        total_kib, free_kib = memory["MemTotal"], memory["MemAvailable"]
        return NodeLoad(
            cpu=min(1.0, max(0.0, cpu)),
            memory=1 - free_kib / total_kib,
            disk=1 - free / size if size else 0.0,
            memory_free_mib=free_kib // 1024,
            disk_free_mib=free // MIB,
        )

    def _cpu_times(self) -> tuple[float, float]:
        """(busy, all) since boot, in ticks of all CPUs together. Guests' time is within user time."""
        with (self._proc / "stat").open() as file:
            fields = [int(part) for part in file.readline().split()[1:9]]
        idle = fields[3] + fields[4]
        return sum(fields) - idle, sum(fields)


def meminfo(proc: Path = Path("/proc")) -> dict[str, int]:
    """KiB by name."""
    result = {}
    with (proc / "meminfo").open() as file:
        for line in file:
            name, _, rest = line.partition(":")
            result[name] = int(rest.split()[0])
    return result


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
