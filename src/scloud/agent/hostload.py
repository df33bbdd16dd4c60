"""How busy this host is: CPU, memory, disk space, links and the disks' device, from /proc and /sys."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from scloud.model.observed import NodeLoad

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Counters:
    """Since boot. `links` are (received, sent) in bytes; `io_*` of the disks' device."""

    at: float
    busy: float
    total: float
    links: dict[str, tuple[int, int]]
    io_count: int
    io_ms: int
    io_busy_ms: int


class ProcLoad:
    """The host's load. Space and memory are of this moment, everything else since the last call.

    `links` are the devices to count, such as the underlay's; without any, those that are hardware.
    """

    def __init__(
        self,
        disks: Path,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
        links: Iterable[str] = (),
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._disks = disks
        self._proc = proc
        self._net = sys / "class/net"
        self._links = tuple(links)
        self._now = now
        self._last: _Counters | None = None

    def sample(self) -> NodeLoad:
        """OSError if /proc or the disks' folder cannot be read."""
        before, after = self._last, self._read()
        self._last = after
        memory = meminfo(self._proc)
        disk = os.statvfs(self._disks)
        size, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
        total_kib, free_kib = memory["MemTotal"], memory["MemAvailable"]
        load = NodeLoad(
            memory=1 - free_kib / total_kib,
            disk=1 - free / size if size else 0.0,
            memory_free_mib=free_kib // 1024,
            disk_free_mib=free // MIB,
        )
        return load if before is None else load.model_copy(update=self._rates(before, after))

    def _rates(self, before: _Counters, after: _Counters) -> dict[str, float]:
        seconds = after.at - before.at
        cpu = _fraction(after.busy - before.busy, after.total - before.total)
        if seconds <= 0:
            return {"cpu": cpu}
        mbps = {
            name: max(now[0] - old[0], now[1] - old[1], 0) * 8 / 1e6 / seconds
            for name, now in after.links.items()
            if (old := before.links.get(name)) is not None
        }
        filled = [_fraction(rate, speed) for name, rate in mbps.items() if (speed := self._speed(name)) is not None]
        requests = after.io_count - before.io_count
        return {
            "cpu": cpu,
            "network": max(filled, default=0.0),
            "network_mbps": sum(mbps.values()),
            "storage": _fraction((after.io_busy_ms - before.io_busy_ms) / 1000, seconds),
            "storage_ms": max(0.0, (after.io_ms - before.io_ms) / requests) if requests > 0 else 0.0,
        }

    def _read(self) -> _Counters:
        busy, total = self._cpu_times()
        return _Counters(self._now(), busy, total, self._traffic(), *self._io())

    def _cpu_times(self) -> tuple[float, float]:
        """(busy, all) since boot, in ticks of all CPUs together. Guests' time is within user time."""
        with (self._proc / "stat").open() as file:
            fields = [int(part) for part in file.readline().split()[1:9]]
        idle = fields[3] + fields[4]
        return sum(fields) - idle, sum(fields)

    def _traffic(self) -> dict[str, tuple[int, int]]:
        """Of this network namespace's links that carry the node's traffic."""
        found = {}
        try:
            lines = (self._proc / "net/dev").read_text().splitlines()[2:]
        except FileNotFoundError:
            return {}
        for line in lines:
            name, _, rest = line.partition(":")
            name, fields = name.strip(), rest.split()
            if name in self._links if self._links else (self._net / name / "device").exists():
                found[name] = (int(fields[0]), int(fields[8]))
        return found

    def _speed(self, link: str) -> float | None:
        """Megabits a second; None if the link does not tell."""
        try:
            speed = int((self._net / link / "speed").read_text())
        except (OSError, ValueError):
            return None
        return speed if speed > 0 else None

    def _io(self) -> tuple[int, int, int]:
        """(requests, ms that they took, ms with any under way) of the device of the disks; 0 if it has none."""
        device = self._disks.stat().st_dev
        wanted = [str(os.major(device)), str(os.minor(device))]
        try:
            lines = (self._proc / "diskstats").read_text().splitlines()
        except FileNotFoundError:
            return 0, 0, 0
        for line in lines:
            fields = line.split()
            if fields[:2] == wanted:
                # kernel's Documentation/admin-guide/iostats.rst: reads, -, -, ms, writes, -, -, ms, now, ms busy
                counts = [int(field) for field in fields[3:13]]
                return counts[0] + counts[4], counts[3] + counts[7], counts[9]
        return 0, 0, 0


def _fraction(part: float, whole: float) -> float:
    return min(1.0, max(0.0, part / whole)) if whole > 0 else 0.0


def meminfo(proc: Path = Path("/proc")) -> dict[str, int]:
    """KiB by name."""
    result = {}
    with (proc / "meminfo").open() as file:
        for line in file:
            name, _, rest = line.partition(":")
            result[name] = int(rest.split()[0])
    return result
