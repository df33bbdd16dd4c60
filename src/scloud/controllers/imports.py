"""Backups that are written over disks: begun, ended, and given up when the manager that carried them is gone."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from scloud.controllers import serving
from scloud.controllers.settings import seconds_for
from scloud.link.backup import BackupHeader
from scloud.link.channel import Channel
from scloud.model.errors import CloudError, ErrorKind, invalid
from scloud.model.kinds import State
from scloud.model.specs import DiskSpec
from scloud.model.statuses import DiskStatus
from scloud.store import operations
from scloud.store.database import Tx
from scloud.store.operations import OperationState
from scloud.store.resources import Resource, find, save

ACTION = "disk.import"
MAX_ANSWER = 65536


def check(tx: Tx, disk: Resource, header: BackupHeader) -> None:
    """Whether this backup can be written over this disk now."""
    status = disk.status_as(DiskStatus)
    if disk.node is None:
        raise CloudError(
            ErrorKind.CONFLICT, f"disk '{disk.name}' is on no node yet; a local one gets its place with a VM"
        )
    if any(op.action == ACTION for op in operations.open_for(tx, disk.id)):
        raise CloudError(ErrorKind.CONFLICT, f"disk '{disk.name}' is being imported already; wait for the end of that")
    spec = disk.spec_as(DiskSpec)
    if spec.pool is not None:
        serving.check_pool(tx, spec.pool)
    size = spec.size_mib
    if header.size_mib > size:
        raise invalid("data", f"is of a disk of {header.size_mib} MiB, and this one has {size}; resize it first")
    if header.since is not None and status.imported != header.since:
        has = f"has the bytes of snapshot {status.imported}" if status.imported else "was not just imported"
        raise CloudError(
            ErrorKind.CONFLICT,
            f"this backup is of what has changed since snapshot {header.since}, and disk '{disk.name}' {has}: "
            "import the backup of that snapshot first, and this one before the disk is attached",
        )


def begin(tx: Tx, disk: Resource) -> tuple[Resource, str]:
    """(the disk, the operation's id)."""
    update = {"state": State.UPDATING, "reason": "being imported", "importing": True, "imported": None}
    row = save(tx, disk, status=disk.status_as(DiskStatus).model_copy(update=update))
    # Of a generation to come: what the node reports of the present one is not the import's end.
    ahead = dataclasses.replace(row, generation=row.generation + 1)
    return row, operations.begin(tx, ACTION, ahead, seconds=seconds_for(ACTION)).id


def end(tx: Tx, id: str, op_id: str, header: BackupHeader | None, error: CloudError | None) -> dict[str, Any]:
    """The ended operation, as the API shows it."""
    op = operations.get(tx, op_id, None)
    disk = find(tx, id)
    if op is None:
        raise CloudError(ErrorKind.NOT_FOUND, "the import's operation is gone")
    if disk is None or not disk.status_as(DiskStatus).importing or disk.state == State.DELETING:
        return operations.end(tx, op, OperationState.CANCELLED, "the disk was deleted").public()
    status = disk.status_as(DiskStatus)
    if error is None:
        imported = header.snapshot if header is not None else None
        update = {"state": State.READY, "reason": "", "importing": False, "imported": imported}
        save(tx, disk, status=status.model_copy(update=update))
        return operations.end(tx, op, OperationState.DONE, "imported").public()
    reason = f"the import broke off: {error.message}; import it anew, or delete it"
    save(tx, disk, status=status.model_copy(update={"state": State.ERROR, "reason": reason}))
    operations.record(tx, disk, "error", reason)
    return operations.end(tx, op, OperationState.FAILED, reason, code=error.kind).public()


def recover(tx: Tx) -> None:
    """A manager that starts carries no import: those that are open went down with the one before."""
    error = CloudError(ErrorKind.UNAVAILABLE, "the manager was restarted meanwhile")
    for op in operations.all_open(tx):
        if op.action == ACTION:
            end(tx, op.resource_id, op.id, None, error)


async def answer(channel: Channel) -> None:
    """What the node says at the end of a restore; CloudError if it failed."""
    line = bytearray()
    while not line.endswith(b"\n"):
        data = await channel.read(MAX_ANSWER)
        if not data or len(line) > MAX_ANSWER:
            raise CloudError(ErrorKind.UNAVAILABLE, "the node went away")
        line += data
    said = json.loads(line)
    if "error" in said:
        kind, message = said["error"]
        known = kind in ErrorKind.__members__.values()
        raise CloudError(ErrorKind(kind) if known else ErrorKind.ENGINE, message)
