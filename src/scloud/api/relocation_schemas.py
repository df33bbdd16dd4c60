"""What requests and answers about drains and rebalances carry."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool

from scloud.api.schemas import Answer
from scloud.model.base import Value
from scloud.model.relocations import VmMove


class UndrainAsk(Value):
    cancel: StrictBool = Field(default=False, description="moves under way come to nothing, instead of going on")


class RebalanceAsk(Value):
    limit: Annotated[int, Field(strict=True, ge=1, le=100, description="moves at most")] = 20
    stop: StrictBool = Field(default=False, description="no more moves begin; those under way go on")


class CountsOut(Answer):
    """How many VMs are in each state; `stays` are those that cannot move now."""

    waiting: int
    moving: int
    moved: int
    stays: int
    gone: int


class RelocationOut(Answer):
    """`subject` is the node, or the cluster; `by` the account that asked for it, or `schedule`; `gained` the sum of the
    gains of the moves that were made. Times are seconds since 1970."""

    id: str
    kind: Literal["drain", "rebalance"]
    subject: str
    subject_name: str
    state: Literal["moving", "blocked", "done", "ended"]
    reason: str
    by: str
    operation: str | None
    began_at: float
    ended_at: float | None
    moves: list[VmMove]
    counts: CountsOut
    gained: float


class DrainOut(Answer):
    node: str
    draining: bool
    drain: RelocationOut | None


class MoveOut(Answer):
    """`gain` is how much lower the VM's score is at `target` than at `source`."""

    vm: str
    name: str
    account: str
    source: str
    target: str
    gain: float


class FullnessOut(Answer):
    """How full a node is, 0 to 1: the fuller of CPUs and memory promised; now and after the moves."""

    node: str
    before: float
    after: float


class RebalanceOut(Answer):
    """`stays` counts the VMs that are not to be moved, by the reason; `next_at` is when one begins by itself, in
    seconds since 1970; `runs` are the last ones, the newest first."""

    moves: list[MoveOut]
    nodes: list[FullnessOut]
    stays: dict[str, int]
    next_at: float | None
    runs: list[RelocationOut]
