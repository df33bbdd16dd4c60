"""The node's image cache."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest

from scloud.agent.images import ImageCache
from scloud.link.channel import Channel
from scloud.link.images import send_image
from scloud.link.memory import MemoryListener
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.wire import FetchHello, first_message


class Shelf:
    """A manager with one image."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "original"
        self.file.write_bytes(os.urandom(100_000))
        self.sha = hashlib.sha256(self.file.read_bytes()).hexdigest()
        self.fetches = 0
        self.free = (90, 100)
        self.listener = MemoryListener(self.serve)
        self.folder = folder / "cache"

    async def serve(self, channel: Channel) -> None:
        assert await channel.receive(first_message) == FetchHello(image="img-1")
        self.fetches += 1
        await send_image(channel, self.file, self.sha)

    async def free_mib(self) -> tuple[int, int]:
        return self.free

    def cache(self) -> ImageCache:
        return ImageCache(self.folder, lambda: self.listener.dial("nod-1"), self.free_mib)


async def test_it_is_fetched_once_for_all_who_ask_and_kept(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    cache = shelf.cache()

    async def ask() -> bytes:
        async with cache.use("img-1", shelf.sha) as path:
            return await asyncio.to_thread(path.read_bytes)

    assert set(await asyncio.gather(*(ask() for _ in range(5)))) == {shelf.file.read_bytes()}
    assert shelf.fetches == 1
    again = shelf.cache()
    async with again.use("img-1", shelf.sha):
        assert shelf.fetches == 1


async def test_who_gives_up_does_not_take_it_from_the_others(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    cache = shelf.cache()

    async def ask() -> Path:
        async with cache.use("img-1", shelf.sha) as path:
            return path

    first, second = asyncio.ensure_future(ask()), asyncio.ensure_future(ask())
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).exists()
    assert shelf.fetches == 1


async def test_wrong_bytes_are_not_kept(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    cache = shelf.cache()
    with pytest.raises(CloudError) as caught:
        async with cache.use("img-1", "0" * 64):
            raise AssertionError("it was given out")
    assert caught.value.kind == ErrorKind.ENGINE
    assert not list(shelf.folder.iterdir())


async def test_without_a_manager_it_says_so_and_works_when_there_is_one(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    cache = shelf.cache()
    shelf.listener.handler = None
    with pytest.raises(CloudError) as caught:
        async with cache.use("img-1", shelf.sha):
            raise AssertionError("it was given out")
    assert caught.value.kind == ErrorKind.UNAVAILABLE
    shelf.listener.handler = shelf.serve
    async with cache.use("img-1", shelf.sha) as path:
        assert path.exists()


async def test_what_a_crash_left_half_fetched_is_thrown_away(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    shelf.folder.mkdir()
    (shelf.folder / f"{shelf.sha}.part").write_bytes(b"half")
    async with shelf.cache().use("img-1", shelf.sha) as path:
        assert path.read_bytes() == shelf.file.read_bytes()
    assert [file.name for file in shelf.folder.iterdir()] == [f"{shelf.sha}.raw"]


async def test_when_space_is_short_the_oldest_unused_go(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    cache = shelf.cache()
    for age, name in ((300, "old"), (200, "older"), (100, "new")):
        path = shelf.folder / f"{name}.raw"
        path.write_bytes(b"x")
        os.utime(path, (1_000_000 - age, 1_000_000 - age))
    await cache.prune()
    assert len(list(shelf.folder.iterdir())) == 3
    shelf.free = (1, 100)
    async with cache.use("img-1", shelf.sha):
        assert sorted(path.name for path in shelf.folder.iterdir()) == [f"{shelf.sha}.raw"]
        await cache.prune()
        assert (shelf.folder / f"{shelf.sha}.raw").exists(), "an image in use was removed"
    await cache.prune()
    assert not list(shelf.folder.iterdir())
