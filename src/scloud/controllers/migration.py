"""Live migration, the manager's side: rows of VMs that are on their way from one node to another.

Functions run in one transaction. `begin` promises room at the target and tells it to get ready; the work item waits
until every switch points to both nodes and lets the source begin; `heard` takes in what both nodes say and, as
`reconcile.migration` judges, writes who has the VM.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import select

from scloud.controllers import finishing, lost, placement, serving, snapshots
from scloud.controllers.directory import Directory
from scloud.controllers.network_wait import NetworkWait
from scloud.controllers.placement import Loads
from scloud.controllers.settings import seconds_for
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import Kind, State
from scloud.model.migrations import DiskCopy, Migration, MoveProgress, MoveSeen, OnStuck, Then
from scloud.model.observed import Observed
from scloud.model.specs import DiskSpec, NicSpec, VmSpec
from scloud.model.statuses import DiskStatus, NicStatus, VmStatus
from scloud.reconcile.migration import (
    Ask,
    Copy,
    Moved,
    Stays,
    Verdict,
    judge,
    without_both,
    without_source,
    without_target,
)
from scloud.store import nodes, operations
from scloud.store.database import Store, Tx
from scloud.store.operations import Operation, OperationState
from scloud.store.resources import Resource, find, find_many, save
from scloud.store.tables import resource

ACTION = finishing.MIGRATION
PREPARE_S = 60.0
"""How long a target may take to get ready."""
SLOW_MIB_S = 16
"""What is copied a second at least: a tenth of a gigabit link. Slower than that, or than its limit, it is cancelled."""
LAST_WORD_S = 60.0
"""How long both nodes have to say how one ended that is over its time."""


def of(vm: Resource) -> Migration | None:
    return vm.status_as(VmStatus).migration


def ends_first(vm: Resource) -> bool:
    """Whether something asked for waits until it is known where it runs."""
    move = of(vm) if vm.kind == Kind.VM else None
    return move is not None and move.then is not None


def refuse_while_moving(vm: Resource) -> None:
    """For what cannot be done to a VM that is on its way."""
    move = of(vm)
    if move is not None and move.then:
        words = {"stop": "stopped", "delete": "deleted"}[move.then]
        raise CloudError(ErrorKind.CONFLICT, f"vm '{vm.name}' is being {words}; its migration is ended first")
    if move is not None:
        raise CloudError(
            ErrorKind.CONFLICT,
            f"vm '{vm.name}' is being migrated; wait, or end that with `scloud vm migrate {vm.name} --cancel`",
        )


def begin(
    tx: Tx,
    vm: Resource,
    target: Resource | None,
    loads: Loads,
    *,
    stuck: OnStuck = "auto-converge",
    bandwidth_mib_s: int = 0,
    downtime_ms: int = 300,
) -> Operation:
    """Choose a node if none is given, promise room there, and tell it to get ready. `CloudError` says why not."""
    spec, status = vm.spec_as(VmSpec), vm.status_as(VmStatus)
    refuse_while_moving(vm)
    if vm.state != State.RUNNING or vm.node is None:
        raise CloudError(ErrorKind.CONFLICT, f"vm '{vm.name}' is {vm.state}; only a running VM can be migrated live")
    if operations.open_for(tx, vm.id):
        raise CloudError(ErrorKind.CONFLICT, f"vm '{vm.name}' is being changed; migrate it when that has ended")
    if spec.gpus:
        raise CloudError(
            ErrorKind.CONFLICT, f"vm '{vm.name}' has GPUs of its node, which cannot migrate: stop it to move it"
        )
    if spec.node is not None and target is None:
        raise CloudError(
            ErrorKind.CONFLICT,
            f"vm '{vm.name}' was asked onto node {status.node} alone; name the node that it is to be on instead "
            f"(`scloud vm migrate {vm.name} --to NODE`)",
        )
    disks, _nics = placement.attached(tx, vm)
    if coming := [disk for disk in disks if disk.node != vm.node]:
        reason = coming[0].status_as(DiskStatus).reason or "is not on its node"
        raise CloudError(
            ErrorKind.CONFLICT, f"vm '{vm.name}' cannot be migrated: disk {coming[0].name} is still to come: {reason}"
        )
    copies = _copies(tx, vm, disks, stuck)
    away = {vm.node, *status.leaving}
    if target is not None and target.id in away:
        reason = "runs there already" if target.id == vm.node else "has left it and is being cleaned up there"
        raise CloudError(ErrorKind.CONFLICT, f"vm '{vm.name}' {reason}: node {target.name}")
    home = _home(tx, vm, spec, disks, target, away, loads, sum(copy.size_mib for copy in copies))
    move = Migration(
        number=status.migrations + 1,
        source=vm.node,
        target=home.node,
        target_name=home.name,
        stuck=stuck,
        bandwidth_mib_s=bandwidth_mib_s,
        downtime_ms=downtime_ms,
        copies=copies,
        began_at=tx.now,
    )
    vm = _write(tx, vm, migration=move, migrations=move.number)
    operations.enqueue(tx, f"migrate/{vm.id}")
    message = f"node {home.name} is getting ready"
    seconds = seconds_for(ACTION) + _copying_s(spec.memory_mib + _room_of(move), bandwidth_mib_s)
    return operations.begin(tx, ACTION, vm, seconds=seconds, message=message)


def _copying_s(mib: int, bandwidth_mib_s: int) -> float:
    """How long so much may take to copy, seconds."""
    return mib / min(bandwidth_mib_s or SLOW_MIB_S, SLOW_MIB_S)


def _copies(tx: Tx, vm: Resource, disks: list[Resource], stuck: OnStuck) -> tuple[DiskCopy, ...]:
    """Of its disks in its node's own storage, which go with it. `CloudError(CONFLICT)` says why one cannot."""
    local = {disk.name: disk for disk in disks if disk.spec_as(DiskSpec).pool is None}
    if local and stuck == "post-copy":
        raise CloudError(
            ErrorKind.CONFLICT,
            f"vm '{vm.name}' cannot be migrated with post-copy: disk {', '.join(local)} is in its node's own storage, "
            "and is copied; choose another way (`--stuck auto-converge`)",
        )
    for name, disk in local.items():
        if kept := [row.name for row in snapshots.of_disk(tx, disk.id)]:
            raise CloudError(
                ErrorKind.CONFLICT,
                f"vm '{vm.name}' cannot be migrated: disk {name} is in its node's own storage and has snapshots, which "
                f"cannot go with it: {', '.join(kept[:5])}; delete them",
            )
        if disk.node != vm.node or disk.state != State.READY:
            raise CloudError(ErrorKind.CONFLICT, f"vm '{vm.name}' cannot be migrated: disk {name} is {disk.state}")
    return tuple(
        DiskCopy(disk=disk.id, size_mib=spec.size_mib, incarnation=spec.rebuilds)
        for disk in local.values()
        for spec in [disk.spec_as(DiskSpec)]
    )


def _home(
    tx: Tx,
    vm: Resource,
    spec: VmSpec,
    disks: list[Resource],
    target: Resource | None,
    away: set[str],
    loads: Loads,
    disk_mib: int = 0,
) -> placement.Home:
    pools = {pool for disk in disks if (pool := disk.spec_as(DiskSpec).pool) is not None}
    wanted = spec.model_copy(update={"node": target.id if target is not None else None})
    request = placement.request_for(tx, wanted, disk_mib, exclude=vm.id, pools=pools, away=away)
    home = placement.find_home(tx, vm.account, request, loads)
    if home is None:
        reasons = placement.plan(tx, vm.account, request, loads).explain()
        raise CloudError(ErrorKind.NO_CAPACITY, f"vm '{vm.name}': no node can take it: {reasons}")
    return home


def cancel(tx: Tx, vm: Resource, reason: str = "") -> None:
    """The guest stays where it is, if it has not left; who asks again changes nothing."""
    move = of(vm)
    if move is not None and not move.cancel:
        _conclude(tx, _write(tx, vm, migration=move.model_copy(update={"cancel": True, "reason": reason})))


def overdue(tx: Tx, vm: Resource, op: Operation) -> None:
    """Its time is over: it is cancelled; and where a node does not say how that went, the operation ends without it.

    The VM stays as it is then: who has it is known as soon as that node answers.
    """
    move = of(vm)
    if move is not None and not move.cancel:
        operations.postpone(tx, op.id, LAST_WORD_S)
        far = f"; {describe(move.source_seen)}" if move.source_seen is not None and move.source_seen.progress else ""
        cancel(tx, vm, f"it did not end in its time{far}")
        return
    reason = f"it did not end in its time, and node {move.target_name} or its own does not say how" if move else "ended"
    operations.end(tx, op, OperationState.FAILED, reason, code=ErrorKind.TIMED_OUT)
    operations.record(tx, vm, "error", f"its migration: {reason}")


def end_then(tx: Tx, vm: Resource, then: Then, keep_disks_until: float | None = None) -> Resource:
    """It is to be switched off or deleted: its migration ends first, and the rest follows by itself.

    Until it is certain where it runs, it cannot be said to be off, nor its disks to be free for others.
    """
    move = of(vm)
    assert move is not None
    if move.phase == "preparing":  # the source knows of nothing yet
        return _stay(tx, vm, move, Stays("it is switched off or deleted", cancelled=True))
    update = {"cancel": True, "then": then, "keep_disks_until": keep_disks_until}
    reason = f"its migration to node {move.target_name} is ended first"
    _conclude(tx, _write(tx, vm, migration=move.model_copy(update=update), reason=reason))
    return find(tx, vm.id) or vm


def _follow_up(tx: Tx, vm: Resource, move: Migration) -> None:
    """It is certain where it is: what was asked for on its way is done there."""
    if move.then == "delete":
        finishing.begin_vm_deletion(tx, vm, move.keep_disks_until)
    elif move.then == "stop":
        status = vm.status_as(VmStatus).model_copy(update={"state": State.STOPPING, "reason": "stopping"})
        save(tx, vm, spec=vm.spec_as(VmSpec).model_copy(update={"power": "off", "force_stop": True}), status=status)


def heard(tx: Tx, vm: Resource, node: str, item: Observed) -> bool:
    """What a node says of a VM that moves, or has left it. False if it is to be taken in like any other report."""
    status = vm.status_as(VmStatus)
    if node in status.leaving and node != vm.node:
        # An agent that was rid of it before it heard of what else is left says "absent", too.
        if item.state == "absent" and item.settled and set(status.leftovers.get(node, ())) <= set(item.dropped):
            _left_behind(tx, vm, node)
        return True
    move = status.migration
    if move is None or vm.gone or vm.state == State.DELETING:
        return False
    if item.move is None or item.move.number != move.number:
        if node == move.target and item.reason:
            _tell_progress(tx, vm, f"node {move.target_name}: {item.reason}", 5)
        return node == move.target
    if node not in (move.source, move.target):
        return False
    role = "source_seen" if node == move.source else "target_seen"
    vm = save(tx, vm, status=status.model_copy(update={"migration": move.model_copy(update={role: item.move})}))
    if item.move.progress is not None:
        _tell_progress(tx, vm, describe(item.move), percent(item.move.progress))
    _conclude(tx, vm)
    return True


def concerning(tx: Tx, node: str) -> list[Resource]:
    """VMs that are on their way to or from the node, or have left something there. A search by text: seldom asked."""
    query = select(resource.c.id).where(resource.c.kind == Kind.VM, resource.c.status.contains(node))
    rows = find_many(tx, [row.id for row in tx.conn.execute(query)], gone=True).values()
    return [row for row in rows if node in nodes_of(row)]


def nodes_of(vm: Resource) -> set[str]:
    """Where something of it is or may be, besides its own node."""
    status = vm.status_as(VmStatus)
    move = status.migration
    return {*status.leaving, *((move.source, move.target) if move is not None else ())}


def node_lost(tx: Tx, vm: Resource, node: str, others: Collection[str] = (), *, removed: bool = False) -> bool:
    """The node is certainly dead, as are `others`: nothing runs there, and what comes from or goes there ends.

    True once the VM has its node, whichever that is. Bytes that are left there are deleted when it returns, unless it
    is `removed` from the cloud for ever.
    """
    move = of(vm)
    if move is not None and node == move.source:
        both = move.target in others
        _act(tx, vm, move, without_both(move, removed=removed) if both else without_source(move))
    elif move is not None and node == move.target:
        _act(tx, vm, move, without_target(move, removed=removed))
    current = find(tx, vm.id, gone=True)
    if current is None:
        return True
    status = current.status_as(VmStatus)
    if node in status.leaving and (removed or not status.leftovers.get(node)):
        current = _left_behind(tx, current, node)
    return of(current) is None


def _left_behind(tx: Tx, vm: Resource, node: str) -> Resource:
    """Nothing of it is on a node that it has left."""
    status = vm.status_as(VmStatus)
    left = tuple(other for other in status.leaving if other != node)
    leftovers = {other: disks for other, disks in status.leftovers.items() if other != node}
    vm = _write(tx, vm, leaving=left, leftovers=leftovers)
    if vm.gone or vm.state == State.DELETING:
        finishing.finish_vm_deletion(tx, vm)
    return vm


def describe(seen: MoveSeen) -> str:
    """How far it is, in words."""
    at = seen.progress
    if at is None:
        return "copying"
    text = f"round {at.iteration}: {at.remaining_mib} of {at.total_mib} MiB left, {at.rate_mib_s} MiB/s"
    if at.dirty_mib_s:
        text += f", the guest writes {at.dirty_mib_s} MiB/s"
    return text if at.downtime_ms is None else f"{text}, expected pause {at.downtime_ms} ms"


def percent(at: MoveProgress) -> int:
    """10 is ready, 95 is all copied."""
    done = 1 - at.remaining_mib / at.total_mib if at.total_mib else 0
    return round(10 + 85 * min(max(done, 0), 1))


def _tell_progress(tx: Tx, vm: Resource, message: str, share: int) -> None:
    for op in operations.open_for(tx, vm.id):
        if op.action == ACTION:
            operations.progress(tx, op.id, share, message)


def _conclude(tx: Tx, vm: Resource, network_ready: bool = False) -> None:
    move = of(vm)
    if move is None:
        return
    removed = find(tx, move.target) is None  # taken out of the cloud before the source had said how it ended
    _act(tx, vm, move, without_target(move, removed=True) if removed else judge(move, network_ready))


def _act(tx: Tx, vm: Resource, move: Migration, verdict: Verdict) -> None:
    match verdict:
        case Ask():
            _ask(tx, vm, move)
        case Copy(address):
            _write(tx, vm, migration=move.model_copy(update={"phase": "copying", "address": address}))
            _tell_progress(tx, vm, "copying", 10)
        case Moved():
            _move(tx, vm, move)
        case Stays():
            _stay(tx, vm, move, verdict)
        case _:
            pass


def _ask(tx: Tx, vm: Resource, move: Migration) -> None:
    """Whether it has come to the target, only the target can say; it answers when it can be reached."""
    reason = (
        f"its migration broke off, and whether it has come to node {move.target_name} only that node can say; it is "
        f"asked. If it is lost for ever: `scloud node remove {move.target_name} --force`"
    )
    asked = move.model_copy(update={"asked": move.asked + 1})
    _write(tx, vm, migration=asked, state=State.UNKNOWN, reason=reason)


def _move(tx: Tx, vm: Resource, move: Migration) -> None:
    """All that is the VM's is the target's now; the source is told to remove what is left."""
    spec, status = vm.spec_as(VmSpec), vm.status_as(VmStatus)
    target = find(tx, move.target)
    if target is None:  # taken out of the cloud as lost, and the VM with it
        lost.with_node(tx, _write(tx, vm, migration=None))
        return
    copied = find_many(tx, [copy.disk for copy in move.copies]).values()
    disk_mib = sum(disk.spec_as(DiskSpec).size_mib for disk in copied)  # some may have grown on the way
    nodes.promise(tx, move.source, cpus=-spec.cpus, memory_mib=-spec.memory_mib, disk_mib=-disk_mib)
    nodes.promise(tx, move.target, disk_mib=disk_mib - _room_of(move))
    leaving = (*(node for node in status.leaving if node != move.target), move.source)
    vm = _hand_over(tx, _leave_over(tx, vm, move, move.source), target, leaving)
    seen = move.source_seen.progress if move.source_seen is not None else None
    pause = f"; the guest paused {seen.downtime_ms} ms" if seen is not None and seen.downtime_ms is not None else ""
    message = f"runs on node {target.name}{pause}"
    operations.record(tx, vm, "info", f"migrated: {message}")
    _end(tx, vm, OperationState.DONE, message)
    _follow_up(tx, vm, move)


def _room_of(move: Migration) -> int:
    """MiB that its copies were promised at the target."""
    return sum(copy.size_mib for copy in move.copies)


def _leave_over(tx: Tx, vm: Resource, move: Migration, node: str) -> Resource:
    """The bytes of its copied disks count elsewhere: those on `node` are to go."""
    if not move.copies:
        return vm
    leftovers = vm.status_as(VmStatus).leftovers | {node: tuple(copy.disk for copy in move.copies)}
    return _write(tx, vm, leftovers=leftovers)


def _hand_over(tx: Tx, vm: Resource, target: Resource, leaving: tuple[str, ...]) -> Resource:
    """The VM with its disks and nics is the target's; the nodes that it leaves are told to remove what is left.

    One that was asked onto a node alone goes only where a person has sent it: from now on it may run there alone.
    """
    update = {"migration": None, "leaving": leaving, "node": target.name, "reason": ""}
    spec = vm.spec_as(VmSpec)
    alone = spec.model_copy(update={"node": target.id}) if spec.node not in (None, target.id) else None
    vm = save(tx, vm, node=target.id, spec=alone, status=vm.status_as(VmStatus).model_copy(update=update))
    disks, nics = placement.attached(tx, vm)
    for disk in disks:
        if disk.spec_as(DiskSpec).pool is not None:
            serving.hand_over(tx, disk, target)
        else:
            save(tx, disk, node=target.id, status=disk.status_as(DiskStatus).model_copy(update={"node": target.name}))
    for nic in nics:
        if nic.spec_as(NicSpec).vm == vm.id:
            state = nic.status_as(NicStatus).model_copy(update={"node": target.name})
            save(tx, nic, node=target.id, status=state)
    return vm


def carry(tx: Tx, vm: Resource, target: Resource, loads: Loads) -> Resource:
    """Give a VM that is switched off another node: nothing is copied. `CloudError` says why not."""
    spec, status = vm.spec_as(VmSpec), vm.status_as(VmStatus)
    refuse_while_moving(vm)
    disks, _nics = placement.attached(tx, vm)
    if vm.node is None or vm.state != State.STOPPED or spec.power != "off" or operations.open_for(tx, vm.id):
        raise CloudError(ErrorKind.CONFLICT, f"vm '{vm.name}' is not switched off, or being changed")
    held = [disk for disk in disks if disk.node not in (None, vm.node)]
    if spec.gpus or held or any(disk.spec_as(DiskSpec).pool is None for disk in disks):
        raise CloudError(ErrorKind.CONFLICT, f"vm '{vm.name}' has disks or GPUs that are on its node")
    source = vm.node
    _home(tx, vm, spec, disks, target, {source, *status.leaving}, loads)
    nodes.promise(tx, source, cpus=-spec.cpus, memory_mib=-spec.memory_mib)
    vm = _hand_over(tx, vm, target, (*status.leaving, source))
    operations.record(tx, vm, "info", f"it is off, and is started on node {target.name} next time")
    return vm


def _stay(tx: Tx, vm: Resource, move: Migration, verdict: Stays) -> Resource:
    """It runs where it ran; the target is told to remove what has come."""
    spec, status = vm.spec_as(VmSpec), vm.status_as(VmStatus)
    nodes.promise(tx, move.target, cpus=-spec.cpus, memory_mib=-spec.memory_mib, disk_mib=-_room_of(move))
    left = move.target if find(tx, move.target) is not None else None
    leaving = tuple(dict.fromkeys((*status.leaving, *([left] if left else []))))
    vm = _leave_over(tx, vm, move, move.target) if left else vm
    vm = _write(tx, vm, migration=None, leaving=leaving)
    reason = f"not migrated to node {move.target_name}: {verdict.reason}; it stays where it was"
    operations.record(tx, vm, "info" if verdict.cancelled else "warning", reason)
    _end(tx, vm, OperationState.CANCELLED if verdict.cancelled else OperationState.FAILED, reason)
    _follow_up(tx, vm, move)
    return find(tx, vm.id) or vm


def _end(tx: Tx, vm: Resource, state: OperationState, message: str) -> None:
    for op in operations.open_for(tx, vm.id):
        if op.action == ACTION:
            operations.end(tx, op, state, message, code=ErrorKind.ENGINE)


def _write(tx: Tx, vm: Resource, **update: object) -> Resource:
    """Nodes are told of it, although only the status changes."""
    return save(tx, vm, status=vm.status_as(VmStatus).model_copy(update=update), node=vm.node)


class Migrator:
    """The work item `migrate/VM`: lets the source begin when the target and all switches are ready."""

    def __init__(self, store: Store, directory: Directory, network: NetworkWait) -> None:
        self._store = store
        self._directory = directory
        self._network = network

    async def work(self, id: str) -> bool:
        """False to be asked again."""
        vm = await self._store.read(lambda tx: find(tx, id))
        move = of(vm) if vm is not None else None
        if move is None or move.phase != "preparing":
            return True
        seen = move.target_seen
        if seen is None or seen.number != move.number or seen.state != "ready":
            return await self._store.write(lambda tx: _late(tx, id))
        vpcs = await self._store.read(lambda tx: _vpcs(tx, id))
        late = await self._network.settled({node for vpc in vpcs for node in self._directory.nodes_of_vpc(vpc)})
        await self._store.write(lambda tx: _begin_copying(tx, id, move.number, late))
        return True


def _late(tx: Tx, id: str) -> bool:
    vm = find(tx, id)
    move = of(vm) if vm is not None else None
    if vm is None or move is None:
        return True
    if tx.now - move.began_at > PREPARE_S:
        cancel(tx, vm, f"node {move.target_name} was not ready within {PREPARE_S:.0f} s")
        return True
    return False


def _vpcs(tx: Tx, id: str) -> set[str]:
    vm = find(tx, id)
    nics = placement.attached(tx, vm)[1] if vm is not None else []
    return {nic.spec_as(NicSpec).vpc for nic in nics}


def _begin_copying(tx: Tx, id: str, number: int, late: Collection[str]) -> None:
    vm = find(tx, id)
    move = of(vm) if vm is not None else None
    if vm is not None and vm.kind == Kind.VM and move is not None and move.number == number:
        if late:
            names = ", ".join(sorted(node.name for node in find_many(tx, late).values()))
            reason = f"VMs on {names} reach it at node {move.target_name} only when the agents there are back"
            operations.record(tx, vm, "warning", f"migrates although not every switch follows: {reason}")
        _conclude(tx, vm, network_ready=True)
