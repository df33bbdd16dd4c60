"""Raw images kept on the node: fetched over the link when first needed, removed when space runs short and nobody needs
them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from scloud.link.channel import Dialer
from scloud.link.images import receive_image
from scloud.model.errors import CloudError, ErrorKind

log = logging.getLogger(__name__)

LOW_SPACE = 0.10
"""Fraction of the disk that is free, below which images that no disk is being made from are removed."""


class ManagerAway(CloudError):
    """Nothing is wrong with what was to be done: it waits for the manager."""


class ImageCache:
    """Files `SHA256.raw` in a folder: the name says the content, which was checked when it came.

    One fetch for all who ask at the same time. A crash in the middle leaves a `.part`, which is thrown away.
    """

    def __init__(self, folder: Path, dial: Dialer, free_mib: Callable[[], Awaitable[tuple[int, int]]]) -> None:
        self._folder = folder
        self._dial = dial
        self._free_mib = free_mib
        self._fetches: dict[str, asyncio.Task[None]] = {}
        self._in_use: Counter[str] = Counter()
        folder.mkdir(parents=True, exist_ok=True)
        for part in folder.glob("*.part"):
            part.unlink(missing_ok=True)

    @asynccontextmanager
    async def use(self, image: str, sha256: str) -> AsyncIterator[Path]:
        """The image's file, which stays until the context ends."""
        self._in_use[sha256] += 1
        try:
            await self._need(image, sha256)
            path = self._path(sha256)
            await asyncio.to_thread(os.utime, path)
            yield path
        finally:
            self._in_use[sha256] -= 1
            if not self._in_use[sha256]:
                del self._in_use[sha256]

    async def close(self) -> None:
        """Break off what is being fetched."""
        tasks = list(self._fetches.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def prune(self, wanted_fraction: float = LOW_SPACE) -> None:
        """Remove unused images, those used longest ago first, until enough of the disk is free."""
        for path in await asyncio.to_thread(self._oldest_first):
            free, total = await self._free_mib()
            if total <= 0 or free / total >= wanted_fraction:
                return
            if path.stem not in self._in_use:
                log.info("removing cached image %s: %d of %d MiB are free", path.name, free, total)
                path.unlink(missing_ok=True)

    async def _need(self, image: str, sha256: str) -> None:
        if self._path(sha256).exists():
            return
        task = self._fetches.get(sha256)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._fetch(image, sha256), name=f"fetch {image}")
            self._fetches[sha256] = task
            task.add_done_callback(lambda done: self._fetched(sha256, done))
        # whoever gives up waiting must not take it away from the others
        await asyncio.shield(task)

    def _fetched(self, sha256: str, task: asyncio.Task[None]) -> None:
        self._fetches.pop(sha256, None)
        if not task.cancelled():
            task.exception()  # each waiter has it; without any it is not worth a complaint

    async def _fetch(self, image: str, sha256: str) -> None:
        await self.prune()
        part = self._folder / f"{sha256}.part"
        part.unlink(missing_ok=True)
        try:
            channel = await self._dial()
        except OSError as error:
            raise ManagerAway(
                ErrorKind.UNAVAILABLE, f"image {image} is not on this node and the manager cannot be reached: {error}"
            ) from error
        try:
            await receive_image(channel, image, part, sha256)
            await asyncio.to_thread(part.replace, self._path(sha256))
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            await channel.close()

    def _path(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.raw"

    def _oldest_first(self) -> list[Path]:
        return sorted(self._folder.glob("*.raw"), key=lambda path: path.stat().st_mtime)
