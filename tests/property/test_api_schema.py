"""schemathesis over the published OpenAPI: whatever is sent, answers are as documented and nothing fails inside."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from support.cloud import Cloud

from scloud.api.app import make_app
from scloud.api.context import Context


class Running:
    """A cloud on a loop of its own thread; schemathesis asks from this one."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.cloud = Cloud(Path(self.folder.name))

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """The real application, on its own loop."""
        asking = asyncio.get_running_loop()

        def there(fn: Any) -> Any:
            async def call(*args: Any) -> Any:
                return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(fn(*args), asking))

            return call

        work = asyncio.run_coroutine_threadsafe(self.cloud.app(scope, there(receive), there(send)), self.loop)
        await asyncio.wrap_future(work)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Running()
    made.run(made.cloud.__aenter__())
    DOOR.running = made
    yield made
    made.run(made.cloud.__aexit__())
    made.loop.call_soon_threadsafe(made.loop.stop)
    made.thread.join()
    made.loop.close()
    made.folder.cleanup()


class Door:
    """The application that schemathesis is given before there is a cloud."""

    running: Running

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.running.app(scope, receive, send)


DOOR = Door()
schema = schemathesis.openapi.from_dict(make_app(cast(Context, None)).openapi())
schema.app = DOOR


@schema.parametrize()
@settings(max_examples=15, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate])
def test_conforms(case: schemathesis.Case, running: Running) -> None:
    case.call_and_validate(headers={"Authorization": f"Bearer {running.cloud.admin.secret}"})
