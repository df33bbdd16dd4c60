"""Load and figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from scloud.agent.figures import Figures, ProcLoad, capacity
from scloud.drivers.hypervisor.protocol import DomainFigures

MEMINFO = "MemTotal:  8388608 kB\nMemFree: 1 kB\nMemAvailable: 2097152 kB\n"


def proc(folder: Path, busy: int, idle: int) -> Path:
    (folder / "stat").write_text(f"cpu  {busy} 0 0 {idle} 0 0 0 0 50 0\ncpu0 1 2 3 4\n")
    (folder / "meminfo").write_text(MEMINFO)
    return folder


def test_load_is_counted_between_samples(tmp_path: Path) -> None:
    load = ProcLoad(tmp_path, proc(tmp_path, 1000, 1000))
    assert load.sample().cpu == 0.0
    proc(tmp_path, 1030, 1070)
    sample = load.sample()
    assert sample.cpu == pytest.approx(0.3)
    assert sample.memory == pytest.approx(0.75) and sample.memory_free_mib == 2048
    assert 0 <= sample.disk <= 1 and sample.disk_free_mib > 0


def test_the_real_proc_can_be_read(tmp_path: Path) -> None:
    assert ProcLoad(tmp_path).sample().memory_free_mib > 0


def test_capacity_leaves_the_host_its_share(tmp_path: Path) -> None:
    assert capacity(1000, proc(tmp_path, 0, 0)).memory_mib == 8192 - 512
    (tmp_path / "meminfo").write_text("MemTotal: 524288 kB\n")
    found = capacity(1000, tmp_path)
    assert found.memory_mib == 256 and found.disk_mib == 1000 and found.cpus >= 1


class Counters:
    def __init__(self) -> None:
        self.seconds = 10.0

    async def figures(self) -> list[DomainFigures]:
        one = DomainFigures(
            vm="vm-1", cpu_seconds=self.seconds, cpus=2, memory_mib=512, memory_used_mib=None, resident_mib=100
        )
        return [one]


async def test_fractions_are_of_all_cpus_since_the_last_sample() -> None:
    counters, now = Counters(), [100.0]
    figures = Figures(counters, lambda: 5e8, lambda: now[0])  # type: ignore[arg-type]
    first = (await figures.vms())[0]
    assert first.cpu_fraction is None and first.sampled_at == 5e8
    counters.seconds, now[0] = 15.0, 110.0
    assert (await figures.vms())[0].cpu_fraction == pytest.approx(0.25)
    counters.seconds, now[0] = 1.0, 120.0
    assert (await figures.vms())[0].cpu_fraction is None, "a restarted VM's counter went back"
