"""The manager as a process of its own: open pages do not hold it up, and find it again."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

from playwright.async_api import Browser, expect


async def _start(root: Path, api: str) -> asyncio.subprocess.Process:
    argv = (sys.executable, "-m", "scloud.manager", "--root", str(root), "--api", api, "--link", "127.0.0.1:0")
    process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    while b"manager ready" not in (line := await process.stderr.readline()):
        assert line, "the manager has ended"
    return process


async def _stop(process: asyncio.subprocess.Process) -> str:
    """Asks it to end; what it has said since it was ready."""
    process.send_signal(signal.SIGTERM)
    _, said = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0
    return said.decode()


async def test_a_page_survives_a_restart_of_the_manager(tmp_path: Path, browser: Browser) -> None:
    process = await _start(tmp_path, "127.0.0.1:0")
    try:
        url = json.loads((tmp_path / "ready").read_text())["api"]
        context = await browser.new_context(base_url=url)
        page = await context.new_page()
        await page.goto("/networks")
        await page.get_by_label("Token").fill((tmp_path / "admin.token").read_text().strip())
        async with page.expect_response("**/live**"):
            await page.keyboard.press("Enter")
        await page.evaluate("window.sameOne = true")
        said = await _stop(process)
        assert "Traceback" not in said, said
        await expect(page.locator("#offline")).to_be_visible()
        process = await _start(tmp_path, url.removeprefix("http://"))
        await expect(page.locator("#offline")).to_be_hidden(timeout=20_000)
        form = page.locator("form[action='/vpcs']")
        await form.get_by_label("Name").fill("net")
        await form.get_by_role("button").click()
        await expect(page.locator("#networks")).to_contain_text("net")
        assert await page.evaluate("window.sameOne")
        await context.close()
        await _stop(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
