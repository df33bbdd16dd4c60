"""What the agent asks of a storage backend. Sizes are MiB; all disks are thin and raw.

Failures are `CloudError(ENGINE)`, a full backend `CloudError(NO_CAPACITY)`, an unknown disk `CloudError(NOT_FOUND)`;
`delete` of what is not there succeeds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from scloud.model.base import Value


class DiskFacts(Value):
    """`incarnation` is the number the disk was made with; `used_mib` is what it really occupies."""

    disk: str
    size_mib: int
    used_mib: int
    incarnation: int = 0


class Storage(Protocol):
    async def create(self, disk: str, size_mib: int, source: Path | None, incarnation: int = 0) -> None:
        """Make a disk, from a raw file's bytes or empty.

        All or nothing: a crash in the middle leaves no disk. Making what exists with the same incarnation changes
        nothing; with another one the bytes are made anew.
        """
        ...

    async def resize(self, disk: str, size_mib: int) -> None:
        """Grow; asking for less than it has is `CloudError(INVALID)`."""
        ...

    async def delete(self, disk: str) -> None: ...

    async def show(self, disk: str) -> DiskFacts | None: ...

    async def disks(self) -> list[DiskFacts]: ...

    async def locate(self, disk: str) -> Path:
        """Where the hypervisor finds it."""
        ...

    async def free_mib(self) -> tuple[int, int]:
        """(free, total)."""
        ...
