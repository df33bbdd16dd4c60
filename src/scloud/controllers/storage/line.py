"""Asking a cluster: through the agent of any of its nodes that is connected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scloud.controllers.sessions import Session, Sessions
from scloud.controllers.storage import rows
from scloud.controllers.storage.load import Load
from scloud.model.errors import CloudError, ErrorKind
from scloud.reconcile.ceph.commands import Command

COMMAND_S = 20.0
OWNERS_S = 6.0
LINK_S = 3.0
"""What the way to the agent and back may add."""


class Line:
    """One cluster's. Remembers which node answered last; after a failure the next one is tried."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self._last: str | None = None
        self.avoid: str | None = None
        """A node that is not asked, because it is what this is about."""

    def connected(self, load: Load) -> int:
        """How many nodes could be asked."""
        return sum(1 for node in load.spec.nodes if node in self.sessions and node not in load.spec.leaving)

    def _session(self, load: Load) -> Session:
        connected = [
            session
            for node in load.spec.nodes
            if node not in (*load.spec.leaving, self.avoid) and (session := self.sessions.get(node)) is not None
        ]
        if not connected:
            raise CloudError(
                ErrorKind.UNAVAILABLE, "none of its nodes is connected to the manager; see `scloud node list`"
            )
        return next((session for session in connected if session.node == self._last), connected[0])

    async def send(self, load: Load, command: Command, timeout_s: float = COMMAND_S) -> Any:
        """The cluster's answer. CloudError: UNAVAILABLE and TIMED_OUT if it or the node does not answer, FORBIDDEN if
        it does not take the key, others for what the command itself was answered with."""
        session = self._session(load)
        self._last = session.node
        more = {"data": command.data} if command.data else {}
        try:
            return await session.call(
                "ceph_command",
                timeout_s + LINK_S,
                cluster=load.row.id,
                fsid=load.spec.fsid,
                mon_host=load.spec.mon_host,
                user=load.secrets.get(rows.ADMIN_USER, "admin"),
                key=load.secrets.get(rows.ADMIN_KEY, ""),
                target=command.target,
                command=dict(command.args),
                timeout_s=timeout_s,
                **more,
            )
        except CloudError as error:
            if error.kind in (ErrorKind.UNAVAILABLE, ErrorKind.TIMED_OUT):
                self._move_on(load, session.node)
            raise

    async def owners(self, load: Load, pool: str, objects: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Whose bytes lie in objects of a pool: (`disk/ID` or `image/ID`, from which MiB on), by the objects' names."""
        found = await self._session(load).call("pool_owners", OWNERS_S, pool=pool, objects=list(objects))
        return {str(name): (str(owner), int(at)) for name, (owner, at) in found.items()}

    def _move_on(self, load: Load, failed: str) -> None:
        """Another node may reach what this one does not."""
        nodes = [node for node in load.spec.nodes if node in self.sessions and node not in load.spec.leaving]
        if failed in nodes and len(nodes) > 1:
            self._last = nodes[(nodes.index(failed) + 1) % len(nodes)]
