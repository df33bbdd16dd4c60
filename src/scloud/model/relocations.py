"""Moving VMs between nodes by the number: a node that is drained, a cluster that is rebalanced."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from scloud.model.base import Value
from scloud.model.fields import worded

DAY_S = 86400


Window = Annotated[
    str,
    StringConstraints(
        max_length=11,
        pattern=worded(
            r"^$|^([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]$", "a window such as 22:00-06:00, UTC"
        ),
    ),
]
Every = Annotated[int, Field(strict=True, ge=0, le=30 * DAY_S)]


class RelocationSettings(Value):
    """Of a cluster of nodes."""

    per_node: Annotated[int, Field(strict=True, ge=1, le=32)] = 2
    """VMs that may be on their way from or to one node at once: each copy slows down the others."""
    at_once: Annotated[int, Field(strict=True, ge=1, le=256)] = 4
    """VMs that may be on their way in the whole cluster at once."""
    rebalance_every_s: Every = 0
    """Seconds from one rebalance by itself to the next; 0 is never."""
    rebalance_window: Window = ""
    """When one may begin by itself, UTC; moves that have not begun when it closes are left out. Empty is always."""
    rebalance_moves: Annotated[int, Field(strict=True, ge=1, le=100)] = 20
    """Moves of one that begins by itself, at most."""


class VmMove(Value):
    """One VM of a relocation. `node` and `target` are names; times are seconds since 1970."""

    vm: str
    name: str
    state: Literal["waiting", "moving", "moved", "stays", "gone"]
    reason: str = ""
    node: str = ""
    target: str = ""
    target_id: str = ""
    gain: float | None = None
    """Of a rebalance: how much lower its score was there than where it was, when it was begun or else proposed."""
    tries: int = 0
    """How many have failed, the last of them with `failure`."""
    failure: str = ""
    again_at: float | None = None
    """After a try that failed: not before."""
    operation: str | None = None
    began_at: float | None = None
    ended_at: float | None = None


class Relocation(Value):
    """`moving` while there is anything to do, `blocked` while only those are left that cannot move, `done`, `ended`.

    A drain is looked at again until the node is opened, whatever its state: a VM that could not leave leaves when it
    can. It is `ended` by `undrain`; a rebalance is `done` when each of its moves was made or left out.
    """

    id: str
    kind: Literal["drain", "rebalance"]
    subject: str
    """The node, or the cluster."""
    subject_name: str
    state: Literal["moving", "blocked", "done", "ended"] = "moving"
    reason: str = ""
    by: str = ""
    """The account that asked for it; `schedule` if nobody did."""
    operation: str | None = None
    began_at: float
    ended_at: float | None = None
    moves: tuple[VmMove, ...] = ()

    @property
    def open(self) -> bool:
        return self.state != "ended" and (self.kind == "drain" or self.state != "done")

    def count(self, state: str) -> int:
        return sum(move.state == state for move in self.moves)

    @property
    def gained(self) -> float:
        """Of the moves that were made."""
        return round(sum(move.gain or 0.0 for move in self.moves if move.state == "moved"), 3)
