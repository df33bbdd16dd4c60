"""What of all that was seen is a VM, or a disk, in two places: told apart from migrations by what the cloud says.

Pure: fed by a watch's threads with what they see, each in the order of time; asked by one.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from lab_ceph.on_the_way import Reading, excused, known

ABOUT_S = 0.5
"""So close, looks at watchers and at processes are of the same moment."""
Twice = tuple[float, str, list[str]]
"""Since when, in seconds, what was on which nodes."""
T = TypeVar("T")


@dataclass(frozen=True)
class Several:
    """Several processes of a VM in one look. `both`: two of them ran; `still`: nodes where one certainly did not."""

    at: float
    vm: str
    nodes: list[str]
    both: bool = False
    still: frozenset[str] = frozenset()


def _about(looks: list[T], at: float, when: Callable[[T], float]) -> list[T]:
    return looks[bisect_left(looks, at - ABOUT_S, key=when) : bisect_right(looks, at + ABOUT_S, key=when)]


class Judge:
    def __init__(self) -> None:
        self.readings: list[Reading] = []
        self._several: list[Several] = []
        self._to_judge: deque[Several] = deque()
        self._open: deque[tuple[float, str, list[str]]] = deque()
        self._started: dict[tuple[str, str], list[tuple[float, str]]] = {}
        """When there were processes that were started with a disk, and whose, by disk and node."""
        self._found: dict[tuple[str, ...], Twice] = {}
        self._over = False

    def started_with(self, at: float, vm: str, node: str, disks: Iterable[str]) -> None:
        """There is a process of the VM on the node, and was started with these disks."""
        for disk in disks:
            self._started.setdefault((disk, node), []).append((at, vm))

    def looked(self, several: Several) -> None:
        self._several.append(several)
        self._to_judge.append(several)

    def opened(self, at: float, disk: str, nodes: list[str]) -> None:
        """The disk is open to be written on these nodes."""
        if len(nodes) > 1:
            self._open.append((at, disk, nodes))

    def said(self, reading: Reading) -> None:
        self.readings.append(reading)

    def close(self) -> None:
        """Nothing more will be said."""
        self._over = True

    def twice(self) -> list[Twice]:
        """Every VM that had processes, and every disk that was open, in two places at any time; when that began.

        But for a VM, and its disks, while the cloud says that it is on its way between just these two nodes, as long as
        only one lets its guest run. And for watches without a process that was started with the disk: those that
        processes leave behind which were killed, and those of an agent that breaks a dead guest's lock.
        What the cloud was not asked about since is judged later.
        """
        while self._to_judge and self._judged(self._to_judge[0].at):
            look = self._to_judge.popleft()
            if self._wrong(look):
                self._note(look.at, look.vm, look.nodes)
        while self._open and self._judged(self._open[0][0] + ABOUT_S):
            at, disk, nodes = self._open.popleft()
            owners = {node: self._owners(at, disk, node) for node in nodes}
            there = [node for node in nodes if owners[node]]
            if len(there) > 1 and self._wrong_disk(at, there, set().union(*owners.values())):
                self._note(at, disk, there)
        return list(self._found.values())

    def _note(self, at: float, id: str, nodes: list[str]) -> None:
        self._found.setdefault((id, *nodes), (round(at, 1), id, nodes))

    def _judged(self, at: float) -> bool:
        return self._over or known(self.readings, at)

    def _wrong(self, look: Several) -> bool:
        return look.both or not excused(look.vm, look.nodes, look.at, self.readings, look.still)

    def _wrong_disk(self, at: float, nodes: list[str], owners: set[str]) -> bool:
        """It is as right as the two processes were that were seen about then."""
        if len(owners) > 1:
            return True
        (vm,) = owners
        looks = [one for one in _about(self._several, at, lambda one: one.at) if one.vm == vm]
        return all(self._wrong(look) for look in looks) and not excused(vm, nodes, at, self.readings)

    def _owners(self, at: float, disk: str, node: str) -> set[str]:
        """The VMs whose processes were started with the disk and were on this node about then."""
        return {vm for _, vm in _about(self._started.get((disk, node), []), at, lambda one: one[0])}
