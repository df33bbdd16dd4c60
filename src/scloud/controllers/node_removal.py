"""Taking a node out of the cloud.

One that is lost may run on behind cut wires, and once it is gone from here its VMs can be started elsewhere. So it is
cut off from its storage first, by an incident as any other (`controllers.ha`), unless its administrator promises that
its machine is off.
"""

from __future__ import annotations

from scloud.controllers import lost, migration, node_state, serving
from scloud.controllers.ha import recovery
from scloud.controllers.settings import seconds_for
from scloud.controllers.storage import rows
from scloud.controllers.storage.members import forget_node
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.ha import Incident, IncidentState, Moment
from scloud.model.kinds import INCIDENT_PREFIX, Kind
from scloud.model.specs import DiskSpec
from scloud.model.storage import PoolSpec
from scloud.reconcile.migration import Ask, Wait, without_source
from scloud.store import incidents, operations, relocations, secrets, tokens
from scloud.store import nodes as usage
from scloud.store.database import Tx
from scloud.store.operations import Operation, OperationState
from scloud.store.resources import Resource, find, find_many, on_node, remove, using

ACTION = "node.delete"
CUTTING = "it is being cut off from its storage, then it is taken out of the cloud"


def ask(tx: Tx, node: Resource, *, alive: bool, force: bool = False, powered_off: bool = False) -> Operation:
    """The operation, which has ended if the node is out. `alive`: it is connected. IN_USE while it has something and
    nobody says that it is lost; CONFLICT while it is alive and has."""
    serving.leave_node(tx, node.id)
    has = held(tx, node.id)
    users = [f"{item.kind} {item.name}" for item in has if item.kind != Kind.NIC and not item.gone]
    users += [f"storage-cluster {item.name}" for item in using(tx, node.id, "store") if not item.gone]
    if users and not (force or powered_off):
        raise CloudError(
            ErrorKind.IN_USE,
            f"node '{node.name}' has {', '.join(users[:5])}; delete them, or use force if the node is lost",
            users=users,
        )
    if alive and (has or users):
        raise CloudError(ErrorKind.CONFLICT, f"node '{node.name}' is alive; stop its agent before you declare it lost")
    op = operations.begin(tx, ACTION, node, seconds=seconds_for(ACTION), message=CUTTING)
    if (not powered_off and not certain(tx, node.id)) or _may_have_left(tx, node.id):
        cut_off_first(tx, node, powered_off=powered_off)
    else:
        remove_node(tx, node)
    return operations.get(tx, op.id, None) or op


def held(tx: Tx, node: str) -> list[Resource]:
    """VMs, disks and nics that are the node's, tombstones included."""
    return [item for kind in (Kind.VM, Kind.DISK, Kind.NIC) for item in on_node(tx, kind, node)]


def certain(tx: Tx, node: str) -> bool:
    """Whether nothing that could run elsewhere is open on the node, now or later."""
    clusters = _open_in(tx, node)
    if not clusters:
        return True
    incident = incidents.open_of(tx, node)
    return incident is not None and recovery.fences(incident).certain(clusters)


def _open_in(tx: Tx, node: str) -> frozenset[str]:
    """Storage clusters in which the node may have disks open that outlive it: those of its VMs, of VMs on their way
    from or to it, and what it has not let go of yet. A cluster that never gave it a key does not count."""
    moving = [row for row in migration.concerning(tx, node) if migration.of(row) is not None]
    vms = {row.id: row for row in (*on_node(tx, Kind.VM, node), *moving)}.values()
    disks = [*on_node(tx, Kind.DISK, node), *(row for vm in vms for row in using(tx, vm.id, "vm"))]
    specs = [row.spec_as(DiskSpec) for row in disks if row.kind == Kind.DISK and not row.gone]
    pools = find_many(tx, {spec.pool for spec in specs if spec.pool is not None}, gone=True)
    clusters = {pool.spec_as(PoolSpec).cluster for pool in pools.values()}
    return frozenset(id for id in clusters if rows.client_of(secrets.secrets_of(tx, id), node) is not None)


def _may_have_left(tx: Tx, node: str) -> list[tuple[Resource, str]]:
    """VMs that were being migrated from it and may have come to a node that lives, which alone can say so; and its
    name. It is asked as soon as the node is certainly cut off."""
    dead = _dead(tx)
    moving = [(row, move) for row in migration.concerning(tx, node) if (move := migration.of(row)) is not None]
    return [
        (row, move.target_name)
        for row, move in moving
        if move.source == node
        and move.target not in dead
        and find(tx, move.target) is not None
        and isinstance(without_source(move), Ask | Wait)
    ]


def _dead(tx: Tx) -> set[str]:
    return {incident.node for incident in incidents.open_ones(tx) if incident.fenced}


def cut_off_first(tx: Tx, node: Resource, *, powered_off: bool = False) -> None:
    """Have the node fenced, unless its administrator says that it is off, and taken out once that is certain."""
    incident = incidents.open_of(tx, node.id) or Incident(
        id=tx.new_id(INCIDENT_PREFIX),
        node=node.id,
        node_name=node.name,
        state=IncidentState.FENCING,
        began_at=tx.now,
    )
    if incident.removing and (incident.power_off or not powered_off):
        return
    moment = Moment(at=tx.now, what="declared", text="it is declared lost by an administrator, to be taken out")
    update = {
        "removing": True,
        "power_off": powered_off or incident.power_off,
        "reason": CUTTING,
        "moments": (*incident.moments, moment),
    }
    incidents.save(tx, incident.model_copy(update=update))
    operations.record(tx, node, "warning", f"declared lost: {CUTTING}")
    node_state.lost(tx, node.id, 0.0)  # before it counts as down anyway: nothing may be placed on it


def remove_node(tx: Tx, node: Resource) -> None:
    """What it has is lost with it, and every request to take it out is fulfilled."""
    dead = _dead(tx)
    for vm in migration.concerning(tx, node.id):
        others = {other for other in migration.nodes_of(vm) if other in dead or find(tx, other) is None}
        migration.node_lost(tx, vm, node.id, others=others, removed=True)
    for item in held(tx, node.id):
        lost.with_node(tx, item)
    relocations.forget_subject(tx, node.id)
    if not _asked(tx, node.id):  # who asked was told that it takes longer; it is on record all the same (`was_removed`)
        operations.begin(tx, ACTION, node, seconds=seconds_for(ACTION))
    for op in operations.open_for(tx, node.id):
        if op.action == ACTION:
            operations.end(tx, op, OperationState.DONE, "removed")
        else:
            operations.end(tx, op, OperationState.CANCELLED, "the node was taken out of the cloud")
    forget_node(tx, node.id)
    usage.forget(tx, node.id)
    tokens.revoke_all(tx, node.id)
    remove(tx, node)


def was_removed(tx: Tx, node: str) -> bool:
    """Whether an id that no node has was one that was taken out; False if that is so long ago that it is forgotten, or
    if this database has never heard of it (it may be an older copy of the one that knew it)."""
    return operations.was_done(tx, node, ACTION)


def proceed(tx: Tx, incident: Incident, node: Resource) -> bool:
    """Take it out if that is certain by now, else tell those who wait why not yet. True if it is out."""
    if certain(tx, node.id):
        if not (left := _may_have_left(tx, node.id)):
            remove_node(tx, node)
            return True
        words = [f"waiting for node {target} to say whether vm '{vm.name}' has come to it" for vm, target in left[:1]]
    else:
        words = [moment.text for moment in incident.moments if moment.what == "failed"]
    if words:
        for op in _asked(tx, node.id):
            if op.message != words[-1]:
                operations.progress(tx, op.id, op.progress, words[-1])
    return False


def given_up(tx: Tx, incident: Incident, words: str) -> None:
    """The node is there again before it was out: who asked for that is told."""
    for op in _asked(tx, incident.node):
        reason = f"node '{incident.node_name}' is not lost: {words}; drain it, or stop its agent and ask again"
        operations.end(tx, op, OperationState.FAILED, reason, code=ErrorKind.CONFLICT)


def overdue(tx: Tx, op: Operation, node: Resource) -> None:
    """It is not certain in time: that is told, and it goes on being tried."""
    seconds = op.deadline_at - op.created_at
    reason = (
        f"node '{node.name}' cannot be taken out after {seconds:.0f} s: {op.message}; "
        "it goes on being tried, and is taken out then. If its machine is off and stays off: "
        f"`scloud node remove {node.name} --powered-off`"
    )
    operations.end(tx, op, OperationState.FAILED, reason, code=ErrorKind.TIMED_OUT)
    operations.record(tx, node, "error", reason)


def _asked(tx: Tx, node: str) -> list[Operation]:
    return [op for op in operations.open_for(tx, node) if op.action == ACTION]
