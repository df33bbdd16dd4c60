"""What the scheduler is given: nodes as they are, and a request. Plain values; no clock, no database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from scloud.scheduler.load import IDLE, Load


@dataclass(frozen=True, slots=True)
class NodeSnapshot:
    """`cpus` is what may be promised: physical CPUs times the cluster's overcommit. `rack` is empty if nobody said.

    One that is `draining` is `cordoned` as well.
    """

    id: str
    name: str
    ready: bool
    cordoned: bool
    architecture: str
    cpus: int
    memory_mib: int
    disk_mib: int
    cpus_used: int = 0
    memory_used_mib: int = 0
    disk_used_mib: int = 0
    load: Load = IDLE
    reason: str = ""
    rack: str = ""
    gpus: Mapping[str, int] = field(default_factory=dict)
    """How many of each model nobody has."""
    draining: bool = False

    def free_gpus(self, model: str | None = None) -> int:
        """Of a model, or, if None, of the model of which there are most: a VM's GPUs are all of one."""
        return max(self.gpus.values(), default=0) if model is None else self.gpus.get(model, 0)


@dataclass(frozen=True, slots=True)
class Request:
    """One VM to place. `account_vms` and `group_vms` count, by node, the VMs to keep away from.

    `group_over` says what the members of its group are spread over; `group_racks` counts them by rack and is worked out
    by `counted`. `reachable_from` are the nodes that reach the pools of its disks; None is all. `away` are nodes that
    it must not come to.
    """

    cpus: int
    memory_mib: int
    disk_mib: int
    architecture: str
    node: str | None = None
    account_vms: Mapping[str, int] = field(default_factory=dict)
    group_vms: Mapping[str, int] = field(default_factory=dict)
    group_hard: bool = False
    group_over: Literal["node", "rack"] = "node"
    group_racks: Mapping[str, int] = field(default_factory=dict)
    reachable_from: frozenset[str] | None = None
    away: frozenset[str] = frozenset()
    gpus: int = 0
    gpu_model: str | None = None

    def members_near(self, node: NodeSnapshot) -> int:
        """How many of its group would fail together with a VM on this node; a node without a rack stands alone."""
        if self.group_over == "rack" and node.rack:
            return self.group_racks.get(node.rack, 0)
        return self.group_vms.get(node.id, 0)


def counted(nodes: Iterable[NodeSnapshot], request: Request) -> Request:
    """The request with its group counted by rack, if it is to be spread over racks."""
    if request.group_over != "rack":
        return request
    racks: dict[str, int] = {}
    for node in nodes:
        if node.rack and node.id in request.group_vms:
            racks[node.rack] = racks.get(node.rack, 0) + request.group_vms[node.id]
    return replace(request, group_racks=racks)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One node's answer: why it cannot take the VM (`reasons`), or how well it would (`score`, lower is better).

    `parts` are what the score is the sum of, by name.
    """

    node: str
    name: str
    reasons: tuple[str, ...]
    score: float
    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return not self.reasons


@dataclass(frozen=True, slots=True)
class Plan:
    """`node` is None if no node can take it; `candidates` then say why, node by node."""

    node: str | None
    candidates: tuple[Candidate, ...]

    def explain(self) -> str:
        """Why nothing was found, in a sentence that names what stands in the way and how often."""
        if not self.candidates:
            return "no node has joined yet; add one with `scloud node add`"
        counts: dict[str, int] = {}
        for candidate in self.candidates:
            for reason in candidate.reasons:
                counts[reason] = counts.get(reason, 0) + 1
        if len(self.candidates) == 1:
            return f"node {self.candidates[0].name}: {'; '.join(self.candidates[0].reasons)}"
        parts = [f"{text} ({count} of {len(self.candidates)} nodes)" for text, count in _most_frequent(counts)]
        return "; ".join(parts)


def _most_frequent(counts: Mapping[str, int], limit: int = 4) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit]
