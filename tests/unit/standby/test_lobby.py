"""Nodes that call at a standby which does not reach the leader."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from scloud.authority import Authority
from scloud.link import channel, pki
from scloud.link.channel import Channel
from scloud.model.wire import CaAnswer, CaRequest, ca_answer
from scloud.standby import lobby as lobby_module
from scloud.standby.lobby import CALLED_S, Lobby
from scloud.standby.relay import Address, Relay

NODES = ("nod-1", "nod-2")


class Rig:
    """A standby's relay with its lobby, and a leader that answers or is silent."""

    def __init__(self, folder: Path) -> None:
        self.ca = pki.create_ca(time.time())
        self.authority = Authority(self.ca, folder / "pki", [])
        self.leader: Address | None = None
        self.now = 100.0
        self.silent = False
        self.asked = asyncio.Event()
        self.lobby = Lobby(lambda: self.leader, lambda: self.now)
        self.standby: Address = ("", 0)

    async def serve(self, connection: Channel) -> None:
        """The leader's end."""
        await connection.receive(TypeAdapter(CaRequest))
        self.asked.set()
        if self.silent:
            await connection.read()
        await connection.send(CaAnswer(ca=self.ca.certificate))

    def context(self, node: str | None) -> ssl.SSLContext:
        if node is None:
            return pki.client_context(self.ca.certificate)
        folder = self.authority.certificate.parent
        key, request = pki.make_request(node)
        paths = folder / f"{node}.pem", folder / f"{node}.key"
        for path, text in zip(paths, (pki.issue_node(self.ca, node, request, time.time()), key), strict=True):
            path.write_text(text)
        return pki.client_context(self.ca.certificate, *paths)

    async def call(self, node: str | None) -> bool:
        """Dial the standby; whether the leader has answered."""
        try:
            connection = await channel.dial(*self.standby, self.context(node))
            try:
                await connection.send(CaRequest())
                await connection.receive(ca_answer)
            finally:
                await connection.close()
        except OSError:
            return False
        return True

    async def until(self, stranded: int) -> None:
        async with asyncio.timeout(10):
            while self.lobby.stranded() != stranded:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def standby(folder: Path) -> AsyncIterator[Rig]:
    rig = Rig(folder)
    with channel.listen("127.0.0.1", 0) as near, channel.listen("127.0.0.1", 0) as far:
        rig.standby = near.getsockname()
        rig.leader = far.getsockname()
        context = pki.server_context(rig.authority.certificate, rig.authority.key, rig.authority.ca_path)
        server = await channel.serve(rig.serve, far, context)
        tasks = [
            asyncio.create_task(Relay(near, rig.lobby.target, rig.lobby.turn_away).run()),
            asyncio.create_task(rig.lobby.watch(rig.authority)),
        ]
        try:
            await asyncio.wait_for(rig.asked.wait(), 10)
            yield rig
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            server.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lobby_module, "PROBE_EVERY_S", 0.05)
    monkeypatch.setattr(lobby_module, "PROBE_S", 0.5)


async def test_nodes_are_brought_to_a_leader_that_answers_and_counted_while_it_does_not(tmp_path: Path) -> None:
    async with standby(tmp_path) as rig:
        assert await rig.call(NODES[0]) and rig.lobby.stranded() == 0

        # It hangs, or its answers are lost: its port still takes connections.
        rig.silent = True
        async with asyncio.timeout(10):
            while rig.lobby.target() is not None:
                await asyncio.sleep(0.01)
        for node in (*NODES, NODES[0], None):  # one calls twice, and somebody has no certificate
            assert not await rig.call(node)
        await rig.until(2)
        rig.now += CALLED_S + 1.0
        assert rig.lobby.stranded() == 0, "those that call no more"
        assert not await rig.call(NODES[1])
        await rig.until(1)

        # When it answers again, nobody is stranded.
        rig.silent = False
        await rig.until(0)
        assert await rig.call(NODES[0])


async def test_what_was_counted_is_about_one_leader(tmp_path: Path) -> None:
    async with standby(tmp_path) as rig:
        rig.silent = True
        async with asyncio.timeout(10):
            while rig.lobby.target() is not None:
                await asyncio.sleep(0.01)
        assert not await rig.call(NODES[0])
        await rig.until(1)
        rig.leader = None
        assert rig.lobby.stranded() == 0 and rig.lobby.target() is None
        assert not await rig.call(NODES[0])
        assert rig.lobby.stranded() == 0, "while nobody leads, nobody is kept from the leader"
