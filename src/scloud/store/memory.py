"""What the writer remembers from one transaction to the next, because reading it anew for each would cost the most.

Only the one writer changes what is remembered here, and it changes both in the same step. Whenever a transaction fails
everything is forgotten, and read again when it is next needed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

MOST_NAMED = 4096
"""Names of one kind that are remembered."""
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
    """`placement` is whatever the placing code keeps; None until it does. `lasting`: it outlives a transaction, and
    nobody else writes to the database."""

    placement: PlacementView | Any = None
    lasting: bool = False
    _named: dict[str, dict[tuple[str, str | None], Any]] = field(default_factory=dict)
    """By the prefix of the kind's ids, then by name or id and account: a row, or None where there is none."""

    def named(self, prefix: str) -> dict[tuple[str, str | None], Any]:
        """What is remembered of a kind's names; anything that changes in a row of that kind ends it."""
        names = self._named.setdefault(prefix, {})
        if len(names) >= MOST_NAMED:
            names.clear()
        return names

    def touched(self, key: str) -> None:
        self._named.pop(key.partition("/")[2].partition("-")[0], None)
        if self.placement is not None and key.startswith(STALE_WITH):
            self.placement = None

    def forget(self) -> None:
        self.placement = None
        self._named.clear()
