"""When libvirt says in a domain's log that it has given a migrated domain up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from scloud.drivers.hypervisor.farewell import Farewell

MIGRATED = "2026-01-02 03:04:05.678+0000: shutting down, reason=migrated\n"
TIMEOUT_S = 10


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "vm.log"


async def said(farewell: Farewell) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        await farewell.said()


def add(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


async def test_only_what_is_said_from_now_on_counts(log: Path) -> None:
    add(log, MIGRATED)
    farewell = Farewell(log)
    waiting = asyncio.create_task(said(farewell))
    add(log, "2026-01-02 03:05:00.000+0000: initiating migration\n")
    await asyncio.sleep(0.1)
    assert not waiting.done()
    add(log, MIGRATED)
    await waiting


async def test_a_line_half_written_is_no_line_yet(log: Path) -> None:
    farewell = Farewell(log)
    waiting = asyncio.create_task(said(farewell))
    add(log, MIGRATED[:-9])
    await asyncio.sleep(0.1)
    assert not waiting.done()
    add(log, MIGRATED[-9:])
    await waiting


async def test_other_ends_are_none_of_it(log: Path) -> None:
    farewell = Farewell(log)
    waiting = asyncio.create_task(said(farewell))
    for reason in ("destroyed", "failed", "migrated elsewhere"):
        add(log, f"2026-01-02 03:04:05.678+0000: shutting down, reason={reason}\n")
    await asyncio.sleep(0.1)
    assert not waiting.done()
    waiting.cancel()


async def test_a_log_begun_anew_is_read_from_its_beginning(log: Path) -> None:
    add(log, "the start of a guest\n" * 100)
    farewell = Farewell(log)
    log.rename(log.with_suffix(".0"))
    add(log, MIGRATED)
    await said(farewell)


async def test_a_log_cut_short_is_read_from_its_beginning(log: Path) -> None:
    add(log, "the start of a guest\n" * 100)
    farewell = Farewell(log)
    log.write_text(MIGRATED)
    await said(farewell)
