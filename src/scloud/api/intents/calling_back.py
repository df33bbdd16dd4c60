"""Calling an operation back."""

from __future__ import annotations

from typing import Any

from scloud.api.context import accepted, begin
from scloud.controllers import finishing, snapshots
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import Kind, State
from scloud.store import operations
from scloud.store.database import Tx
from scloud.store.operations import Operation, OperationState
from scloud.store.resources import find


def call_back(tx: Tx, op: Operation) -> dict[str, Any]:
    """Undo a creation or an import that is under way. CONFLICT for anything else, IN_USE if its disk was cloned."""
    row = find(tx, op.resource_id)
    if not op.open or row is None:
        raise CloudError(ErrorKind.CONFLICT, f"operation {op.id} has ended already: it is {op.state}")
    if op.action not in ("vm.create", "image.import"):
        raise CloudError(
            ErrorKind.CONFLICT, f"{op.action} cannot be called back; it ends by itself within its deadline"
        )
    for disk in (item for item in finishing.owned(tx, row) if item.kind == Kind.DISK):
        snapshots.refuse_clones(tx, disk)
    ended = operations.end(tx, op, OperationState.CANCELLED, "cancelled; what was made is being removed")
    # The removal is an operation of its own: it has a deadline, as every state on its way to another one.
    begin(tx, f"{row.kind}.delete", row)
    if row.kind == Kind.VM:
        finishing.begin_vm_deletion(tx, row)
    elif row.state != State.DELETING:
        finishing.leave_image(tx, row)
    return accepted(ended, find(tx, row.id) or row)
