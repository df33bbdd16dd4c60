"""All nodes as columns, so that deciding among thousands of them takes microseconds; decides exactly as `plan.place`.

A fleet is built from snapshots and then kept in step: `promise` changes what is promised, `set_loads` what is really
used. What depends on a request's size alone is kept as a column of scores for each size that was asked for lately, and
of it only the nodes that have changed are worked out anew: clouds are asked for few sizes, many times. The order of the
floating-point operations is that of `weighers.score`, so both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scloud.scheduler.filters import FILTERS
from scloud.scheduler.load import IDLE, Load
from scloud.scheduler.snapshot import NodeSnapshot, Request, counted
from scloud.scheduler.weighers import GPU_WEIGHT, GROUP_WEIGHT, LOAD_WEIGHT, SCATTER_WEIGHT, WITHIN_RACK_WEIGHT

Column = NDArray[np.float64]
Numbers = NDArray[np.int64]
MAX_SIZES = 64
"""Sizes of VMs of which the scores are kept: 80 KB each with 10,000 nodes."""
MAX_CHANGES = 4096
"""Changes of single nodes that are remembered for them."""
MAX_REACHES = 16


@dataclass(frozen=True, slots=True)
class Size:
    """What of a request says how well each node would do, before anybody's other VMs are looked at."""

    cpus: int
    memory_mib: int
    disk_mib: int
    architecture: str
    gpus: int
    gpu_model: str | None


@dataclass(slots=True)
class Scores:
    """Infinite where it does not fit. `seen` is how many of the fleet's changes are in it."""

    column: Column
    seen: int


class Fleet:
    """Not shared between threads."""

    def __init__(self, nodes: Iterable[NodeSnapshot]) -> None:
        self._nodes = sorted(nodes, key=lambda node: node.id)  # equal scores: the first, that is, the smaller id
        self._index = {node.id: number for number, node in enumerate(self._nodes)}
        open_ = np.array([node.ready and not node.cordoned for node in self._nodes], dtype=bool)
        self._architectures = {
            name: np.array([node.architecture == name for node in self._nodes], dtype=bool) & open_
            for name in {node.architecture for node in self._nodes}
        }
        racks = {name: code for code, name in enumerate(sorted({node.rack for node in self._nodes if node.rack}))}
        self._rack_known = np.array([bool(node.rack) for node in self._nodes], dtype=bool)
        # a node without a rack has a number of its own
        codes = (racks.get(node.rack, len(racks) + number) for number, node in enumerate(self._nodes))
        self._racks: Numbers = np.fromiter(codes, dtype=np.int64)
        self._cpus = self._column(node.cpus for node in self._nodes)
        self._memory = self._column(node.memory_mib for node in self._nodes)
        self._disk = self._column(node.disk_mib for node in self._nodes)
        self._cpus_used = self._column(node.cpus_used for node in self._nodes)
        self._memory_used = self._column(node.memory_used_mib for node in self._nodes)
        self._disk_used = self._column(node.disk_used_mib for node in self._nodes)
        self._pressure = self._column(node.load.pressure for node in self._nodes)
        self._gpus = {
            model: self._column(node.free_gpus(model) for node in self._nodes)
            for model in (None, *sorted({model for node in self._nodes for model in node.gpus}))
        }
        self._spared = np.where(self._gpus[None] > 0, GPU_WEIGHT, 0.0)
        self._loads: Mapping[str, Load] | None = None
        self._sizes: dict[Size, Scores] = {}
        self._changes: list[int] = []
        self._reaches: dict[frozenset[str], NDArray[np.bool_]] = {}

    @staticmethod
    def _column(values: Iterable[float]) -> Column:
        return np.fromiter(values, dtype=np.float64)

    def __contains__(self, node: str) -> bool:
        return node in self._index

    def __getitem__(self, node: str) -> NodeSnapshot:
        """The node as it is now; KeyError if there is none."""
        number = self._index[node]
        bare = self._nodes[number]
        return replace(
            bare,
            cpus_used=int(self._cpus_used[number]),
            memory_used_mib=int(self._memory_used[number]),
            disk_used_mib=int(self._disk_used[number]),
            load=bare.load if self._loads is None else self._loads.get(node, IDLE),
        )

    def snapshots(self) -> list[NodeSnapshot]:
        """Every node as it is now, in order of id."""
        return [self[node.id] for node in self._nodes]

    def name(self, node: str) -> str:
        return self._nodes[self._index[node]].name

    def set_loads(self, loads: Mapping[str, Load]) -> None:
        """How busy the nodes are, by id; a node that is not named is idle. The same mapping is not read again."""
        if loads is self._loads:
            return
        self._loads = loads
        self._pressure = self._column(loads.get(node.id, IDLE).pressure for node in self._nodes)
        self._sizes.clear()

    def promise(self, node: str, cpus: int, memory_mib: int, disk_mib: int) -> None:
        """A node has promised more or, with negative numbers, less; a node that is not of the fleet changes nothing."""
        number = self._index.get(node)
        if number is not None:
            self._cpus_used[number] += cpus
            self._memory_used[number] += memory_mib
            self._disk_used[number] += disk_mib
            self._changes.append(number)
            if len(self._changes) > MAX_CHANGES:
                self._changes.clear()
                self._sizes.clear()

    def counts(self, by_node: Mapping[str, int]) -> Column:
        """A mapping as a column; nodes that are not of the fleet are left out."""
        column = np.zeros(len(self._nodes))
        for node, count in by_node.items():
            number = self._index.get(node)
            if number is not None:
                column[number] = count
        return column

    def add(self, counts: Column, node: str | None, count: int) -> None:
        """Change such a column for one node, if it is of the fleet."""
        number = self._index.get(node) if node is not None else None
        if number is not None:
            counts[number] += count

    def choose(self, request: Request, account_vms: Column | None = None) -> str | None:
        """The node for a request, None if none can take it.

        `account_vms` is the column of `request.account_vms`, where the caller has it already.
        """
        if not self._nodes or request.architecture not in self._architectures:
            return None
        if request.node is not None:
            return self._only(request)
        scores = self._weighed(request, account_vms)
        best = int(scores.argmin())
        return self._nodes[best].id if scores[best] != np.inf else None

    def fitting(self, request: Request) -> int:
        """How many nodes could take it."""
        if not self._nodes or request.architecture not in self._architectures:
            return 0
        if request.node is not None:
            return int(self._only(request) is not None)
        return int(np.count_nonzero(self._weighed(request, None) != np.inf))

    def _weighed(self, request: Request, account_vms: Column | None) -> Column:
        """Every node's score; infinite where it cannot be. Not to be changed."""
        size = Size(
            request.cpus, request.memory_mib, request.disk_mib, request.architecture, request.gpus, request.gpu_model
        )
        scores = self._scores(size)
        if request.group_vms or request.group_hard:
            scores = scores + self._group(request)
        if account_vms is None and request.account_vms:
            account_vms = self.counts(request.account_vms)
        if account_vms is not None:
            scores = scores + SCATTER_WEIGHT * account_vms
        if request.reachable_from is not None:
            scores = np.where(self._reach(request.reachable_from), scores, np.inf)
        if request.away:
            scores = np.where(self._reach(request.away), np.inf, scores)
        return scores

    def _scores(self, size: Size) -> Column:
        """Of every node, for this size; not to be changed."""
        known = self._sizes.get(size)
        if known is None:
            if len(self._sizes) >= MAX_SIZES:
                del self._sizes[next(iter(self._sizes))]
            everything = np.arange(len(self._nodes))
            known = self._sizes[size] = Scores(self._score(size, everything), len(self._changes))
        elif known.seen < len(self._changes):
            changed = np.array(sorted(set(self._changes[known.seen :])), dtype=np.int64)
            known.column[changed] = self._score(size, changed)
            known.seen = len(self._changes)
        return known.column

    def _score(self, size: Size, numbers: Numbers) -> Column:
        """Of some nodes: how full they would be, and how busy they are."""
        cpus, memory = self._cpus_used[numbers] + size.cpus, self._memory_used[numbers] + size.memory_mib
        has_cpus, has_memory = self._cpus[numbers], self._memory[numbers]
        fits = self._architectures[size.architecture][numbers] & (cpus <= has_cpus) & (memory <= has_memory)
        fits &= self._disk_used[numbers] + size.disk_mib <= self._disk[numbers]
        with np.errstate(divide="ignore", invalid="ignore"):
            full = np.maximum(
                np.where(has_cpus > 0, cpus / has_cpus, 1.0), np.where(has_memory > 0, memory / has_memory, 1.0)
            )
        score = full + LOAD_WEIGHT * self._pressure[numbers]
        if not size.gpus:
            score += self._spared[numbers]
        elif size.gpu_model in self._gpus:
            fits &= self._gpus[size.gpu_model][numbers] >= size.gpus
        else:
            fits[:] = False
        return np.where(fits, score, np.inf)

    def _group(self, request: Request) -> Column:
        """What the other members of its group cost; infinite where a hard group forbids it."""
        members = self.counts(request.group_vms)
        near = members
        if request.group_over == "rack":
            near = np.bincount(self._racks, weights=members)[self._racks].astype(np.float64, copy=False)
        cost: Column = GROUP_WEIGHT * near
        if request.group_over == "rack":
            cost += WITHIN_RACK_WEIGHT * members
        if request.group_hard:
            cost[near > 0] = np.inf
            if request.group_over == "rack":
                cost[~self._rack_known] = np.inf
        return cost

    def _reach(self, nodes: frozenset[str]) -> NDArray[np.bool_]:
        known = self._reaches.get(nodes)
        if known is None:
            if len(self._reaches) >= MAX_REACHES:
                self._reaches.clear()
            known = self._reaches[nodes] = self.counts(dict.fromkeys(nodes, 1)) > 0
        return known

    def _only(self, request: Request) -> str | None:
        number = self._index.get(request.node or "")
        if number is None:
            return None
        id = self._nodes[number].id
        full = counted(self._nodes, request)
        return id if all(check(self[id], full) is None for check in FILTERS) else None
