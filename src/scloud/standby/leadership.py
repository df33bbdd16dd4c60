"""Which of several managers leads, and for how long this one may."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from scloud.model.errors import CloudError
from scloud.standby.aside import successor
from scloud.standby.relay import Address
from scloud.store.database import Store, Tx
from scloud.store.lease import (
    Holder,
    Lease,
    LeaseLost,
    Offer,
    announce,
    give_up_lease,
    guard_of,
    hand_over,
    offers_to,
    read_lease,
    take_lease,
)

log = logging.getLogger(__name__)
LEASE_S = 5.0
"""How long a leader that says nothing more is believed to lead. Takeover takes this, and the time to load."""
RENEW_S = 1.0
LOOK_S = 0.5
"""How often a standby looks whether the lease has run out."""


class Leadership:
    """One manager's view of it."""

    def __init__(self, store: Store, me: Holder) -> None:
        self._store = store
        self.me = me
        self._seen: Lease | None = None
        self._gained_at = 0.0
        self.epoch = 0

    @property
    def leader(self) -> Holder | None:
        """Who leads, as far as was last seen; None if nobody does."""
        return self._seen.holder if self._seen is not None and self._seen.left_s > 0 else None

    def api(self) -> Address | None:
        return _address(self.leader.api) if self.leader is not None else None

    def link(self) -> Address | None:
        return _address(self.leader.link) if self.leader is not None else None

    async def gain(self, stranded: Callable[[], int]) -> int:
        """Return the epoch as soon as this manager leads; from then on every write of the store proves it.

        `stranded` says how many nodes called at this standby that it cannot bring to the leader.
        """
        loop = asyncio.get_running_loop()
        while True:
            self._gained_at = loop.time()
            try:
                epoch = await asyncio.to_thread(self._try, stranded())
            except CloudError as error:
                log.warning("no leader can be found: %s", error.message)
                self._seen, epoch = None, None
            except Exception as error:
                log.warning("no leader can be found: the database does not answer: %s", error)
                self._seen, epoch = None, None
            if epoch is not None:
                self.epoch = epoch
                self._store.guard = guard_of(epoch)
                return epoch
            await asyncio.sleep(LOOK_S)

    def _try(self, stranded: int) -> int | None:
        seen = self._store.read_now(read_lease)
        if seen is not None and seen.left_s > 0 and seen.holder != self.me:
            self._seen = seen
            self._store.write_now(lambda tx: announce(tx, self.me, LEASE_S, epoch=seen.epoch, stranded=stranded))
            return None
        self._seen = None
        return self._store.write_now(lambda tx: take_lease(tx, self.me, LEASE_S))

    async def keep(self, heard: Callable[[], int]) -> None:
        """Renew the lease until it is lost: LeaseLost if another leads, or if nothing could be renewed in time.

        `heard` says how many nodes are heard: the lease is handed to a standby that more nodes reach.
        """
        loop = asyncio.get_running_loop()
        renewed = self._gained_at
        while True:
            began = loop.time()
            try:
                async with asyncio.timeout(max(0.1, renewed + LEASE_S - began)):
                    offers = await self._store.write(self._renew)
                    renewed = began
                    to = successor(heard(), offers, began - self._gained_at)
                    if to is not None:
                        await self._step_aside(to, heard())
            except LeaseLost:
                raise
            except Exception as error:
                log.warning("the leader's lease could not be renewed: %s", error or "the database does not answer")
            if loop.time() - renewed >= LEASE_S:
                raise LeaseLost(self.epoch, None)
            await asyncio.sleep(RENEW_S)

    def _renew(self, tx: Tx) -> list[Offer]:
        take_lease(tx, self.me, LEASE_S)
        return offers_to(tx, self.epoch)

    async def _step_aside(self, to: Holder, heard: int) -> None:
        log.warning("%d nodes are heard here, and more cannot but reach %s, which is to lead now", heard, to.id)
        await self._store.write(lambda tx: hand_over(tx, self.epoch, to, LEASE_S))
        raise LeaseLost(self.epoch, self.epoch + 1)

    async def give_up(self) -> None:
        """Let another lead at once."""
        try:
            async with asyncio.timeout(2.0):
                await self._store.write(lambda tx: give_up_lease(tx, self.epoch))
        except (CloudError, TimeoutError) as error:
            log.info("the lease runs out by itself: %s", error)


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)
