"""What the agent asks of a storage backend. Sizes are MiB; all disks are thin and raw.

Failures are `CloudError(ENGINE)`, a full backend `CloudError(NO_CAPACITY)`, an unknown disk or snapshot
`CloudError(NOT_FOUND)`, a snapshot that disks were made from `CloudError(IN_USE)`, a disk that is open and must not be
`StillOpen`; `delete` and `delete_snapshot` of what is not there succeed. Every call may be cancelled, and repeated: it
then goes on where it was, or begins anew.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from scloud.drivers.storage.place import Place
from scloud.model.base import Value
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.observed import PoolLeft
from scloud.model.snapshots import DiskLimits


class StillOpen(CloudError):
    """A disk that nobody is to have open is open. It passes: who dies with a disk of a Ceph pool open counts as having
    it open for 30 s (`osd_client_watch_timeout`)."""

    def __init__(self, disk: str, by: Sequence[str], wanted: str) -> None:
        whom = f" ({', '.join(sorted(by))})" if by else ""
        super().__init__(ErrorKind.IN_USE, f"disk {disk} is open{whom}: it cannot be {wanted}")


class DiskFacts(Value):
    """`incarnation` is the number the disk was made with; `used_mib` is what it really occupies, None if that cannot be
    told.

    `rolled_back` is the number of the last roll back that was carried out. `origin` is what it still depends on: an
    image (`image/ID`) or a snapshot (`snapshot/ID`).
    """

    disk: str
    size_mib: int
    used_mib: int | None
    incarnation: int = 0
    snapshots: tuple[tuple[str, int], ...] = ()
    """(id, size in MiB when it was taken) of each, oldest first."""
    rolled_back: int = 0
    origin: str | None = None
    abandoned: tuple[str, ...] = ()
    """Addresses of those who have it locked and are gone, if nobody has it open; now and then it is not looked for."""


@dataclass(frozen=True, slots=True)
class FromImage:
    """Begin with an image's bytes. `file` is the raw file, which may be None where `has_image` says so."""

    image: str
    file: Path | None


@dataclass(frozen=True, slots=True)
class FromSnapshot:
    """Begin with the bytes of another disk's snapshot in the same backend."""

    disk: str
    snapshot: str


Source = FromImage | FromSnapshot


class Storage(Protocol):
    """One pool: the node's local folder, or a pool of a storage cluster that other nodes use too."""

    shared: bool
    """Whether other nodes see the same disks."""

    async def has_image(self, image: str) -> bool:
        """Whether disks can be made from an image without its file."""
        ...

    async def images(self) -> list[str]:
        """The images that disks can be made from without their files."""
        ...

    async def strangers(self) -> list[str]:
        """Names of what lies among the disks and is nothing of ours: never touched, told to people."""
        ...

    async def delete_image(self, image: str) -> None:
        """Have its file asked for again; `IN_USE` names the disks that were made from it and still depend on it."""
        ...

    async def create(self, disk: str, size_mib: int, source: Source | None, incarnation: int = 0) -> DiskFacts:
        """Make a disk, from a source's bytes or empty; returns what it is like then, as `show` does.

        All or nothing: a crash in the middle leaves no disk. Making what exists with the same incarnation changes
        nothing; with another one the bytes are made anew (`IN_USE` if disks were made from its snapshots).
        """
        ...

    async def resize(self, disk: str, size_mib: int) -> None:
        """Grow; asking for less than it has is `CloudError(INVALID)`."""
        ...

    async def delete(self, disk: str) -> None:
        """With its snapshots; `IN_USE` if disks were made from one of them, `StillOpen` if it is open."""
        ...

    async def remains(self, disk: str) -> bool:
        """Whether there is more of a disk than `show` tells: what it was before it was made anew, or what was about to
        be deleted when somebody died. `delete` takes it along."""
        ...

    async def left(self) -> PoolLeft:
        """What there is beside disks, snapshots and images, but for locks."""
        ...

    async def mend(self, disk: str) -> None:
        """Break the locks of those who are gone, and have what it occupies be known again; nothing to do while anybody
        has it open."""
        ...

    async def clear(self, disk: str) -> None:
        """Remove what `remains` is about; `StillOpen` while that is open."""
        ...

    async def show(self, disk: str) -> DiskFacts | None: ...

    async def disks(self) -> list[DiskFacts]: ...

    async def owners(self, objects: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Whose bytes lie in objects of a shared pool, by the objects' names: (`disk/ID` or `image/ID`, the MiB at
        which they begin). What belongs to none of them is left out."""
        ...

    async def locate(self, disk: str, beside: str | None = None) -> Place:
        """Where the hypervisor finds it. `beside` is a node whose guest has it open, and is to come here with it."""
        ...

    async def free_mib(self) -> tuple[int, int]:
        """(free, total)."""
        ...

    # --- snapshots

    async def snapshot(self, disk: str, snapshot: str) -> None:
        """Keep the bytes as they are now; one that exists is left as it is. Consistent as after a power cut."""
        ...

    async def delete_snapshot(self, disk: str, snapshot: str) -> None: ...

    async def roll_back(self, disk: str, snapshot: str, number: int) -> None:
        """Bring back a snapshot's bytes and size, and note `number`; nothing to do if that number was noted already.

        `StillOpen` while the disk is open anywhere else.
        """
        ...

    async def flatten(self, disk: str) -> None:
        """Make it depend on no image or snapshot."""
        ...

    async def limit(self, disk: str, limits: DiskLimits) -> None:
        """For whoever opens it from now on; what has it open is told by the hypervisor."""
        ...

    # --- bytes in and out

    def export(self, disk: str, snapshot: str, since: str | None) -> AsyncIterator[tuple[int, bytes | int]]:
        """A snapshot's bytes as (offset, data) or (offset, length of zeros); with `since`, an older snapshot of the
        same disk, only what has changed from it. What is not told is unchanged, or zeros without `since`."""
        ...

    async def restore(self, disk: str, extents: AsyncIterator[tuple[int, bytes | int]]) -> None:
        """Write such extents into a disk that nobody has open."""
        ...

    # --- who is writing

    async def fence(self, node: str) -> None:
        """Cut a node off from everything in this pool's cluster, for good: what it still sends is refused.

        Returns when nothing of it can be written any more. A backend that only the node itself uses has nothing to do.
        """
        ...

    async def is_fenced(self, node: str) -> bool: ...

    async def is_refused(self) -> bool:
        """Whether what serves the disks refuses this node. Where other machines serve some, they alone are asked: who
        is cut off may have some of its own that answer. `CloudError(CONFLICT)` is a refusal, too, `UNAVAILABLE` that
        none of them answers."""
        ...

    def answer_s(self) -> float:
        """Seconds that `is_refused` took last, connecting included, or has waited by now if that is longer; 0
        without an answer in the last minute, and of storage that only the node itself uses."""
        ...

    async def is_cut_off(self) -> bool:
        """Whether this node itself is, as those know who decide it; also while some of the disks do not answer.
        `CloudError(UNAVAILABLE)` if it cannot be known so."""
        ...

    async def unfence(self, node: str) -> None:
        """Let it back in, once whatever ran there is known to be gone."""
        ...

    async def close(self) -> None: ...
