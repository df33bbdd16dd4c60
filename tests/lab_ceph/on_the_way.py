"""When a VM may have two QEMU processes: only while the cloud itself says that it is on its way between their nodes.

The cloud is asked again and again. A look at the processes is judged by what it said last before the look, first after
it, and in between: at one of these moments it says so, or from one to the next a migration was begun and has ended.

Once it has ended, the VM has left one of the two nodes, and until that node has said that nothing is there, the process
there is excused for `AFTER_S`, in which a QEMU that was given up closes its disks; and for as long as it certainly does
not let its guest run: whoever is to end it may be dead. Pure: no clock, no I/O.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

AFTER_S = 3.0


@dataclass(frozen=True)
class Word:
    """What the cloud says of one VM; nodes by name.

    `begun` counts its migrations, `between` are the nodes of the one under way, `leaving` those that have not said yet
    that nothing of it is there.
    """

    home: str | None
    begun: int = 0
    between: frozenset[str] = frozenset()
    leaving: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Reading:
    """Of all VMs by id, as it was at some moment from `asked` to `heard`, in seconds."""

    asked: float
    heard: float
    vms: Mapping[str, Word]


def word(vm: Mapping[str, Any], names: Mapping[str, str]) -> Word:
    """Of a VM as the API shows it; `names` are those of nodes by id."""
    status = vm["status"]
    move = status["migration"]
    return Word(
        home=status["node"],
        begun=status["migrations"],
        between=frozenset(names.get(move[end], move[end]) for end in ("source", "target")) if move else frozenset(),
        leaving=frozenset(names.get(node, node) for node in status["leaving"]),
    )


def known(readings: Sequence[Reading], at: float) -> bool:
    """Whether the cloud has been asked since, so that a look can be judged."""
    return bool(readings) and readings[-1].asked >= at


def excused(vm: str, nodes: Sequence[str], at: float, readings: Sequence[Reading], still: Collection[str] = ()) -> bool:
    """Whether the VM may have had a process on each of these nodes then; `readings` are in the order they were made.

    `still` are the nodes whose process certainly did not let its guest run.
    """
    pair = frozenset(nodes)
    if len(nodes) != 2 or len(pair) != 2:
        return False
    now = _words(vm, readings, at, at)
    if _moved(now, pair):
        return True
    left = {node for one in now for node in pair if node in one.leaving and pair - {node} == {one.home}}
    return bool(left) and (left <= set(still) or _moved(_words(vm, readings, at - AFTER_S, at), pair))


def _words(vm: str, readings: Sequence[Reading], begin: float, end: float) -> list[Word]:
    """From the last before `begin` to the first after `end`."""
    first = max(0, bisect_right(readings, begin, key=lambda reading: reading.heard) - 1)
    last = bisect_left(readings, end, key=lambda reading: reading.asked)
    return [reading.vms[vm] for reading in readings[first : last + 1] if vm in reading.vms]


def _moved(words: Sequence[Word], pair: frozenset[str]) -> bool:
    """Whether it was on its way between just these at one of these moments, or from one to the next."""
    return any(one.between == pair for one in words) or any(
        after.begun > before.begun and pair <= {before.home, after.home, *after.leaving}
        for before, after in pairwise(words)
    )
