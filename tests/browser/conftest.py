"""A real browser before a real manager with scripted nodes, all in one event loop that lives as long as the browser."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import uvicorn
from browser_rig import Site
from playwright.async_api import Browser, Page, async_playwright, expect

from scloud.console.app import mount
from support.cloud import Cloud

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
expect.set_options(timeout=30_000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield running
        await running.close()


@pytest_asyncio.fixture(loop_scope="session")
async def site(tmp_path: Path, browser: Browser) -> AsyncIterator[Site]:
    """A cloud with two nodes and an image, served with its console."""
    async with Cloud(tmp_path) as cloud:
        streams = mount(cloud.app)
        await cloud.node("n1")
        await cloud.node("n2")
        await cloud.image("micro")
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        config = uvicorn.Config(cloud.app, lifespan="off", log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server._serve([listener]))
        made = Site(cloud, browser, f"http://127.0.0.1:{listener.getsockname()[1]}")
        try:
            yield made
        finally:
            await made.close()
            server.should_exit = True
            streams.close()
            await serving


@pytest_asyncio.fixture(loop_scope="session")
async def page(site: Site) -> Page:
    """The administrator's, signed in."""
    return await site.sign_in(site.cloud.admin)
