"""All nodes as columns, so that deciding among thousands of them takes microseconds; decides exactly as `plan.place`.

A fleet is built from snapshots and then kept in step: `take` and `give` change what is promised, `set_loads` what is
really used. The order of the floating-point operations is that of `weighers.score`, so both give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from scloud.scheduler.snapshot import NodeSnapshot, Request
from scloud.scheduler.weighers import GROUP_WEIGHT, LOAD_WEIGHT, SCATTER_WEIGHT

Column = NDArray[np.float64]


class Fleet:
    """Not shared between threads."""

    def __init__(self, nodes: Iterable[NodeSnapshot]) -> None:
        self._nodes = sorted(nodes, key=lambda node: node.id)  # equal scores: the first, that is, the smaller id
        self._index = {node.id: number for number, node in enumerate(self._nodes)}
        self._open = np.array([node.ready and not node.cordoned for node in self._nodes], dtype=bool)
        self._architectures = {
            name: np.array([node.architecture == name for node in self._nodes], dtype=bool) & self._open
            for name in {node.architecture for node in self._nodes}
        }
        self._cpus = self._column(node.cpus for node in self._nodes)
        self._memory = self._column(node.memory_mib for node in self._nodes)
        self._disk = self._column(node.disk_mib for node in self._nodes)
        self._cpus_used = self._column(node.cpus_used for node in self._nodes)
        self._memory_used = self._column(node.memory_used_mib for node in self._nodes)
        self._disk_used = self._column(node.disk_used_mib for node in self._nodes)
        self._loads = self._column(node.cpu_load for node in self._nodes)
        self._loads_of: Mapping[str, float] | None = None

    @staticmethod
    def _column(values: Iterable[float]) -> Column:
        return np.fromiter(values, dtype=np.float64)

    def __contains__(self, node: str) -> bool:
        return node in self._index

    def __getitem__(self, node: str) -> NodeSnapshot:
        """The node as it is now; KeyError if there is none."""
        number = self._index[node]
        return replace(
            self._nodes[number],
            cpus_used=int(self._cpus_used[number]),
            memory_used_mib=int(self._memory_used[number]),
            disk_used_mib=int(self._disk_used[number]),
            cpu_load=float(self._loads[number]),
        )

    def snapshots(self) -> list[NodeSnapshot]:
        """Every node as it is now, in order of id."""
        return [self[node.id] for node in self._nodes]

    def name(self, node: str) -> str:
        return self._nodes[self._index[node]].name

    def set_loads(self, loads: Mapping[str, float]) -> None:
        """Fractions of CPU really used, by node. The same mapping as the last time is not read again."""
        if loads is self._loads_of:
            return
        self._loads_of = loads
        self._loads = self._column(loads.get(node.id, 0.0) for node in self._nodes)

    def promise(self, node: str, cpus: int, memory_mib: int, disk_mib: int) -> None:
        """A node has promised more or, with negative numbers, less; a node that is not of the fleet changes nothing."""
        number = self._index.get(node)
        if number is not None:
            self._cpus_used[number] += cpus
            self._memory_used[number] += memory_mib
            self._disk_used[number] += disk_mib

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
        if not self._nodes:
            return None
        if request.node is not None:
            return self._only(request)
        fits = self._architectures.get(request.architecture)
        if fits is None:
            return None
        cpus, memory = self._cpus_used + request.cpus, self._memory_used + request.memory_mib
        fits = fits & (cpus <= self._cpus) & (memory <= self._memory)
        fits &= self._disk_used + request.disk_mib <= self._disk
        group = self.counts(request.group_vms) if request.group_vms else None
        if group is not None and request.group_hard:
            fits &= group == 0
        if request.reachable_from is not None:
            fits &= self.counts(dict.fromkeys(request.reachable_from, 1)) > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            score = np.maximum(
                np.where(self._cpus > 0, cpus / self._cpus, 1.0), np.where(self._memory > 0, memory / self._memory, 1.0)
            )
        score += LOAD_WEIGHT * self._loads
        if group is not None:
            score += GROUP_WEIGHT * group
        if account_vms is None and request.account_vms:
            account_vms = self.counts(request.account_vms)
        if account_vms is not None:
            score += SCATTER_WEIGHT * account_vms
        score[~fits] = np.inf
        best = int(score.argmin())
        return self._nodes[best].id if fits[best] else None

    def _only(self, request: Request) -> str | None:
        number = self._index.get(request.node or "")
        if number is None:
            return None
        alone = Fleet([self[self._nodes[number].id]])
        return alone.choose(replace(request, node=None))
