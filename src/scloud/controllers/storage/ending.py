"""Which operations on a storage cluster have come to their end, and how far the others are."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from scloud.model.errors import ErrorKind
from scloud.model.storage import StorageClusterSpec
from scloud.reconcile.ceph.figures import Track, progress
from scloud.reconcile.ceph.view import View
from scloud.store import operations
from scloud.store.database import Tx
from scloud.store.operations import Operation, OperationState
from scloud.store.resources import Resource

NOUN = "storage-cluster"
WHOLE = "waiting until every other copy is whole: its data have no other place to go"
OF_DEVICES = frozenset(f"{NOUN}.device-{verb}" for verb in ("add", "remove", "keep", "replace"))


def update(
    tx: Tx,
    row: Resource,
    spec: StorageClusterSpec,
    view: View,
    *,
    settled: bool,
    ready: bool,
    joined: bool,
    waits: str,
    track: Track | None,
    in_place: Collection[str],
    trouble: str,
    broken: Mapping[str, str],
) -> None:
    """`settled`: nothing is left to be commanded; `ready`: it can be used; `joined`: each node has its key;
    `in_place`: devices that cannot be drained; `trouble`: what agents complain of; `broken`: what they have tried in
    vain, by node."""
    for op in operations.open_for(tx, row.id):
        if op.action == f"{NOUN}.delete":
            continue
        if op.action in OF_DEVICES:
            _devices(tx, op, spec, view, track, in_place, trouble, broken)
        elif op.action == f"{NOUN}.node-remove":
            if not spec.leaving:
                _done(tx, op, "removed")
            elif any(device.out and not device.drained for device in spec.devices):
                _say(tx, op, *progress(track))
            else:
                _say(tx, op, 98, "waiting for the node to let go of it")
        elif op.action == f"{NOUN}.repair":
            if not spec.repairs:
                _done(tx, op, "repaired")
            else:
                _say(tx, op, 50, f"repairing {', '.join(spec.repairs[:5])}")
        elif op.action == f"{NOUN}.deep-scrub":
            if not spec.scrubs:
                _done(tx, op, "asked for; what it finds is shown by `scloud storage-cluster show`")
        elif op.action == f"{NOUN}.node-add":
            if settled and joined:
                _done(tx, op)
            elif waits:
                _say(tx, op, 50, waits)
        elif op.action in (f"{NOUN}.create", f"{NOUN}.adopt"):
            if ready and settled:
                _done(tx, op)
            else:
                up = sum(1 for osd in view.osds if osd.up)
                share = 30 + 60 * up // max(1, len(spec.devices)) if view.quorum else 10
                _say(tx, op, min(share, 95), waits or op.message)
        elif settled and op.generation <= row.generation:
            _done(tx, op)


def _devices(
    tx: Tx,
    op: Operation,
    spec: StorageClusterSpec,
    view: View,
    track: Track | None,
    in_place: Collection[str],
    trouble: str,
    broken: Mapping[str, str],
) -> None:
    """Done when none of its devices is on its way any more."""
    mine = [device for device in spec.devices if device.operation == op.id]
    waiting = []
    for device in mine:
        osd = view.osd(device.uuid)
        if device.out:
            if not device.drained:
                _say(tx, op, *((10, WHOLE) if device.uuid in in_place else progress(track)))
                return
            waiting.append("wiping the device")
        elif osd is None or not osd.up or not osd.taken_in:
            why = broken.get(device.node, "")
            if device.path in why:
                remedy = "it is tried again and again; `scloud storage-cluster device remove` forgets it"
                operations.end(tx, op, OperationState.FAILED, f"{why}; {remedy}", code=ErrorKind.ENGINE)
                return
            waiting.append(f"starting the new OSD{trouble}")
    if waiting:
        _say(tx, op, 96 if waiting[0].startswith("wiping") else 50, waiting[0])
    else:
        _done(tx, op, "removed" if op.action.endswith("remove") else "done")


def _done(tx: Tx, op: Operation, message: str = "done") -> None:
    operations.end(tx, op, OperationState.DONE, message)


def _say(tx: Tx, op: Operation, percent: int, message: str) -> None:
    if (op.progress, op.message) != (percent, message):
        operations.progress(tx, op.id, percent, message)


def failed(tx: Tx, row: Resource, action: str, reason: str, code: ErrorKind) -> None:
    for op in operations.open_for(tx, row.id):
        if op.action == action:
            operations.end(tx, op, OperationState.FAILED, reason, code=code)
