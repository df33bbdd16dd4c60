"""The managers that this node knows, and reaching one of them."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Collection
from pathlib import Path

import orjson

from scloud.agent.enroll import address_of
from scloud.link import channel
from scloud.link.channel import Channel

log = logging.getLogger(__name__)
EACH_S = 4.0
"""How long one of several managers may take to take a call."""
ALONE_S = 10.0
NEXT_AFTER_S = 2.0
"""So long the next is not dialled: the leader has answered by then, unless thousands dial it at once. A standby leads
to the leader only by dialling it once more."""


class Managers:
    """HOST:PORT of the configured manager, and of those that the leader told of, which are kept in a file.

    Any of them leads to the leader. `dial` begins with the one that answered last; what led nowhere comes last.
    """

    def __init__(self, configured: str, file: Path, context: ssl.SSLContext) -> None:
        self._configured = configured
        self._file = file
        self._context = context
        self._order: list[str] = []
        self._learned = self._read()
        self._closing: set[asyncio.Task[None]] = set()

    def addresses(self) -> list[str]:
        """Each once, in the order in which they are tried."""
        known = dict.fromkeys((self._configured, *self._learned))
        return list(dict.fromkeys((*(address for address in self._order if address in known), *known)))

    async def dial(self) -> Channel:
        """A connection to one of them; the last one's OSError if none can be had. One that hangs holds nobody up: the
        next is dialled beside it, and whichever answers first is taken."""
        left = self.addresses()
        limit = EACH_S if len(left) > 1 else ALONE_S
        failure = OSError("no manager is known")
        dialling: dict[asyncio.Task[Channel], str] = {}
        try:
            while left or dialling:
                if left:
                    address = left.pop(0)
                    attempt = channel.dial(*address_of(address), self._context, limit)
                    dialling[asyncio.get_running_loop().create_task(attempt, name=f"dial {address}")] = address
                timeout = NEXT_AFTER_S if left else None
                done, _ = await asyncio.wait(dialling, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    address = dialling.pop(task)
                    try:
                        made = task.result()
                    except OSError as error:
                        failure = error
                        log.info("manager %s: %s", address, error)
                    else:
                        self._order = [address, *(other for other in self.addresses() if other != address)]
                        return made
        finally:
            self._hang_up(dialling)
        raise failure

    def failed(self) -> None:
        """The connection that was dialled last led nowhere: it is the last to be dialled again."""
        first, *others = self.addresses()
        self._order = [*others, first]

    def _hang_up(self, dialling: Collection[asyncio.Task[Channel]]) -> None:
        """Beside whatever comes next: nobody waits for those that hang."""
        for task in dialling:
            task.cancel()
        if dialling:
            closing = asyncio.get_running_loop().create_task(_closed(tuple(dialling)))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

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


async def _closed(dialling: tuple[asyncio.Task[Channel], ...]) -> None:
    for made in await asyncio.gather(*dialling, return_exceptions=True):
        if not isinstance(made, BaseException):
            await made.close()
