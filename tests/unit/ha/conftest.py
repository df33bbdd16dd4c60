from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from scloud.controllers.ha import controller
from support.cloud import Cloud


@pytest.fixture
async def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    """One whose watcher of nodes looks often."""
    monkeypatch.setattr(controller, "TICK_S", 0.02)
    monkeypatch.setattr(controller, "AGAIN_S", 0.05)
    async with Cloud(tmp_path) as running:
        yield running
