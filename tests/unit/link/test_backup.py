"""The format of backups: whatever is sent arrives, and whatever is damaged is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scloud.client import backup as files
from scloud.link.backup import CHUNK, BackupHeader, Decoder, Extent, encode, joined, whole
from scloud.link.backup import pieces as pieced
from scloud.model.errors import CloudError, ErrorKind

HEADER = BackupHeader(disk="dsk-1", snapshot="snp-2", since="snp-1", size_mib=16)
SIZE = 16 << 20
pieces = st.lists(
    st.tuples(st.integers(0, 5000), st.one_of(st.binary(min_size=1, max_size=300), st.integers(1, 10_000))), max_size=12
)


async def told(extents: Iterable[Extent], error: Exception | None = None) -> AsyncIterator[Extent]:
    for extent in extents:
        yield extent
    if error is not None:
        raise error


async def packed(extents: Iterable[Extent], error: Exception | None = None) -> bytes:
    return b"".join([piece async for piece in encode(HEADER, told(extents, error))])


async def read(data: bytes, step: int = 1000, size: int = SIZE) -> tuple[BackupHeader, list[Extent]]:
    parts = iter([data[at : at + step] for at in range(0, len(data), step)])

    async def more(_limit: int) -> bytes:
        return next(parts, b"")

    decoder = Decoder(more)
    return await decoder.header(), [extent async for extent in decoder.extents(size)]


def apart(gaps: list[tuple[int, bytes | int]]) -> list[Extent]:
    """Extents one after the other, with gaps."""
    at, result = 0, []
    for gap, piece in gaps:
        result.append((at + gap, piece))
        at += gap + (piece if isinstance(piece, int) else len(piece))
    return result


@given(pieces, st.integers(1, 2000))
def test_what_is_sent_arrives(gaps: list[tuple[int, bytes | int]], step: int) -> None:
    extents = apart(gaps)
    assert asyncio.run(read(asyncio.run(packed(extents)), step)) == (HEADER, extents)


@given(pieces, st.data())
def test_any_damage_is_noticed(gaps: list[tuple[int, bytes | int]], data: st.DataObject) -> None:
    good = asyncio.run(packed(apart(gaps)))
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    for broken in (bad, good[:at]):
        with pytest.raises(CloudError) as caught:
            asyncio.run(read(broken))
        assert caught.value.kind in set(ErrorKind)


async def test_a_long_piece_is_cut(tmp_path: Path) -> None:
    data = bytes(range(256)) * (CHUNK // 256 + 1)
    _, extents = await read(await packed([(0, data)]), 1 << 20)
    assert [offset for offset, _ in extents] == [0, CHUNK]
    assert b"".join(piece for _, piece in extents if isinstance(piece, bytes)) == data


async def test_the_senders_failure_is_told(tmp_path: Path) -> None:
    sent = await packed([(0, b"x")], CloudError(ErrorKind.ENGINE, "the cluster is gone"))
    with pytest.raises(CloudError, match="the cluster is gone") as caught:
        await read(sent)
    assert caught.value.kind is ErrorKind.ENGINE
    file = tmp_path / "backup"
    file.write_bytes(sent)
    with pytest.raises(CloudError, match="the cluster is gone"):
        files.check(file)


async def test_bytes_beyond_the_disk_are_refused() -> None:
    with pytest.raises(CloudError, match="beyond"):
        await read(await packed([(SIZE - 1, b"xx")]))


async def test_what_a_whole_backup_leaves_out_is_zeros() -> None:
    filled = [extent async for extent in whole(told([(10, b"abc"), (20, 5)]), 30)]
    assert filled == [(0, 10), (10, b"abc"), (13, 7), (20, 5), (25, 5)]


@given(st.lists(st.binary(min_size=1, max_size=50)), st.integers(1, 60), st.integers(1, 60), st.binary(max_size=9))
def test_pieces_are_joined_until_the_empty_one(sent: list[bytes], step: int, limit: int, later: bytes) -> None:
    data = b"".join(map(pieced, sent)) + pieced(b"") + later
    parts = iter([data[at : at + step] for at in range(0, len(data), step)])

    async def more(_limit: int) -> bytes:
        return next(parts, b"")

    async def all_of() -> bytes:
        read, result = joined(more), b""
        while part := await read(limit):
            assert len(part) <= limit
            result += part
        return result

    assert asyncio.run(all_of()) == b"".join(sent)


@given(st.binary(max_size=5000), st.data())
def test_files_are_checked_without_reading_their_records(content: bytes, data: st.DataObject) -> None:
    import tempfile

    good = asyncio.run(packed([(0, content)] if content else []))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "backup"
        file.write_bytes(good)
        files.check(file)
        assert files.header(file) == HEADER.model_dump()
        at = data.draw(st.integers(0, len(good) - 1))
        file.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(CloudError):
            files.check(file)
        file.write_bytes(good[:at])
        with pytest.raises(CloudError):
            files.check(file)
