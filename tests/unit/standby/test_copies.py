"""A standby's copies of images."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from scloud.link.pki import ClientFiles
from scloud.standby import copies
from scloud.standby.copies import keep_copies


class Away:
    """A database that is away at first."""

    def __init__(self) -> None:
        self.asked = 0
        self.again = asyncio.Event()

    async def read(self, _: Any) -> list[Any]:
        self.asked += 1
        if self.asked == 1:
            raise OperationalError("SELECT", {}, OSError("connection refused"))
        self.again.set()
        return []


async def test_images_are_looked_for_again_when_the_database_was_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "LOOK_S", 0.01)
    store = Away()
    files = ClientFiles(tmp_path, tmp_path, tmp_path)
    keeping = asyncio.create_task(keep_copies(store, tmp_path.joinpath, lambda: None, files))  # type: ignore[arg-type]
    try:
        await asyncio.wait_for(store.again.wait(), 10)
        assert not keeping.done()
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
