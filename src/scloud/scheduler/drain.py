"""Emptying a node: which of its VMs leave now and where to, which wait for their turn, and which cannot and why.

The hardest go first: those that the fewest nodes can take, of these the largest, so that a small VM does not take the
only place of a large one. What is decided is decided again each time something has changed; nothing is remembered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from scloud.scheduler.fleet import Fleet
from scloud.scheduler.plan import place
from scloud.scheduler.snapshot import NodeSnapshot, Request

TURN = "waits for its turn"
CLEANED = "the only nodes that can take it are still removing what came of it before"


@dataclass(frozen=True, slots=True)
class Limits:
    """How many VMs may be under way between nodes at once: from or to one node, and in all."""

    per_node: int
    in_all: int


@dataclass(frozen=True, slots=True)
class Leaver:
    """A VM of a node that drains. `request` is what placement would be asked for it, without itself.

    `stays` says why it cannot leave, `later` why not now. `request.away` are nodes that are still being rid of it.
    `live`: it runs, so its memory has to be copied, and the limits hold for it.
    """

    id: str
    name: str
    account: str
    node: str
    request: Request
    live: bool = True
    group: str | None = None
    stays: str = ""
    later: str = ""


@dataclass(frozen=True, slots=True)
class Leave:
    """To be begun now."""

    vm: Leaver
    target: str


@dataclass(slots=True)
class Plan:
    """`waits` and `stays` say why, by the VM's id."""

    begin: list[Leave] = field(default_factory=list)
    waits: dict[str, str] = field(default_factory=dict)
    stays: dict[str, str] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Nothing is left that could leave, now or after those that are under way."""
        return not self.begin and not self.waits


def drain(
    nodes: Iterable[NodeSnapshot], leavers: Iterable[Leaver], under_way: Iterable[tuple[str, str]], limits: Limits
) -> Plan:
    """`under_way` are the moves that have begun, as pairs of nodes: room for them is promised at both already."""
    planner = _Planner(nodes, under_way, limits)
    plan = Plan()
    movable = []
    for vm in sorted(leavers, key=lambda vm: vm.id):
        if vm.stays:
            plan.stays[vm.id] = vm.stays
        elif vm.later:
            plan.waits[vm.id] = vm.later
        else:
            movable.append(vm)
    for vm in sorted(movable, key=planner.hardness):
        planner.decide(vm, plan)
    return plan


class _Planner:
    def __init__(self, nodes: Iterable[NodeSnapshot], under_way: Iterable[tuple[str, str]], limits: Limits) -> None:
        self._nodes = tuple(nodes)
        self._fleet = Fleet(self._nodes)
        self._limits = limits
        pairs = list(under_way)
        self._total = len(pairs)
        self._at: Counter[str] = Counter(node for pair in pairs for node in pair)
        self._gone: list[Leave] = []
        self._words: dict[object, str] = {}

    def hardness(self, vm: Leaver) -> tuple[int, int, int, str]:
        fitting = self._fleet.fitting(replace(vm.request, away=vm.request.away | {vm.node}))
        return fitting, -vm.request.memory_mib, -vm.request.cpus, vm.id

    def decide(self, vm: Leaver, plan: Plan) -> None:
        request = self._now(vm)
        if self._fleet.choose(request) is None:
            if vm.request.away and self._fleet.choose(replace(request, away=frozenset({vm.node}))) is not None:
                plan.waits[vm.id] = CLEANED
            else:
                plan.stays[vm.id] = self._why(vm, request)
            return
        target = self._turn(vm, request)
        if target is None:
            plan.waits[vm.id] = TURN
            return
        leave = Leave(vm, target)
        plan.begin.append(leave)
        self._gone.append(leave)
        self._fleet.promise(target, request.cpus, request.memory_mib, request.disk_mib)
        if vm.live:
            self._total += 1
            self._at.update((vm.node, target))

    def _turn(self, vm: Leaver, request: Request) -> str | None:
        """Where it may go now: the best node that does not have its hands full."""
        if not vm.live:
            return self._fleet.choose(request)
        if self._total >= self._limits.in_all or self._at[vm.node] >= self._limits.per_node:
            return None
        full = {node for node, number in self._at.items() if number >= self._limits.per_node}
        return self._fleet.choose(replace(request, away=request.away | full))

    def _now(self, vm: Leaver) -> Request:
        """With the VMs of its group and account where they will be after the moves decided on before it.

        Members that leave are counted at both ends: while they are on their way, they may be at either.
        """
        mine = [leave for leave in self._gone if leave.vm.group == vm.group or leave.vm.account == vm.account]
        group, account = dict(vm.request.group_vms), dict(vm.request.account_vms)
        for leave in mine:
            if vm.group is not None and leave.vm.group == vm.group:
                group[leave.target] = group.get(leave.target, 0) + 1
            if leave.vm.account == vm.account:
                account[leave.target] = account.get(leave.target, 0) + 1
        return replace(vm.request, group_vms=group, account_vms=account, away=vm.request.away | {vm.node})

    def _why(self, vm: Leaver, request: Request) -> str:
        size = (request.cpus, request.memory_mib, request.disk_mib, request.architecture, request.reachable_from)
        key = (size, request.gpus, vm.group, request.away, len(self._gone))
        if key not in self._words:
            others = [node for node in self._nodes if node.id not in request.away]
            now = [self._fleet[node.id] for node in others]
            self._words[key] = (
                f"no other node can take it: {place(now, request).explain()}; it leaves as soon as one can"
                if others
                else "there is no other node; add one with `scloud node add`"
            )
        return self._words[key]
