"""What the agent asks of Ceph besides disks: commands to a cluster, and its daemons on this node.

Failures are `CloudError(ENGINE)` with Ceph's own words; a cluster that does not answer is `CloudError(UNAVAILABLE)`,
a key it does not take `CloudError(FORBIDDEN)`.
"""

from __future__ import annotations

from typing import Any, Protocol

from scloud.model.base import Value
from scloud.model.desired import DesiredStore


class Access(Value):
    """How to speak to a cluster as one cephx user (without `client.`). `mon_host` as in ceph.conf."""

    cluster: str
    fsid: str
    mon_host: str
    user: str
    key: str


class CephControl(Protocol):
    """Connections to clusters, kept and shared; no files, no `ceph` program."""

    async def command(
        self, access: Access, target: str, command: dict[str, Any], data: bytes = b"", timeout_s: float = 30.0
    ) -> Any:
        """Send a command (`{"prefix": "osd tree", ...}`) to `mon`, `mgr`, `osd.N` or `pg.ID`; its JSON answer, or the
        text where it is not JSON. `NOT_FOUND`, `CONFLICT`, `IN_USE`, `INVALID` for ENOENT, EEXIST, EBUSY, EINVAL."""
        ...

    async def close(self) -> None: ...


class DaemonFacts(Value):
    """`name` as `mon.n1`, `mgr.n1` or `osd.3`; `uuid` of an OSD's device."""

    cluster: str
    name: str
    running: bool
    uuid: str = ""
    pid: int | None = None


class CephDaemons(Protocol):
    """The monitors, managers and OSDs of this node; they outlive the agent and are found again."""

    async def ensure(self, store: DesiredStore) -> dict[str, int]:
        """Make and start what the store's daemons say, stop what it does not name, write the client's files.

        Returns the number of each OSD by its device's uuid. Does all it can before it fails with the worst error;
        `UNAVAILABLE` while nothing is wrong but that others, which it names, are not there yet.
        A daemon that runs with the same configuration is left alone.
        """
        ...

    async def remove(self, store: DesiredStore) -> None:
        """Stop all of it, wipe its devices and delete its files."""
        ...

    async def numbers(self, store: DesiredStore) -> dict[str, int]:
        """The number of each OSD of the store that has one, by its device's uuid; asks nobody but this node."""
        ...

    async def died(self, cluster: str) -> str:
        """Return the name of a daemon of the cluster as soon as one that was started does not run."""
        ...

    async def daemons(self) -> list[DaemonFacts]: ...
