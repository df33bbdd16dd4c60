"""Which VMs would be better off elsewhere: moves, each with what it gains, as placement itself would count it.

A move's gain is the VM's score where it is, less its score where it would go, were it placed now: so what is proposed
is what placement would have done, had it known what it knows now. The moves are found greedily, the best first, each
judged with those before it done; a VM is moved once at most.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from scloud.scheduler.fleet import Fleet
from scloud.scheduler.load import Load
from scloud.scheduler.snapshot import NodeSnapshot, Request
from scloud.scheduler.weighers import score

MIN_GAIN = 0.1
"""A move that gains less than a tenth of a node is not worth copying a guest's memory for."""
MAX_CONSIDERED = 2000
"""VMs that are looked at: those that are worst off now."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A VM where it is. `cpus`, `memory_mib` and `disk_mib` are what its node has promised it.

    `stays` says why it cannot be moved, if it cannot. `group` names its placement group.
    """

    id: str
    name: str
    account: str
    node: str
    cpus: int
    memory_mib: int
    disk_mib: int
    architecture: str
    group: str | None = None
    group_hard: bool = False
    group_over_racks: bool = False
    stays: str = ""
    reachable_from: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Move:
    """`before` and `after` are the VM's scores there and there; lower is better. `disk_mib` has to be copied along."""

    vm: Placed
    target: str
    before: float
    after: float

    @property
    def gain(self) -> float:
        return self.before - self.after


@dataclass(frozen=True, slots=True)
class Proposal:
    """The moves in the order in which they should be made, and all nodes as they would be after them."""

    moves: tuple[Move, ...]
    nodes: tuple[NodeSnapshot, ...]


def propose(nodes: Iterable[NodeSnapshot], vms: Iterable[Placed], *, limit: int = 20) -> Proposal:
    """At most `limit` moves among these nodes. VMs of other nodes count as their accounts' and groups', and stay."""
    cloud = _Cloud(nodes, vms)
    moves: list[Move] = []
    # A gain only shrinks as better moves are made, or hardly grows: the best known one is looked at again before it
    # is taken, and goes back into the heap if it is no longer the best.
    heap = [(-move.gain, move.vm.id, move) for vm in cloud.worst_off() if (move := cloud.best(vm)) is not None]
    heapq.heapify(heap)
    while heap and len(moves) < limit:
        _, _, old = heapq.heappop(heap)
        move = cloud.best(old.vm)
        if move is None:
            continue
        if heap and move.gain < -heap[0][0]:
            heapq.heappush(heap, (-move.gain, move.vm.id, move))
            continue
        cloud.make(move)
        moves.append(move)
    return Proposal(tuple(moves), tuple(cloud.fleet.snapshots()))


def gain(here: NodeSnapshot, there: NodeSnapshot, request: Request) -> float:
    """What one VM would gain now; `request` is what placement would be asked for it, without itself."""
    return score(without(here, request.cpus, request.memory_mib), request) - score(there, request)


def without(node: NodeSnapshot, cpus: int, memory_mib: int) -> NodeSnapshot:
    """The node as if a VM of that size that is on it were not."""
    load = replace(node.load, cpu=max(0.0, node.load.cpu - _part(node, cpus)))
    return replace(node, cpus_used=node.cpus_used - cpus, memory_used_mib=node.memory_used_mib - memory_mib, load=load)


def _part(node: NodeSnapshot, cpus: int) -> float:
    """A VM's part of its node's CPU load: as much as it has of the CPUs promised there."""
    return node.load.cpu * cpus / node.cpus_used if node.cpus_used else 0.0


class _Cloud:
    """The nodes and VMs as they would be after the moves made so far."""

    def __init__(self, nodes: Iterable[NodeSnapshot], vms: Iterable[Placed]) -> None:
        nodes = tuple(nodes)
        self.fleet = Fleet(nodes)
        self._racks = {node.id: node.rack for node in nodes}
        self._ready = {node.id for node in nodes if node.ready}
        self._loads: dict[str, Load] = {node.id: node.load for node in nodes}
        self.fleet.set_loads(dict(self._loads))
        self._vms: Sequence[Placed] = sorted(vms, key=lambda vm: vm.id)
        self._accounts: dict[str, dict[str, int]] = {}
        self._groups: dict[str, dict[str, int]] = {}
        self._group_racks: dict[str, dict[str, int]] = {}
        for vm in self._vms:
            self._count(vm, vm.node, 1)

    def _count(self, vm: Placed, node: str, number: int) -> None:
        _add(self._accounts, vm.account, node, number)
        if vm.group is not None:
            _add(self._groups, vm.group, node, number)
            _add(self._group_racks, vm.group, self._racks.get(node, ""), number)

    def worst_off(self) -> list[Placed]:
        movable = [vm for vm in self._vms if not vm.stays and vm.node in self._ready]
        return heapq.nsmallest(MAX_CONSIDERED, movable, key=lambda vm: (-self._score_here(vm), vm.id))

    def best(self, vm: Placed) -> Move | None:
        """The move that gains most; None if none gains enough."""
        request = self._request(vm)
        target = self.fleet.choose(request)
        if target is None or target == vm.node:
            return None
        before = self._score_here(vm)
        after = score(self.fleet[target], request)
        return Move(vm, target, before, after) if before - after >= MIN_GAIN else None

    def make(self, move: Move) -> None:
        vm, target = move.vm, move.target
        source, taken = self.fleet[vm.node], self._load_of(vm)
        self.fleet.promise(vm.node, -vm.cpus, -vm.memory_mib, -vm.disk_mib)
        self.fleet.promise(target, vm.cpus, vm.memory_mib, vm.disk_mib)
        ratio = source.cpus / self.fleet[target].cpus if self.fleet[target].cpus else 1.0
        self._add_load(vm.node, -taken)
        self._add_load(target, taken * ratio)
        self.fleet.set_loads(dict(self._loads))
        self._count(vm, vm.node, -1)
        self._count(vm, target, 1)

    def _add_load(self, node: str, cpu: float) -> None:
        load = self._loads[node]
        self._loads[node] = replace(load, cpu=min(1.0, max(0.0, load.cpu + cpu)))

    def _load_of(self, vm: Placed) -> float:
        return _part(self.fleet[vm.node], vm.cpus)

    def _request(self, vm: Placed) -> Request:
        """As if it were to be placed now, without itself."""
        return Request(
            cpus=vm.cpus,
            memory_mib=vm.memory_mib,
            disk_mib=vm.disk_mib,
            architecture=vm.architecture,
            account_vms=_without(self._accounts[vm.account], vm.node),
            group_vms=_without(self._groups.get(vm.group or "", {}), vm.node),
            group_racks=_without(self._group_racks.get(vm.group or "", {}), self._racks.get(vm.node, "")),
            group_hard=vm.group_hard,
            group_over="rack" if vm.group_over_racks else "node",
            reachable_from=vm.reachable_from,
        )

    def _score_here(self, vm: Placed) -> float:
        """Its score on its own node, were it not there yet."""
        bare = without(self.fleet[vm.node], vm.cpus, vm.memory_mib)
        members, rack = self._groups.get(vm.group or "", {}), self._racks[vm.node]
        near = self._group_racks.get(vm.group or "", {})
        here = Request(
            cpus=vm.cpus,
            memory_mib=vm.memory_mib,
            disk_mib=vm.disk_mib,
            architecture=vm.architecture,
            account_vms={vm.node: self._accounts[vm.account][vm.node] - 1},
            group_vms={vm.node: members[vm.node] - 1} if members else {},
            group_racks={rack: near[rack] - 1} if near else {},
            group_over="rack" if vm.group_over_racks else "node",
        )
        return score(bare, here)


def _add(table: dict[str, dict[str, int]], key: str, place: str, number: int) -> None:
    counts = table.setdefault(key, {})
    counts[place] = counts.get(place, 0) + number


def _without(counts: Mapping[str, int], place: str) -> dict[str, int]:
    """Counts less one at a place; empty if there are none."""
    return {id: left for id, number in counts.items() if (left := number - (id == place)) > 0}
