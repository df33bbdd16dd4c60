"""The console's page of nodes: draining with a button, and what it says meanwhile."""

from __future__ import annotations

import httpx
from test_api_drain import rig, vm

from scloud.console.app import make_console
from scloud.console.session import COOKIE, csrf_of
from support.cloud import Cloud


async def test_a_node_is_drained_and_opened_from_the_page(cloud: Cloud) -> None:
    one, two = await rig(cloud, "n1", "n2")
    await vm(cloud, "rooted", one, disk_type=None)
    await cloud.admin.end("POST", "/snapshots", {"name": "kept", "spec": {"disk": "rooted-system"}})
    await vm(cloud, "movable", one, "stopped", power="off")
    inner = httpx.AsyncClient(transport=httpx.ASGITransport(app=cloud.app), base_url="http://console")
    outer = httpx.ASGITransport(app=make_console(inner))
    cookies = {COOKIE: cloud.admin.secret}
    async with inner, httpx.AsyncClient(transport=outer, base_url="http://console", cookies=cookies) as browser:
        page = (await browser.get("/nodes")).text
        assert f"/nodes/{one.id}/actions/drain" in page and "Evening out default" in page
        form = {"csrf": csrf_of(cloud.admin.secret)}
        assert (await browser.post(f"/nodes/{one.id}/actions/drain", data=form)).status_code < 400

        async def blocked() -> bool:
            return "1 moved, 0 left, 1 cannot move now" in (await browser.get("/nodes")).text

        await cloud.eventually(blocked)
        page = (await browser.get("/nodes")).text
        assert "draining" in page and "disk rooted-system is in this node" in page
        assert f"/nodes/{two.id}/actions/drain" in page and f"/nodes/{one.id}/actions/drain" not in page
        assert (await browser.post(f"/nodes/{one.id}/actions/undrain", data=form)).status_code < 400
        assert f"/nodes/{one.id}/actions/drain" in (await browser.get("/nodes")).text
