"""What the nodes' own network lets through, besides each node's way to the manager (`link.Wire`)."""

from __future__ import annotations


class Wires:
    """Who is cut off from whom, by node id. A node may have lost the other nodes, one of them, or only the storage."""

    def __init__(self) -> None:
        self.alone: set[str] = set()
        """They reach no other node, nor the storage."""
        self.broken: set[frozenset[str]] = set()
        """Pairs that do not reach each other."""
        self.without_storage: set[str] = set()

    def joins(self, one: str, other: str) -> bool:
        return not {one, other} & self.alone and frozenset((one, other)) not in self.broken

    def to_storage(self, node: str) -> bool:
        return node not in self.alone and node not in self.without_storage

    def mend(self, node: str) -> None:
        """All of this node's."""
        self.alone.discard(node)
        self.without_storage.discard(node)
        self.broken = {pair for pair in self.broken if node not in pair}
