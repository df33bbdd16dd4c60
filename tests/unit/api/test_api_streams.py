"""WebSockets into VMs, against a node that answers in capitals."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scloud.api.app import PREFIX
from support.cloud import Api, Cloud


class Socket:
    """A WebSocket spoken straight to the application."""

    def __init__(self, api: Api, cloud: Cloud, path: str, query: str = "") -> None:
        self._in: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._out: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        headers = [(b"authorization", f"Bearer {api.secret}".encode())] if api.secret else []
        scope = {
            "type": "websocket", "asgi": {"version": "3.0"}, "path": PREFIX + path, "raw_path": b"",
            "query_string": query.encode(), "headers": headers, "scheme": "ws", "subprotocols": [], "root_path": "",
        }  # fmt: skip
        self._in.put_nowait({"type": "websocket.connect"})
        self.task = asyncio.create_task(cloud.app(scope, self._in.get, self._out.put))

    async def hear(self) -> dict[str, Any]:
        async with asyncio.timeout(5):
            return await self._out.get()

    def send(self, data: bytes) -> None:
        self._in.put_nowait({"type": "websocket.receive", "bytes": data})

    async def close(self) -> None:
        self._in.put_nowait({"type": "websocket.disconnect", "code": 1000})
        async with asyncio.timeout(5):
            await self.task


@pytest.mark.parametrize(("path", "query"), [("/vms/a/console", ""), ("/vms/a/forward", "port=22")])
async def test_bytes_go_both_ways(cloud: Cloud, path: str, query: str) -> None:
    await cloud.node()
    await cloud.image()
    await cloud.alice.create("vms", "a", image="micro")
    socket = Socket(cloud.alice, cloud, path, query)
    assert (await socket.hear())["type"] == "websocket.accept"
    socket.send(b"hello \xff")
    assert (await socket.hear())["bytes"] == b"HELLO \xff"
    await socket.close()


async def test_a_refusal_says_why(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    await cloud.alice.create("vms", "a", image="micro")
    bob = await cloud.account("bob")
    for api, path, word in (
        (bob, "/vms/a/console", "not_found"),
        (cloud.client(None), "/vms/a/console", "unauthenticated"),
        (cloud.alice, "/vms/none/console", "not_found"),
    ):
        socket = Socket(api, cloud, path)
        assert (await socket.hear())["type"] == "websocket.accept"
        closed = await socket.hear()
        assert closed["code"] == 4000 and closed["reason"].startswith(word)
        await socket.task
    await cloud.lose(node)
    socket = Socket(cloud.alice, cloud, "/vms/a/console")
    await socket.hear()
    assert (await socket.hear())["reason"].startswith("unavailable")
    await socket.task


async def test_a_node_that_dies_ends_the_stream(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    await cloud.alice.create("vms", "a", image="micro")
    socket = Socket(cloud.alice, cloud, "/vms/a/console")
    await socket.hear()
    socket.send(b"x")
    await socket.hear()
    for stream in list(node._streams):
        stream.cancel()
    assert (await socket.hear())["type"] == "websocket.close"
    async with asyncio.timeout(5):
        await socket.task
