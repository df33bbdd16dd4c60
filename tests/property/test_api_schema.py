"""schemathesis over the published OpenAPI: whatever is sent, answers are as documented and nothing fails inside."""

from __future__ import annotations

import asyncio
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings

from scloud.api.app import make_app
from scloud.api.context import Context
from support.cloud import Cloud


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
    made.run(populate(made.cloud))
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


def published() -> dict[str, Any]:
    """What the application publishes. Of long texts the limit is left out: making many of 64 KiB takes minutes, and
    what is longer is tried elsewhere."""

    def shorten(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: shorten(x) for name, x in part.items() if not (name == "maxLength" and x > 1000)}
        return [shorten(x) for x in part] if isinstance(part, list) else part

    document: dict[str, Any] = shorten(make_app(cast(Context, None)).openapi())
    return document


DOOR = Door()
schema = schemathesis.openapi.from_dict(published())
schema.app = DOOR


async def populate(cloud: Cloud) -> None:
    """Things by the name that examples use, so that much of what is sent is carried out."""
    await cloud.node()
    await cloud.image("default", account=cloud.admin.account)
    await cloud.admin.create("vpcs", "default")
    await cloud.admin.create("subnets", "default", vpc="default", cidr="10.1.0.0/16")
    await cloud.admin.create("placement-groups", "default")
    await cloud.admin.create("keypairs", "default", public_key="ssh-ed25519 " + "A" * 68)
    await cloud.admin.create("disks", "default", size_mib=10)
    await cloud.admin.create("vms", "default", image="default", nics=[{"subnet": "default"}])


@schema.parametrize()
@settings(
    max_examples=3,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
def test_conforms(case: schemathesis.Case, running: Running) -> None:
    waits = str(case.query.get("wait", "")) if case.query else ""
    if re.fullmatch(r"[1-9][0-9.]*", waits) and float(waits) <= 60:
        case.query["wait"] = 0.001
    # Not asked: that all the schema allows is accepted (references, and rules over several fields, are beyond it), and
    # that tokens are needed, which the tests of tenancy ask of every route.
    case.call_and_validate(
        headers={"Authorization": f"Bearer {running.cloud.admin.secret}"},
        excluded_checks=schemathesis.checks.CHECKS.get_by_names(["positive_data_acceptance", "ignored_auth"]),
    )
