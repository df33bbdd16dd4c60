"""Placing VMs: the scheduler's choice, made and committed in the same transaction.

Because what nodes have promised is read and raised in one transaction of the only writer, nothing is ever overbooked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from scloud.controllers import finishing, gpus, serving
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import TRANSITIONAL, Kind, State
from scloud.model.registry import status_type
from scloud.model.specs import ClusterSpec, DiskSpec, ImageSpec, NicSpec, NodeSpec, PlacementGroupSpec, VmSpec
from scloud.model.statuses import DiskStatus, NicStatus, NodeStatus, VmStatus
from scloud.scheduler.fleet import Column, Fleet
from scloud.scheduler.load import IDLE, Load
from scloud.scheduler.plan import place
from scloud.scheduler.snapshot import NodeSnapshot, Plan, Request
from scloud.store import nodes as usage
from scloud.store import operations
from scloud.store.database import Tx
from scloud.store.resources import Resource, all_of, find, find_many, save, sources_of, using

Loads = Mapping[str, Load]
"""How busy the nodes really are, by id. They are the manager's, in memory: the database has what is promised."""
UNPLACED = "it gets its place with its VM"
PLACED = 20
"""Percent of a VM's making that is done when it has its node."""
MAX_ACCOUNTS = 1000
"""Accounts of which it is remembered where their VMs are."""


def node_of(row: Resource, cluster: ClusterSpec) -> NodeSnapshot:
    """A node without what it has promised."""
    spec, status = row.spec_as(NodeSpec), row.status_as(NodeStatus)
    reason = "" if status.state == State.READY else f"is {status.state}"
    if not reason and status.architecture != cluster.architecture:
        reason = f"is {status.architecture} in a cluster of {cluster.architecture} nodes; add it to another cluster"
    return NodeSnapshot(
        id=row.id,
        name=row.name,
        ready=not reason,
        cordoned=spec.cordoned or spec.draining,
        draining=spec.draining,
        architecture=status.architecture,
        cpus=int(status.capacity.cpus * cluster.cpu_overcommit),
        memory_mib=status.capacity.memory_mib,
        disk_mib=status.capacity.disk_mib,
        reason=reason,
        rack=spec.labels.get("rack", ""),
    )


def read_nodes(tx: Tx) -> tuple[NodeSnapshot, ...]:
    """All nodes without what they have promised."""
    clusters = {row.id: row.spec_as(ClusterSpec) for row in all_of(tx, Kind.CLUSTER)}
    return tuple(
        replace(node_of(row, clusters.get(row.spec_as(NodeSpec).cluster, ClusterSpec())), gpus=gpus.counts(tx, row))
        for row in all_of(tx, Kind.NODE)
    )


def snapshot(tx: Tx, loads: Loads) -> list[NodeSnapshot]:
    """All nodes as the scheduler sees them."""
    used = usage.usages(tx)
    result = []
    for node in read_nodes(tx):
        mine = used.get(node.id, usage.Usage(node.id))
        result.append(
            replace(
                node,
                cpus_used=mine.cpus,
                memory_used_mib=mine.memory_mib,
                disk_used_mib=mine.disk_mib,
                load=loads.get(node.id, IDLE),
            )
        )
    return result


class View:
    """The nodes and where each account's VMs are, kept by the writer from one placement to the next."""

    def __init__(self, nodes: Iterable[NodeSnapshot]) -> None:
        self.fleet = Fleet(nodes)
        self._accounts: dict[str, Column] = {}

    def promise(self, node: str, cpus: int, memory_mib: int, disk_mib: int) -> None:
        self.fleet.promise(node, cpus, memory_mib, disk_mib)

    def moved(self, account: str, before: str | None, after: str | None) -> None:
        counts = self._accounts.get(account)
        if counts is not None:
            self.fleet.add(counts, before, -1)
            self.fleet.add(counts, after, 1)

    def choose(self, tx: Tx, account: str, request: Request) -> str | None:
        return self.fleet.choose(request, self.account(tx, account))

    def account(self, tx: Tx, account: str) -> Column:
        """How many VMs of the account each node has."""
        counts = self._accounts.get(account)
        if counts is None:
            if len(self._accounts) >= MAX_ACCOUNTS:
                self._accounts.clear()
            counts = self._accounts[account] = self.fleet.counts(usage.vms_by_account(tx, account))
        return counts


def view_of(tx: Tx, loads: Loads) -> View:
    """What the writer remembers, or else reads now."""
    view = tx.memory.placement
    if not isinstance(view, View):
        view = tx.memory.placement = View(snapshot(tx, loads))
    view.fleet.set_loads(loads)
    return view


def request_for(
    tx: Tx,
    spec: VmSpec,
    disk_mib: int,
    *,
    exclude: str | None = None,
    architecture: str | None = None,
    pools: Iterable[str] = (),
    away: Iterable[str] = (),
) -> Request:
    """What the scheduler is asked, with where the group's VMs are now. `away` are nodes that it must not come to."""
    group_vms: dict[str, int] = {}
    group = PlacementGroupSpec()
    if spec.placement_group:
        row = find(tx, spec.placement_group)
        group = row.spec_as(PlacementGroupSpec) if row is not None else group
        members = [id for id in sources_of(tx, spec.placement_group, "group") if id != exclude]
        for member in find_many(tx, members).values():
            move = member.status_as(VmStatus).migration
            for node in {member.node, move.target if move is not None else None}:
                if node is not None:  # one on its way may be at either end
                    group_vms[node] = group_vms.get(node, 0) + 1
    return Request(
        cpus=spec.cpus,
        memory_mib=spec.memory_mib,
        disk_mib=disk_mib,
        architecture=architecture or architecture_of(tx, spec.image),
        node=spec.node,
        group_vms=group_vms,
        group_hard=spec.placement_group is not None and group.policy == "hard",
        group_over=group.over,
        reachable_from=reachable_from(tx, pools),
        away=frozenset(away),
        gpus=spec.gpus,
        gpu_model=spec.gpu_model,
    )


def counting_account(tx: Tx, vm: Resource, request: Request) -> Request:
    """The request with where the other VMs of its account are."""
    counts = usage.vms_by_account(tx, vm.account or "")
    others = {node: left for node, number in counts.items() if (left := number - (node == vm.node)) > 0}
    return replace(request, account_vms=others)


def reachable_from(tx: Tx, pools: Iterable[str]) -> frozenset[str] | None:
    """The nodes that reach all of these pools; None if there are none to reach."""
    nodes = [serving.reaching(tx, pool) for pool in sorted(set(pools))]
    return frozenset.intersection(*nodes) if nodes else None


def architecture_of(tx: Tx, image: str) -> str:
    row = find(tx, image)
    return row.spec_as(ImageSpec).architecture if row else "x86_64"


def plan(tx: Tx, account: str, request: Request, loads: Loads) -> Plan:
    """A dry run: where it would go, and why not elsewhere."""
    return place(snapshot(tx, loads), replace(request, account_vms=usage.vms_by_account(tx, account)))


@dataclass(frozen=True, slots=True)
class Home:
    """The node that a VM was promised room on."""

    node: str
    name: str


def find_home(tx: Tx, account: str, request: Request, loads: Loads) -> Home | None:
    """Choose a node and promise what is asked for, or None if no node can take it."""
    view = view_of(tx, loads)
    node = view.choose(tx, account, request)
    if node is None:
        return None
    name = view.fleet.name(node)
    usage.promise(tx, node, cpus=request.cpus, memory_mib=request.memory_mib, disk_mib=request.disk_mib)
    return Home(node, name)


class Placer:
    """Places VMs that have been waiting, within one transaction."""

    def __init__(self, tx: Tx, loads: Loads) -> None:
        self._tx = tx
        self._loads = loads

    def place(self, vm: Resource) -> bool:
        """Give a VM its node, or put it into `error` with the reasons. True if it was placed."""
        tx = self._tx
        spec = vm.spec_as(VmSpec)
        disks, nics = attached(tx, vm)
        specs = {disk.id: disk.spec_as(DiskSpec) for disk in disks}
        local = [disk for disk in disks if specs[disk.id].pool is None]
        pools = {pool for disk in specs.values() if (pool := disk.pool) is not None}
        where = {disk.node for disk in local if disk.node is not None}
        if len(where | ({spec.node} - {None})) > 1:
            return self._refuse(vm, self._apart(local, spec.node))
        pinned = spec.model_copy(update={"node": min(where)}) if where else spec
        disk_mib = sum(specs[disk.id].size_mib for disk in local if disk.node is None)
        leaving = vm.status_as(VmStatus).leaving
        request = request_for(tx, pinned, disk_mib, exclude=vm.id, pools=pools, away=leaving)
        home = find_home(tx, vm.account, request, self._loads)
        if home is None:
            reasons = plan(tx, vm.account, request, self._loads).explain()
            return self._refuse(vm, f"no node can take it: {reasons}")
        settle(tx, vm, home, disks, nics)
        return True

    def _refuse(self, vm: Resource, reason: str) -> bool:
        tx = self._tx
        status = VmStatus(state=State.ERROR, reason=reason, addresses=vm.status_as(VmStatus).addresses)
        save(tx, vm, status=status)
        operations.record(tx, vm, "error", reason)
        finishing.fail(tx, vm, vm.generation, reason, ErrorKind.NO_CAPACITY)
        unplaced(tx, vm)
        return False

    def _apart(self, disks: list[Resource], asked: str | None) -> str:
        """A disk of the local pool ties its VM to its node: two nodes are one too many."""
        names = {node.id: node.name for node in all_of(self._tx, Kind.NODE)}
        places = [f"disk '{disk.name}' is on node {names.get(disk.node, disk.node)}" for disk in disks if disk.node]
        if asked is not None:
            places.append(f"node {names.get(asked, asked)} was asked for")
        return f"no node can take it: {' and '.join(places)}; detach the disks that are elsewhere"


def attached(tx: Tx, vm: Resource) -> tuple[list[Resource], list[Resource]]:
    """A VM's disks and nics."""
    rows = [row for row in using(tx, vm.id, "vm") if not row.gone]
    return [row for row in rows if row.kind == Kind.DISK], [row for row in rows if row.kind == Kind.NIC]


def settle(tx: Tx, vm: Resource, home: Home, disks: list[Resource], nics: list[Resource]) -> None:
    """Write a VM's node onto it and all that is attached to it."""
    node, node_name = home.node, home.name
    status = vm.status_as(VmStatus)
    state = State.CREATING if status.observed_generation == 0 else State.STARTING
    taken = gpus.take(tx, vm.id, node, vm.spec_as(VmSpec))
    update = {"state": state, "reason": "", "node": node_name, "gpus": taken}
    placed = save(tx, vm, node=node, status=status.model_copy(update=update))
    for disk in disks:
        if disk.spec_as(DiskSpec).pool is not None:
            serving.to_vm(tx, disk, placed)
        elif disk.node is None:
            old = disk.status_as(DiskStatus)
            save(
                tx,
                disk,
                node=node,
                status=old.model_copy(update={"state": State.CREATING, "reason": "", "node": node_name}),
            )
    for nic in nics:
        if nic.spec_as(NicSpec).vm == vm.id:
            old_nic = nic.status_as(NicStatus)
            save(
                tx,
                nic,
                node=node,
                status=old_nic.model_copy(update={"state": State.CREATING, "reason": "", "node": node_name}),
            )
    for op in operations.open_for(tx, vm.id):
        operations.progress(tx, op.id, PLACED, f"placed on {node_name}")


def unplaced(tx: Tx, vm: Resource) -> None:
    """A VM will not be placed for now: its parts that wait with it have nothing to wait for."""
    for part in (part for parts in attached(tx, vm) for part in parts):
        if part.node is None and part.state in TRANSITIONAL and part.state != State.DELETING:
            status = part.status_as(status_type(Kind(part.kind)))
            save(tx, part, status=status.model_copy(update={"state": State.READY, "reason": UNPLACED}))


def check_room(tx: Tx, node: str, *, cpus: int = 0, memory_mib: int = 0, disk_mib: int = 0) -> None:
    """Before more is promised to something that is on a node already. NO_CAPACITY with the figures."""
    row = find(tx, node)
    if row is None:
        return
    cluster = find(tx, row.spec_as(NodeSpec).cluster)
    bare = node_of(row, cluster.spec_as(ClusterSpec) if cluster else ClusterSpec())
    used = usage.usage_of(tx, node)
    current = replace(bare, cpus_used=used.cpus, memory_used_mib=used.memory_mib, disk_used_mib=used.disk_mib)
    request = Request(max(cpus, 0), max(memory_mib, 0), max(disk_mib, 0), current.architecture)
    candidate = place([current], request).candidates[0]
    room = [reason for reason in candidate.reasons if "too " in reason]
    if room:
        raise CloudError(ErrorKind.NO_CAPACITY, f"node {current.name} {'; '.join(room)}")
