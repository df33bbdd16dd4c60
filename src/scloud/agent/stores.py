"""The storage of each pool that this node was told of, beside its own local one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from scloud.agent.journal import Journal
from scloud.drivers.hypervisor.protocol import Hypervisor
from scloud.drivers.storage.place import secret_of
from scloud.drivers.storage.protocol import Storage
from scloud.model.desired import DesiredStore, StorePool
from scloud.model.errors import CloudError, ErrorKind

log = logging.getLogger(__name__)


class Pools(Protocol):
    """Makes drivers of pools. Those of one cluster share what they hold of it."""

    def open(self, store: DesiredStore, pool: StorePool) -> Storage:
        """Touches nothing yet: the cluster is spoken to when the storage is first asked something."""
        ...


class NoPools:
    """On a node whose disks are all its own."""

    def open(self, store: DesiredStore, pool: StorePool) -> Storage:
        raise CloudError(ErrorKind.UNAVAILABLE, f"this node cannot use pools of storage clusters, such as {pool.name}")


class Stores:
    """Pools by id, as the journal's `store/...` objects name them; None is the node's local storage.

    `changed` is to be told of every change of such an object; a pool is opened when it is first used.
    """

    def __init__(self, local: Storage, pools: Pools, hypervisor: Hypervisor, journal: Journal) -> None:
        self.local = local
        self._pools = pools
        self._hypervisor = hypervisor
        self._known: dict[str, tuple[DesiredStore, StorePool]] = {}
        self._open: dict[str, Storage] = {}
        self._closing: set[asyncio.Task[None]] = set()
        for item in journal.desired.values():
            if isinstance(item, DesiredStore):
                self.changed(item.id, item)

    def of(self, pool: str | None) -> Storage:
        """`CloudError(UNAVAILABLE)` while this node does not know the pool: it is to be waited for."""
        if pool is None:
            return self.local
        if pool not in self._known:
            raise CloudError(
                ErrorKind.UNAVAILABLE,
                f"waiting for the storage cluster: this node was not told yet how to reach pool {pool}",
            )
        if pool not in self._open:
            self._open[pool] = self._pools.open(*self._known[pool])
        return self._open[pool]

    @asynccontextmanager
    async def beside(self, store: DesiredStore) -> AsyncIterator[list[Storage]]:
        """Pools as they are reached with another key than this node's, for as long as the context lasts."""
        opened = [self._pools.open(store, pool) for pool in store.pools]
        try:
            yield opened
        finally:
            await asyncio.gather(*(storage.close() for storage in opened), return_exceptions=True)

    def shared(self) -> dict[str, Storage]:
        """Of every pool that is known."""
        return {pool: self.of(pool) for pool in sorted(self._known)}

    def answer_s(self) -> float:
        """How long the slowest of the pools in use takes for a small request, in seconds."""
        return max((storage.answer_s() for storage in self._open.values()), default=0.0)

    def changed(self, store: str, new: DesiredStore | None) -> list[str]:
        """Take notice of a store as it is desired now; returns the pools that are reached in another way."""
        before = {pool: known for pool, known in self._known.items() if known[0].id == store}
        now: dict[str, tuple[DesiredStore, StorePool]] = {}
        if new is not None and not new.absent and new.client_key:
            now = {pool.id: (new, pool) for pool in new.pools}
            secret = secret_of(new.cluster, new.client)
            usage = f"client.{new.client} of storage cluster {new.cluster}"
            self._hypervisor.set_secret(secret, usage, new.client_key)
        different = [
            pool for pool in sorted(before.keys() | now.keys()) if _way(before.get(pool)) != _way(now.get(pool))
        ]
        for pool in before:
            del self._known[pool]
        self._known.update(now)
        for pool in different:
            if (storage := self._open.pop(pool, None)) is not None:
                self._close(pool, storage)
        return different

    def _close(self, pool: str, storage: Storage) -> None:
        async def close() -> None:
            try:
                await storage.close()
            except (CloudError, OSError) as error:
                log.warning("pool %s is reached in another way now, and the old one does not end: %s", pool, error)

        task = asyncio.get_running_loop().create_task(close(), name=f"close {pool}")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Let go of all clusters. The local storage is its maker's to close."""
        for pool in list(self._open):
            self._close(pool, self._open.pop(pool))
        await asyncio.gather(*self._closing, return_exceptions=True)


def _way(known: tuple[DesiredStore, StorePool] | None) -> tuple[object, ...] | None:
    if known is None:
        return None
    store, pool = known
    return store.cluster, store.fsid, store.mon_host, store.client, store.client_key, pool
