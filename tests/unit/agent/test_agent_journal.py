"""The journal: what was written is there after a crash, at whatever byte it came."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from agent_node import disk, one_vm, port, vm, vm_id
from hypothesis import given, settings
from hypothesis import strategies as st

from scloud.agent import journal as module
from scloud.agent.journal import FIRST_OFPORT, LAST_OFPORT, FileJournal, MemoryJournal
from scloud.model.connections import Brought, Connection
from scloud.model.desired import key_of
from scloud.model.errors import CloudError, ErrorKind
from scloud.reconcile.memory import FRESH, VmMemory


def contents(journal: MemoryJournal) -> tuple[object, ...]:
    memories = {number: journal.memory(vm_id(number)) for number in range(5)}
    brought = {number: journal.brought(f"nic-{number}") for number in range(5)}
    return dict(journal.desired), dict(journal.ofports), journal.epoch, memories, brought


BROUGHT = Brought(
    at=7.0,
    connections=(
        Connection(protocol="tcp", source="10.0.0.1", target="10.0.0.2", source_port=4000, target_port=80, mark=3),
    ),
)


async def fill(journal: MemoryJournal) -> None:
    await journal.apply(one_vm(), [])
    await journal.remember(vm_id(1), VmMemory(phase="up", starts=3, told={"d": 7}))
    assert await journal.allocate("port/nic-1") == FIRST_OFPORT
    assert await journal.allocate("port/nic-2") == FIRST_OFPORT + 1
    await journal.bring("nic-1", BROUGHT)
    await journal.bring("nic-2", BROUGHT)
    await journal.free("port/nic-1")
    await journal.see_epoch(5)


async def test_everything_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal")
    await fill(journal)
    before = contents(journal)
    await journal.close()
    again = FileJournal(tmp_path / "journal")
    assert contents(again) == before
    assert again.brought("nic-2") == BROUGHT and again.brought("nic-1") is None, "its port is gone"
    assert again.epoch == 5 and again.memory(vm_id(1)).starts == 3
    assert await again.allocate("port/nic-1") == FIRST_OFPORT + 2, "a number was used again at once"
    await again.close()


async def test_dropped_objects_and_their_memories_are_gone(tmp_path: Path) -> None:
    journal = FileJournal(tmp_path / "journal")
    await fill(journal)
    await journal.apply([], [key_of(item) for item in one_vm()])
    await journal.close()
    again = FileJournal(tmp_path / "journal")
    assert not again.desired and again.memory(vm_id(1)) == FRESH
    await again.close()


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_log_cut_off_at_any_byte_holds_what_was_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"

    async def write() -> None:
        journal = FileJournal(path)
        await fill(journal)
        await journal.close()

    asyncio.run(write())
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])

    async def read() -> None:
        journal = FileJournal(path)
        lines = whole[:cut].count(b"\n")
        assert path.stat().st_size == len(b"".join(whole.splitlines(keepends=True)[:lines]))
        assert len(journal.desired) == min(5, lines)
        await journal.apply([vm(4)], [])
        await journal.close()
        again = FileJournal(path)
        assert f"vm/{vm_id(4)}" in again.desired
        await again.close()

    asyncio.run(read())


async def test_it_is_rewritten_when_most_of_it_is_out_of_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPACT_SLACK", 20)
    path = tmp_path / "journal"
    journal = FileJournal(path)
    await fill(journal)
    for starts in range(200):
        await journal.remember(vm_id(1), VmMemory(starts=starts))
    assert path.read_bytes().count(b"\n") < 60
    before = contents(journal)
    await journal.close()
    again = FileJournal(path)
    assert contents(again) == before
    assert await again.allocate("port/new") == FIRST_OFPORT + 2
    await again.close()


async def test_writes_that_come_together_share_a_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes = 0
    real = os.fdatasync

    def counting(descriptor: int) -> None:
        nonlocal flushes
        flushes += 1
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", counting)
    journal = FileJournal(tmp_path / "journal")
    await asyncio.gather(*(journal.apply([disk(number)], []) for number in range(200)))
    assert len(journal.desired) == 200
    assert flushes <= 5
    await journal.close()


async def test_a_full_disk_is_an_error_and_what_was_there_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = FileJournal(tmp_path / "journal")
    await fill(journal)
    real = os.write
    room = [10]

    def full(descriptor: int, data: bytes) -> int:
        if room[0] <= 0:
            raise OSError(28, "No space left on device")
        written = real(descriptor, bytes(data)[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CloudError) as caught:
        await journal.apply([port(3, 3)], [])
    assert caught.value.kind == ErrorKind.NO_CAPACITY
    assert "port/nic-0000000000000003" not in journal.desired
    monkeypatch.setattr(os, "write", real)
    await journal.apply([port(4, 4)], [])
    before = contents(journal)
    await journal.close()
    again = FileJournal(tmp_path / "journal")
    assert contents(again) == before and "port/nic-0000000000000004" in again.desired
    await again.close()


async def test_an_object_of_another_version_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b'{"set":{"kind":"disk","id":"dsk-1","colour":"red"}}\n{"epoch":3}\n')
    journal = FileJournal(path)
    assert not journal.desired and journal.epoch == 3
    await journal.close()


async def test_numbers_are_unique_when_asked_for_together() -> None:
    journal = MemoryJournal()
    numbers = await asyncio.gather(*(journal.allocate(f"port/{number % 50}") for number in range(100)))
    assert len(set(numbers)) == 50
    assert all(numbers[n] == numbers[n + 50] for n in range(50))
    assert await journal.allocate("port/adopted", wanted=777) == 777
    assert await journal.allocate("port/other", wanted=777) != 777


async def test_when_all_numbers_are_taken_it_says_so() -> None:
    journal = MemoryJournal()
    journal._ofports.update({f"port/{number}": number for number in range(FIRST_OFPORT, LAST_OFPORT + 1)})
    with pytest.raises(CloudError) as caught:
        await journal.allocate("port/one-too-many")
    assert caught.value.kind == ErrorKind.NO_CAPACITY
    await journal.free("port/500")
    assert await journal.allocate("port/one-too-many") == 500
