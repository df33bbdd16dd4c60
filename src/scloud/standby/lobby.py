"""Where nodes end up that call at a standby which does not reach the leader: known by their certificates, counted, and
sent away to try another manager."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable

from scloud.authority import Authority
from scloud.link import channel, pki
from scloud.link.channel import peer_name
from scloud.model.errors import CloudError
from scloud.model.wire import CaRequest, ca_answer
from scloud.standby.relay import Address, Target

log = logging.getLogger(__name__)
PROBE_EVERY_S = 2.0
PROBE_S = 3.0
"""Together less than the silence after which a node hangs up: when it calls, it is known whether to bring it on."""
HANDSHAKE_S = 5.0
CALLED_S = 15.0
"""A node that finds no leader calls at each manager at least that often."""


class Lobby:
    """`target` is for the relay of the link: the leader, or None while it cannot be reached from here."""

    def __init__(self, leader: Target, clock: Callable[[], float]) -> None:
        self._leader = leader
        self._clock = clock
        self._about: Address | None = None
        """The leader that all that is remembered is about."""
        self._reached = True
        self._called: dict[str, float] = {}
        self._tls: ssl.SSLContext | None = None

    def target(self) -> Address | None:
        leader = self._leader()
        if leader != self._about:
            self._forget()
            self._about = leader
        return leader if self._reached else None

    def stranded(self) -> int:
        """How many nodes called here lately and could not be brought to the leader."""
        self.target()
        since = self._clock() - CALLED_S
        return sum(called > since for called in self._called.values())

    async def turn_away(self, accepted: socket.socket) -> None:
        """Take note of who calls, and hang up."""
        if self._tls is None or self._leader() is None:
            accepted.close()
            return
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        # The protocol holds on to what it makes as long as the connection lasts.
        transport, protocol = await loop.connect_accepted_socket(
            lambda: asyncio.StreamReaderProtocol(reader), accepted, ssl=self._tls, ssl_handshake_timeout=HANDSHAKE_S
        )
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        node = peer_name(writer)
        if node and node != pki.MANAGER_NAME:
            self._called[node] = self._clock()
        transport.abort()

    async def watch(self, authority: Authority) -> None:
        """Ask again and again whether the leader's link answers, until cancelled."""
        self._tls = pki.server_context(authority.certificate, authority.key, authority.ca_path)
        as_client = authority.as_client.context()
        while True:
            self.target()
            asked = self._about
            answers = asked is None or await self._answers(asked, as_client)
            self.target()
            if asked == self._about:
                self._note(answers)
            await asyncio.sleep(PROBE_EVERY_S)

    def _note(self, answers: bool) -> None:
        if answers:
            self._forget()
        elif self._reached:
            log.warning("the leader's link at %s does not answer", self._about)
        self._reached = answers

    def _forget(self) -> None:
        self._reached = True
        self._called.clear()

    @staticmethod
    async def _answers(leader: Address, files: ssl.SSLContext) -> bool:
        with contextlib.suppress(OSError, TimeoutError, CloudError):
            async with asyncio.timeout(PROBE_S):
                connection = await channel.dial(*leader, files, PROBE_S)
                try:
                    await connection.send(CaRequest())
                    await connection.receive(ca_answer)
                finally:
                    await connection.close()
            return True
        return False
