"""Keeps a node's disk from filling up by itself: console logs are cut, images that nobody needs are removed."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from scloud.agent.images import ImageCache
from scloud.model.errors import CloudError

log = logging.getLogger(__name__)

EVERY_S = 60.0
LOG_LIMIT = 8 * 1024 * 1024
LOG_KEPT = 1024 * 1024
"""Bytes of a console log: beyond the first, only the second is kept."""


async def keep_tidy(consoles: Path, images: ImageCache) -> None:
    """For ever, once a minute."""
    while True:
        try:
            await asyncio.to_thread(trim_logs, consoles)
            await images.prune()
        except (OSError, CloudError) as error:
            log.warning("tidying up failed: %s", error)
        await asyncio.sleep(EVERY_S)


def trim_logs(folder: Path, limit: int = LOG_LIMIT, kept: int = LOG_KEPT) -> None:
    """Cut logs that have grown too long to their end, in place: QEMU goes on appending to the same file."""
    for path in folder.glob("*.log"):
        with path.open("r+b") as file:
            if os.fstat(file.fileno()).st_size <= limit:
                continue
            file.seek(-kept, os.SEEK_END)
            end = file.read(kept)
            file.truncate(0)
        # what QEMU wrote since then is in front of it: a few lines out of place are better than none
        with path.open("ab") as file:
            file.write(end)
