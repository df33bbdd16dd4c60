from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.cloud import Cloud


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    async with Cloud(tmp_path) as running:
        yield running
