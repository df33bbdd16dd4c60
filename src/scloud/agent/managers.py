"""The managers that this node knows, and reaching one of them."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

import orjson

from scloud.agent.enroll import address_of
from scloud.link import channel
from scloud.link.channel import Channel

log = logging.getLogger(__name__)
EACH_S = 4.0
"""How long one of several managers may take to take a call."""
ALONE_S = 10.0


class Managers:
    """HOST:PORT of the configured manager, and of those that the leader told of, which are kept in a file.

    Any of them leads to the leader. `dial` begins with the one that answered last.
    """

    def __init__(self, configured: str, file: Path, context: ssl.SSLContext) -> None:
        self._configured = configured
        self._file = file
        self._context = context
        self._first = configured
        self._learned = self._read()

    def addresses(self) -> list[str]:
        """Each once, in the order in which they are tried."""
        return list(dict.fromkeys((self._first, self._configured, *self._learned)))

    async def dial(self) -> Channel:
        """A connection to one of them; the last one's OSError if none can be had."""
        addresses = self.addresses()
        limit = EACH_S if len(addresses) > 1 else ALONE_S
        for number, address in enumerate(addresses, 1):
            try:
                made = await channel.dial(*address_of(address), self._context, limit)
            except OSError as error:
                if number == len(addresses):
                    raise
                log.info("manager %s: %s; trying the next", address, error)
            else:
                self._first = address
                return made
        raise ConnectionError("no manager is known")

    def failed(self) -> None:
        """The connection that was dialled last led nowhere: the next dial begins with another."""
        addresses = self.addresses()
        self._first = addresses[1 % len(addresses)]

    def learn(self, addresses: tuple[str, ...]) -> None:
        """Keep what the leader says; nothing if it says nothing."""
        if addresses and addresses != self._learned:
            fresh = self._file.with_suffix(".new")
            fresh.write_bytes(orjson.dumps(addresses))
            fresh.replace(self._file)
            self._learned = addresses

    def _read(self) -> tuple[str, ...]:
        try:
            return tuple(str(address) for address in orjson.loads(self._file.read_bytes()))
        except (OSError, ValueError):
            return ()
