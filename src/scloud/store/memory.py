"""What the writer remembers from one transaction to the next, because reading it anew for each would cost the most.

Only the one writer changes what is remembered here, and it changes both in the same step. Whenever a transaction fails
everything is forgotten, and read again when it is next needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

STALE_WITH = ("node/", "cluster/")
"""Keys of what the placement view is made from besides what it is told of."""


class PlacementView(Protocol):
    """All nodes with what they have promised."""

    def promise(self, node: str, cpus: int, memory_mib: int, disk_mib: int) -> None:
        """A node has promised so much more."""
        ...

    def moved(self, account: str, before: str | None, after: str | None) -> None:
        """A VM of the account has another node."""
        ...


@dataclass(slots=True)
class Memory:
    """`placement` is whatever the placing code keeps; None until it does."""

    placement: PlacementView | Any = None

    def touched(self, key: str) -> None:
        if self.placement is not None and key.startswith(STALE_WITH):
            self.placement = None

    def forget(self) -> None:
        self.placement = None
