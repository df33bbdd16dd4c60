"""Disks that move to another pool: copied into a new disk, which takes the old one's place when all of it is there.

The old one is only read until then, and goes to the trash (or, of a node's own storage, is deleted) afterwards. A copy
that breaks off, with the manager or without, is begun anew; one of a disk that was used meanwhile is thrown away.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import Any

from scloud.controllers import finishing, imports, serving, snapshots
from scloud.controllers.disk_reader import DiskReader
from scloud.controllers.settings import seconds_for
from scloud.link.backup import CHUNK, MIB, Read, pieces
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import Kind, State
from scloud.model.specs import DiskSpec, VmSpec
from scloud.model.statuses import DiskStatus
from scloud.store import operations
from scloud.store.database import Store, Tx
from scloud.store.operations import Operation, OperationState
from scloud.store.resources import Resource, create, find, refer, save, unrefer, using

log = logging.getLogger(__name__)
ACTION = "disk.move"
TRIES_S = 600.0
"""How long copying is tried again before it is given up."""
TELL_EVERY_S = 1.0
"""Between words on how far a copy is."""


def begin(tx: Tx, disk: Resource, type_: str | None, pool: str) -> tuple[Operation, Resource]:
    """(the operation, the disk that will take the place). The caller has looked whether it may be."""
    old = disk.spec_as(DiskSpec)
    vm = find(tx, old.vm) if old.vm else None
    id = tx.new_id("dsk")
    spec = DiskSpec(size_mib=old.size_mib, type=type_, pool=pool, limits=old.limits)
    _op, snapshot = snapshots.take(tx, disk, f"move-{id}", id=tx.new_id("snp"))
    source = find(tx, disk.id) or disk
    moved_from = (disk.id, source.generation, vm.generation if vm is not None else 0)
    status = DiskStatus(state=State.PENDING, importing=True, moved_from=moved_from)
    name = f"{disk.name[:37].rstrip('-')}-moving-{id[-8:]}"
    row = create(tx, Kind.DISK, disk.account, name, spec, status, id=id)
    refer(tx, row.id, snapshot.id, "snapshot")
    refer(tx, row.id, pool, "pool")
    serving.promise(tx, spec, None, spec.size_mib)
    op = operations.begin(
        tx, ACTION, dataclasses.replace(row, generation=row.generation + 2**20), seconds=seconds_for(ACTION)
    )
    operations.enqueue(tx, f"move/{row.id}")
    return op, serving.serve(tx, row)


class Mover:
    """`work` carries one move on as far as it goes; False to be asked again soon."""

    def __init__(self, store: Store, trash_s: float) -> None:
        self._store = store
        self._trash_s = trash_s
        self.disks: DiskReader | None = None

    async def work(self, id: str) -> bool:
        state = await self._store.write(lambda tx: _ready(tx, id))
        if state is None:
            return True
        target, snapshot = state
        if snapshot is None:
            return False
        error: CloudError | None = None
        try:
            if self.disks is None:
                raise CloudError(ErrorKind.UNAVAILABLE, "this manager carries no disks")
            async with self.disks.open(snapshot) as read:
                await self._copy(target, read, await self._store.read(lambda tx: _amount(tx, target)))
        except CloudError as problem:
            error = problem
        except OSError as problem:
            error = CloudError(ErrorKind.UNAVAILABLE, f"the copy broke off: {problem}")
        return await self._store.write(lambda tx: _ended(tx, id, error, self._trash_s))

    async def _copy(self, target: Resource, read: Read, amount: Amount) -> None:
        assert self.disks is not None
        clock = asyncio.get_running_loop().time
        began = told = clock()
        done = 0
        async with self.disks.open_target(target) as channel:
            while data := await read(CHUNK):
                await channel.write(pieces(data))
                done += len(data)
                if clock() >= told + TELL_EVERY_S:
                    told = clock()
                    percent, message = how_far(amount, done, told - began)
                    await self._store.write(lambda tx: _tell(tx, target.id, percent, message))  # noqa: B023 (awaited)
            await channel.write(pieces(b""))
            await imports.answer(channel)


@dataclasses.dataclass(frozen=True, slots=True)
class Amount:
    """MiB to be copied; a clone is copied flat, with what it shares, and then this is only the most it can be."""

    mib: int
    exact: bool


def how_far(amount: Amount, done: int, seconds: float) -> tuple[int, str]:
    """(percent, words) after so many bytes and seconds."""
    mib = done / MIB
    rate = mib / seconds if seconds > 0 else 0.0
    percent = min(95, int(95 * mib / amount.mib)) if amount.mib else 0
    words = f"{mib:.0f} of {'' if amount.exact else 'at most '}{max(amount.mib, round(mib))} MiB copied"
    if rate >= 0.1:
        words += f", {rate:.0f} MiB a second"
        if amount.exact and amount.mib > mib:
            words += f", {(amount.mib - mib) / rate:.0f} s to go"
    return percent, words


def _amount(tx: Tx, target: Resource) -> Amount:
    moved = target.status_as(DiskStatus).moved_from
    source = find(tx, moved[0]) if moved is not None else None
    if source is None:
        return Amount(target.spec_as(DiskSpec).size_mib, exact=False)
    spec, used = source.spec_as(DiskSpec), source.status_as(DiskStatus).used_mib
    flat = spec.flattened or spec.pool is None or (spec.image is None and spec.snapshot is None)
    return Amount(used, exact=True) if flat and used else Amount(spec.size_mib, exact=False)


def _tell(tx: Tx, id: str, percent: int, message: str) -> None:
    op = next((op for op in operations.open_for(tx, id) if op.action == ACTION), None)
    if op is not None:
        operations.progress(tx, op.id, percent, message)


def _snapshot_of(tx: Tx, target: Resource, source: str) -> Resource | None:
    found = [row for row in snapshots.of_disk(tx, source) if target in using(tx, row.id, "snapshot")]
    return found[0] if found else None


def _ready(tx: Tx, id: str) -> tuple[Resource, str | None] | None:
    """(the new disk, the snapshot to copy or None while something is still being made); None if there is no more."""
    target = find(tx, id)
    moved = target.status_as(DiskStatus).moved_from if target is not None else None
    if target is None or moved is None or target.state == State.DELETING:
        return None
    if not any(op.action == ACTION for op in operations.open_for(tx, id)):
        give_up(tx, target, CloudError(ErrorKind.TIMED_OUT, "it took too long"))
        return None
    snapshot = _snapshot_of(tx, target, moved[0])
    if snapshot is None or snapshot.state in (State.ERROR, State.DELETING):
        give_up(tx, target, CloudError(ErrorKind.ENGINE, "the snapshot to copy could not be taken"))
        return None
    made = target.observed_generation >= target.generation
    return target, snapshot.id if made and snapshot.state == State.READY else None


def _ended(tx: Tx, id: str, error: CloudError | None, trash_s: float) -> bool:
    target = find(tx, id)
    moved = target.status_as(DiskStatus).moved_from if target is not None else None
    if target is None or moved is None or target.state == State.DELETING:
        return True
    op = next((op for op in operations.open_for(tx, id) if op.action == ACTION), None)
    if error is None:
        try:
            _take_place(tx, target, moved, trash_s)
        except CloudError as problem:
            error = problem
    if error is None:
        if op is not None:
            operations.end(tx, op, OperationState.DONE, "moved")
        return True
    lasting = error.kind not in (ErrorKind.UNAVAILABLE, ErrorKind.TIMED_OUT, ErrorKind.NOT_FOUND)
    if lasting or op is None or tx.now > op.created_at + TRIES_S:
        give_up(tx, target, error)
        return True
    operations.progress(tx, op.id, op.progress, f"begun anew: {error.message}")
    return False


def _take_place(tx: Tx, target: Resource, moved: tuple[str, int, int], trash_s: float) -> None:
    """The new disk is what the old one was, in one transaction. CONFLICT if the old one was used meanwhile."""
    source = find(tx, moved[0])
    vm_id = source.spec_as(DiskSpec).vm if source is not None else None
    vm = find(tx, vm_id) if vm_id else None
    if (
        source is None
        or source.state in (State.DELETING, State.TRASHED)
        or (source.generation, vm.generation if vm is not None else 0) != moved[1:]
    ):
        raise CloudError(ErrorKind.CONFLICT, "the disk or its VM was changed meanwhile; leave it alone and move again")
    old, was, name = source.spec_as(DiskSpec), source.status_as(DiskStatus), source.name
    snapshot = _snapshot_of(tx, target, source.id)
    if snapshot is not None:
        unrefer(tx, target.id, snapshot.id, "snapshot")
    if vm is not None:
        unrefer(tx, source.id, vm.id, "vm")
    alone = old.model_copy(update={"vm": None, "system": False, "schedule": None})
    source = save(tx, source, spec=alone, status=was.model_copy(update={"next_snapshot_at": None}), parent=None)
    if old.pool is not None:
        finishing.into_trash(tx, source, tx.now + trash_s)
    else:
        source = save(tx, source, name=source.id)
        operations.begin(tx, "disk.delete", source, seconds=seconds_for("disk.delete"))
        finishing.leave(tx, source, "moved to another pool")
    kept = {"vm": old.vm, "system": old.system, "schedule": old.schedule, "image": old.image, "rebuilds": 0}
    spec = target.spec_as(DiskSpec).model_copy(update={**kept, "flattened": True})
    status = target.status_as(DiskStatus).model_copy(
        update={
            **{"state": State.READY, "reason": "", "importing": False, "moved_from": None},
            "next_snapshot_at": was.next_snapshot_at,
        }
    )
    target = save(tx, target, spec=spec, status=status, name=name, parent=old.vm)
    if vm is not None:
        refer(tx, target.id, vm.id, "vm")
        save(tx, vm, spec=vm.spec_as(VmSpec))
        serving.to_vm(tx, target, vm)
    if old.schedule is not None:
        operations.enqueue(tx, f"schedule/{target.id}")


def give_up(tx: Tx, target: Resource, error: CloudError) -> Operation:
    """Everything is as before; what was copied is thrown away. The operation that does so."""
    moved: Any = target.status_as(DiskStatus).moved_from
    reason = f"the move was given up: {error.message}; the disk is where it was"
    for op in operations.open_for(tx, target.id):
        if op.action == ACTION:
            operations.end(tx, op, OperationState.FAILED, reason, code=error.kind)
    source = find(tx, moved[0])
    snapshot = _snapshot_of(tx, target, moved[0])
    if source is not None:
        operations.record(tx, source, "error", reason)
    if snapshot is not None and snapshot.state != State.DELETING:
        unrefer(tx, target.id, snapshot.id, "snapshot")
        operations.begin(tx, "snapshot.delete", snapshot, seconds=seconds_for("snapshot.delete"))
        snapshots.leave(tx, snapshot)
    deletion = operations.begin(tx, "disk.delete", target, seconds=seconds_for("disk.delete"))
    finishing.leave(tx, target, "its move was given up")
    return operations.get(tx, deletion.id, None) or deletion
