"""Snapshots on a schedule. When one is due is kept with the disk; the work item only wakes us up.

What was missed while nobody could take it is made up for once. Each function runs in a transaction.
"""

from __future__ import annotations

import datetime
import math

from scloud.controllers import snapshots
from scloud.controllers.settings import seconds_for
from scloud.model.kinds import Kind, State
from scloud.model.snapshots import SnapshotSchedule, SnapshotSpec
from scloud.model.specs import DiskSpec
from scloud.model.statuses import DiskStatus
from scloud.store import operations
from scloud.store.database import Tx
from scloud.store.resources import Resource, find, save, users_of


def following(due: float, now: float, every_s: float) -> float:
    """The first time after `now` on the grid of `due`: times that have passed are skipped."""
    return due + every_s * max(1, math.floor((now - due) / every_s) + 1)


def excess(taken: list[Resource], keep: int) -> list[Resource]:
    """Of a schedule's snapshots, oldest first, those beyond the newest `keep`."""
    return taken[: max(0, len(taken) - keep)]


def arrange(tx: Tx, disk: Resource) -> Resource:
    """The disk has a schedule now, another, or none: from now on that holds."""
    schedule = disk.spec_as(DiskSpec).schedule
    at = None if schedule is None else tx.now + schedule.every_s
    status = disk.status_as(DiskStatus).model_copy(update={"next_snapshot_at": at})
    if schedule is not None:
        operations.enqueue(tx, f"schedule/{disk.id}", delay=schedule.every_s)
    return save(tx, disk, status=status)


def work(tx: Tx, id: str) -> None:
    """Take what is due, delete what is too many, and come again when the next is due."""
    disk = find(tx, id)
    if disk is None or disk.kind != Kind.DISK or disk.state in (State.DELETING, State.TRASHED):
        return
    spec, status = disk.spec_as(DiskSpec), disk.status_as(DiskStatus)
    schedule, due = spec.schedule, status.next_snapshot_at
    if schedule is None or due is None:
        return
    if tx.now >= due:
        disk = _take(tx, disk)
        due = following(due, tx.now, schedule.every_s)
        save(tx, disk, status=disk.status_as(DiskStatus).model_copy(update={"next_snapshot_at": due}))
    _retain(tx, id, schedule)
    operations.enqueue(tx, f"schedule/{id}", delay=due - tx.now)


def _of_schedule(tx: Tx, disk: str) -> list[Resource]:
    rows = [row for row in snapshots.of_disk(tx, disk) if row.state != State.DELETING]
    return [row for row in rows if row.spec_as(SnapshotSpec).scheduled]


def _take(tx: Tx, disk: Resource) -> Resource:
    """Not while the one before is still on its way, nor of a disk that has no bytes: that would only pile up; nor of
    one that goes to another node with its VM."""
    if disk.node is None or disk.status_as(DiskStatus).importing or snapshots.being_copied(tx, disk):
        return disk
    if any(row.state == State.CREATING for row in _of_schedule(tx, disk.id)):
        operations.record(tx, disk, "warning", "a scheduled snapshot was left out: the one before is not done yet")
        return disk
    stamp = datetime.datetime.fromtimestamp(tx.now, datetime.UTC).strftime("%Y%m%d-%H%M%S")
    id = tx.new_id("snp")
    snapshots.take(tx, disk, f"{disk.name[:37].rstrip('-')}-{stamp}-{id[-6:]}", scheduled=True, id=id)
    return find(tx, disk.id) or disk


def _retain(tx: Tx, disk: str, schedule: SnapshotSchedule) -> None:
    """Failed ones go first of all; one that disks were made from stays, and does not count. Nor does one that is still
    being made, as it may fail: what it takes the place of goes when it is ready (`snapshots.observe` wakes us)."""
    taken = [row for row in _of_schedule(tx, disk) if not users_of(tx, row.id)]
    failed = [row for row in taken if row.state == State.ERROR]
    ready = [row for row in taken if row.state == State.READY]
    for row in failed + excess(ready, schedule.keep):
        operations.begin(tx, "snapshot.delete", row, seconds=seconds_for("snapshot.delete"))
        snapshots.leave(tx, row)
