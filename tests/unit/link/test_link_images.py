"""Sparse image transfer."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from scloud.link.channel import Channel
from scloud.link.images import receive_image, send_image
from scloud.link.memory import Conditions, memory_pair
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.wire import FetchHello, Refused, first_message

MIB = 1024 * 1024


def sparse_file(path: Path) -> str:
    """64 MiB with data at the start, in the middle across a chunk border, and a hole at the end."""
    with path.open("wb") as file:
        file.write(b"start" * 1000)
        file.seek(20 * MIB - 100)
        file.write(os.urandom(3 * MIB))
        file.truncate(64 * MIB)
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def transfer(source: Path, sha256: str, target: Path, expected: str, conditions: Conditions) -> int:
    client, server = memory_pair("nod-1", conditions=conditions)

    async def manager(channel: Channel) -> None:
        hello = await channel.receive(first_message)
        assert hello == FetchHello(image="img-1")
        try:
            await send_image(channel, source, sha256)
        except ConnectionError:
            pass

    serving = asyncio.create_task(manager(server))
    try:
        return await receive_image(client, "img-1", target, expected)
    finally:
        await serving


async def test_the_bytes_arrive_and_the_holes_stay_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    total = sparse_file(source)
    assert await transfer(source, total, target, total, Conditions()) == 64 * MIB
    assert hashlib.sha256(target.read_bytes()).hexdigest() == total
    assert target.stat().st_blocks * 512 < 8 * MIB


async def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"")
    total = hashlib.sha256(b"").hexdigest()
    assert await transfer(source, total, target, total, Conditions()) == 0
    assert target.read_bytes() == b""


async def test_other_bytes_than_expected_leave_no_file(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    total = sparse_file(source)
    with pytest.raises(CloudError) as caught:
        await transfer(source, total, target, "0" * 64, Conditions())
    assert caught.value.kind == ErrorKind.ENGINE
    assert total in caught.value.message
    assert not target.exists()


async def test_a_broken_link_leaves_no_file(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    total = sparse_file(source)
    sent = 0

    def breaks() -> bool:
        nonlocal sent
        sent += 1
        return sent > 4

    with pytest.raises(ConnectionError):
        await transfer(source, total, target, total, Conditions(breaks=breaks))
    assert not target.exists()


async def test_a_refusal_is_raised_as_it_came(tmp_path: Path) -> None:
    client, server = memory_pair("nod-1")
    await server.send(Refused(error=("not_found", "there is no image 'img-1' in this account")))
    with pytest.raises(CloudError) as caught:
        await receive_image(client, "img-1", tmp_path / "target", "0" * 64)
    assert caught.value.kind == ErrorKind.NOT_FOUND
