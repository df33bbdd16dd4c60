"""Operations on networks end when the switches of all nodes concerned have what was asked for."""

from __future__ import annotations

import asyncio

from scloud.controllers import finishing
from scloud.controllers.directory import Directory
from scloud.controllers.sessions import Sessions
from scloud.model.kinds import Kind, State
from scloud.model.registry import status_type
from scloud.model.specs import NicSpec
from scloud.store import operations
from scloud.store.database import Store, Tx
from scloud.store.resources import Resource, find, save


class NetworkWait:
    """A node that is not connected, or too slow, is not waited for: it follows by itself, and the message says so."""

    def __init__(self, store: Store, sessions: Sessions, directory: Directory, limit_s: float) -> None:
        self._store = store
        self._sessions = sessions
        self._directory = directory
        self._limit_s = limit_s

    async def work(self, kind: Kind, id: str) -> bool:
        """Wait, then complete what can be completed. False to be asked again."""
        row = await self._store.read(lambda tx: find(tx, id))
        if row is None or row.state == State.DELETING:
            return True
        if not await self._store.read(lambda tx: _attached_and_ready(tx, row)):
            return False
        late = await self.settled(self._nodes(kind, row))
        return await self._store.write(lambda tx: self._complete(tx, row, len(late)))

    def _nodes(self, kind: Kind, row: Resource) -> set[str]:
        if kind == Kind.SECURITY_GROUP:
            return self._directory.nodes_of_group(row.id)
        vpc = row.id if kind == Kind.VPC else (row.parent or "")
        return self._directory.nodes_of_vpc(vpc)

    async def settled(self, nodes: set[str]) -> list[str]:
        """The nodes that have not followed."""

        async def one(node: str) -> bool:
            session = self._sessions.get(node)
            if session is None:
                return False
            try:
                async with asyncio.timeout(self._limit_s):
                    await session.network_settled()
                return True
            except (TimeoutError, OSError):
                return False

        asked = sorted(nodes)
        followed = await asyncio.gather(*(one(node) for node in asked))
        return [node for node, done in zip(asked, followed, strict=True) if not done]

    @staticmethod
    def _complete(tx: Tx, row: Resource, late: int) -> bool:
        current = find(tx, row.id)
        if current is None or current.state == State.DELETING:
            return True
        if current.generation != row.generation or not _attached_and_ready(tx, current):
            return False
        message = "done" if not late else f"done; {late} nodes are not reachable and will follow when they are back"
        status = current.status_as(status_type(Kind(current.kind)))
        if status.state in (State.CREATING, State.UPDATING, State.PENDING) or (
            status.state == State.ERROR and current.kind == Kind.SECURITY_GROUP  # an expired wait, over now
        ):
            status = status.model_copy(update={"state": State.READY, "reason": ""})
            save(tx, current, status=status, observed_generation=current.generation)
        finishing.complete(tx, current, current.generation, message)
        return True


def _attached_and_ready(tx: Tx, row: Resource) -> bool:
    """A nic of a VM is done when its own node has it and the VM has the device; other things have no such place."""
    if row.kind != Kind.NIC:
        return True
    spec = row.spec_as(NicSpec)
    if not operations.open_for(tx, row.id):
        return True
    if spec.vm is None or row.node is None:
        return row.node is None
    vm = find(tx, spec.vm)
    return row.observed_generation >= row.generation and (vm is None or vm.observed_generation >= vm.generation)
