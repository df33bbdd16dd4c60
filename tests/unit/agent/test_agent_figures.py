"""Load and figures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scloud.agent.figures import Figures, capacity
from scloud.agent.hostload import ProcLoad
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


def device(folder: Path) -> str:
    number = folder.stat().st_dev
    return f"{os.major(number)} {os.minor(number)}"


def counters(folder: Path, received: int, sent: int, requests: int, ms: int, busy_ms: int) -> None:
    (folder / "net").mkdir(exist_ok=True)
    lines = [f"  {name}: {received} 1 0 0 0 0 0 0 {sent} 1 0 0 0 0 0 0" for name in ("eth0", "lo", "tap1")]
    (folder / "net/dev").write_text("Inter-|\n face |\n" + "\n".join(lines) + "\n")
    (folder / "diskstats").write_text(
        "254 99 other 9 9 9 9 9 9 9 9 9 9 9\n"
        f"{device(folder)} disk {requests} 0 0 {ms} {requests} 0 0 {ms} 0 {busy_ms} 0 0\n"
    )


def test_links_and_the_disks_device_are_counted_between_samples(tmp_path: Path) -> None:
    (tmp_path / "sys/class/net/eth0/device").mkdir(parents=True)
    (tmp_path / "sys/class/net/eth0/speed").write_text("1000\n")
    now = [50.0]
    counters(tmp_path, 0, 0, 10, 100, 40)
    load = ProcLoad(tmp_path, proc(tmp_path, 1, 1), tmp_path / "sys", now=lambda: now[0])
    assert load.sample().network_mbps == 0.0
    now[0] = 52.0
    counters(tmp_path, 50_000_000, 25_000_000, 30, 300, 1040)
    sample = load.sample()
    assert sample.network_mbps == pytest.approx(200), "the busier direction of hardware only"
    assert sample.network == pytest.approx(0.2)
    assert sample.storage == pytest.approx(0.5) and sample.storage_ms == pytest.approx(10)
    now[0] = 53.0
    assert (load.sample().network, load.sample().storage_ms) == (0.0, 0.0), "nothing since"


def test_links_that_are_named_are_those_that_count(tmp_path: Path) -> None:
    now = [0.0]
    counters(tmp_path, 0, 0, 0, 0, 0)
    load = ProcLoad(tmp_path, proc(tmp_path, 1, 1), tmp_path / "sys", links=["tap1"], now=lambda: now[0])
    load.sample()
    now[0] = 1.0
    counters(tmp_path, 0, 1_000_000, 0, 0, 0)
    sample = load.sample()
    assert sample.network_mbps == pytest.approx(8) and sample.network == 0.0, "its speed is not known"


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
