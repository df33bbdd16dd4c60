"""The bases of deleted images: what pools keep of an image so that disks are made from it at once."""

from __future__ import annotations

from scloud.controllers import serving
from scloud.controllers.sessions import Sessions
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import Kind
from scloud.store import operations
from scloud.store.database import Store, Tx
from scloud.store.resources import all_of, find

AGAIN_S = 5.0
DELETE_S = 300.0


def forget(tx: Tx, image: str) -> None:
    """An image is gone: its bases are to go too."""
    if all_of(tx, Kind.POOL):
        operations.enqueue(tx, f"base/{image}")


class Bases:
    def __init__(self, store: Store, sessions: Sessions) -> None:
        self._store = store
        self._sessions = sessions

    async def work(self, image: str) -> None:
        """Ask a node of every pool; what cannot be done now (nobody is there, a clone still is) is tried again."""
        pools = await self._store.read(lambda tx: _pools(tx, image))
        left = False
        for pool, nodes in pools.items():
            node = next((node for node in sorted(nodes) if node in self._sessions), None)
            try:
                session = self._sessions.need(node, f"pool {pool}")
                await session.call("delete_image", DELETE_S, pool=pool, image=image)
            except CloudError as error:
                left = left or error.kind is not ErrorKind.NOT_FOUND
        if left:
            await self._store.write(lambda tx: operations.enqueue(tx, f"base/{image}", delay=AGAIN_S))


def _pools(tx: Tx, image: str) -> dict[str, frozenset[str]]:
    """The nodes that reach each pool; none if the image is there after all."""
    if find(tx, image) is not None:
        return {}
    return {row.id: serving.reaching(tx, row.id) for row in all_of(tx, Kind.POOL)}
