"""What nodes say of their objects, taken into the database. Each function runs in one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from operator import itemgetter

from scloud.controllers import finishing, migration, render, serving, snapshots
from scloud.model.kinds import TRANSITIONAL, Kind, State
from scloud.model.observed import Observed
from scloud.model.registry import status_type
from scloud.model.specs import DiskSpec, NicSpec, VmSpec
from scloud.model.statuses import DiskStatus, NicStatus, VmStatus
from scloud.store import operations
from scloud.store.database import Tx
from scloud.store.resources import Resource, children_of, find, find_many, on_node, save, unrefer

KIND_OF_KEY = {"vm": Kind.VM, "disk": Kind.DISK, "port": Kind.NIC}
ORDER = {"disk": 0, "port": 1, "vm": 2}
"""Disks and ports before VMs: a VM's deletion ends with the last of its own."""


def take_in(tx: Tx, reports: Mapping[str, Iterable[Observed]]) -> None:
    """Bring rows in line with what nodes say, by node; what one says of things that are not on it is left aside.

    Of several observations of a thing the last counts.
    """
    last = {(node, item.key): item for node, items in reports.items() for item in items}
    wanted = []
    for (node, key), item in last.items():
        kind, _, id = key.partition("/")
        if kind in KIND_OF_KEY:
            wanted.append((ORDER[kind], kind, id, node, item))
    rows = find_many(tx, (id for _, _, id, _, _ in wanted))
    waited_for = operations.ids_with_open(tx, rows)
    with_snapshots = children_of(tx, Kind.SNAPSHOT, (id for _, kind, id, _, _ in wanted if kind == "disk")).keys()
    several = {id for id, count in Counter(id for _, _, id, _, _ in wanted).items() if count > 1}
    for _, kind, id, node, item in sorted(wanted, key=itemgetter(0)):
        row = rows.get(id)
        if row is not None and (id in several or render.leaving(row)):
            # What another node, or a VM's own disk, has said in this transaction may have changed it.
            row = find(tx, id, gone=True)
        if kind == "vm" and row is not None and row.kind == Kind.VM and migration.heard(tx, row, node, item):
            continue
        if row is None or row.kind != KIND_OF_KEY[kind]:
            continue
        if row.node != node:
            if kind == "port":
                _former_port(tx, row, node, item)
            continue
        if kind == "vm":
            _vm(tx, row, item, id in waited_for)
        elif kind == "disk":
            _disk(tx, row, item, id in waited_for, id in with_snapshots)
        else:
            _port(tx, row, item, id in waited_for)


def _vm(tx: Tx, row: Resource, item: Observed, waited_for: bool) -> None:
    if row.gone or row.state == State.DELETING:
        if item.state == "absent" and item.settled:
            finishing.finish_vm_deletion(tx, finishing.release_vm(tx, row))
        elif item.reason:
            _explain(tx, row, item)
        return
    if item.state == "absent":
        return  # a node that has not heard of the VM yet
    old = row.status_as(VmStatus)
    current = item.settled and item.generation >= row.generation
    new = old.model_copy(
        update={
            "state": old.state if _overtaken(row, old.state, item) else _vm_state(old.state, item, current),
            "reason": item.reason,
            "cpus": item.cpus if item.cpus is not None else old.cpus,
            "memory_mib": item.memory_mib if item.memory_mib is not None else old.memory_mib,
            "restarts": item.restarts,
            "observed_generation": max(old.observed_generation, item.generation if item.settled else 0),
        }
    )
    spec: VmSpec | None = None
    if item.guest_stopped and item.settled and item.generation >= row.generation:
        wanted = row.spec_as(VmSpec)
        if wanted.power == "on":
            spec = wanted.model_copy(update={"power": "off"})
            operations.record(tx, row, "info", "the guest powered itself off; `scloud vm start` starts it again")
    if new != old or spec is not None:
        if new.state != old.state or (new.state == State.ERROR and new.reason != old.reason):
            _record_vm(tx, row, old.state, new)
        row_after = save(tx, row, spec=spec, status=new, observed_generation=new.observed_generation)
    else:
        row_after = row
    if not item.settled or not waited_for or migration.ends_first(row_after):
        return
    if item.state == "error":
        finishing.fail(tx, row_after, item.generation, item.reason)
    else:
        finishing.complete(tx, row_after, item.generation, item.reason or "done")


def _overtaken(row: Resource, old: State, item: Observed) -> bool:
    """An error of before what is asked now says nothing about it."""
    return item.state == "error" and item.generation < row.generation and old in TRANSITIONAL


def _vm_state(old: State, item: Observed, current: bool) -> State:
    if item.state == "error":
        return State.ERROR
    if item.state == "working" or (not current and old in TRANSITIONAL):
        return old if old in TRANSITIONAL else State.UPDATING
    return State.RUNNING if item.state == "running" else State.STOPPED


def _record_vm(tx: Tx, row: Resource, before: State, after: VmStatus) -> None:
    if after.state == State.ERROR:
        operations.record(tx, row, "error", after.reason or "failed")
    elif after.state in (State.RUNNING, State.STOPPED) and before != after.state:
        operations.record(tx, row, "info", after.state.value)


def _disk(tx: Tx, row: Resource, item: Observed, waited_for: bool, with_snapshots: bool) -> None:
    leaving = row.gone or row.state == State.DELETING
    if item.state == "absent" and item.settled and leaving:
        finishing.finish_disk_deletion(tx, row)
        return
    if leaving or item.state == "absent":
        if item.reason:
            _explain(tx, row, item)
        return
    old = row.status_as(DiskStatus)
    settled = item.settled and item.generation >= row.generation
    state = State.ERROR if item.state == "error" else State.READY if settled else old.state
    kept = old.state == State.TRASHED or old.importing
    if kept:
        state = old.state
    new = old.model_copy(
        update={
            "state": state,
            "reason": old.reason if kept else item.reason,
            # Who has seen the disk may still not know; who could not see it says nothing of its snapshots either.
            "used_mib": old.used_mib if item.used_mib is None and item.snapshots is None else item.used_mib,
            "observed_generation": max(old.observed_generation, item.generation if item.settled else 0),
        }
    )
    _write(tx, row, old, new, item, waited_for)
    if with_snapshots:
        snapshots.observe(tx, row, item)
    if settled and item.state == "ready":
        _as_wanted(tx, row)


def _as_wanted(tx: Tx, row: Resource) -> None:
    """The disk is as it is asked for now, and no VM has it open that is not to have it."""
    spec = row.spec_as(DiskSpec)
    if not spec.flattened and spec.pool is None:
        return
    disk = find(tx, row.id, gone=True)
    if disk is None:
        return
    if spec.flattened:
        unrefer(tx, disk.id, role="snapshot")
        unrefer(tx, disk.id, role="image")
        if spec.snapshot is not None:  # it may be deleted now; a system disk is rebuilt from its image all the same
            disk = save(tx, disk, spec=spec.model_copy(update={"snapshot": None}))
    if spec.pool is not None:
        serving.released(tx, disk)


def _port(tx: Tx, row: Resource, item: Observed, waited_for: bool) -> None:
    leaving = row.gone or row.state == State.DELETING or row.spec_as(NicSpec).vm is None
    if leaving:
        if item.state == "absent" and item.settled and item.generation >= row.generation:
            finishing.finish_nic_removal(tx, row)
        elif item.reason:
            _explain(tx, row, item)
        return
    if item.state == "absent":
        return
    old = row.status_as(NicStatus)
    settled = item.settled and item.generation >= row.generation
    state = State.ERROR if item.state == "error" else State.READY if settled else old.state
    new = old.model_copy(
        update={
            "state": state,
            "reason": item.reason,
            "observed_generation": max(old.observed_generation, item.generation if item.settled else 0),
        }
    )
    _write(tx, row, old, new, item, waited_for)


def _former_port(tx: Tx, row: Resource, node: str, item: Observed) -> None:
    status = row.status_as(NicStatus)
    if node in status.former and item.state == "absent" and item.settled and item.generation >= row.generation:
        left = tuple(other for other in status.former if other != node)
        save(tx, row, status=status.model_copy(update={"former": left}), node=row.node)


def _write(
    tx: Tx,
    row: Resource,
    old: DiskStatus | NicStatus,
    new: DiskStatus | NicStatus,
    item: Observed,
    waited_for: bool,
) -> None:
    if new != old:
        if new.state == State.ERROR and (old.state, old.reason) != (new.state, new.reason):
            operations.record(tx, row, "error", new.reason or "failed")
        save(tx, row, status=new, observed_generation=new.observed_generation)
    if not item.settled or not waited_for:
        return
    if item.state == "error":
        finishing.fail(tx, row, item.generation, item.reason)
    elif isinstance(new, DiskStatus):
        # A nic's operations wait for every node of its VPC: see `network`.
        finishing.complete(tx, row, item.generation, item.reason or "done")


def _explain(tx: Tx, row: Resource, item: Observed) -> None:
    """Only the reason changes: of something that is on its way out."""
    old = row.status_as(status_type(Kind(row.kind)))
    if old.reason != item.reason:
        save(tx, row, status=old.model_copy(update={"reason": item.reason}))


def node_lost(tx: Tx, node: Resource, reason: str) -> None:
    """What a node ran is unknown while it is silent; VMs may well be running."""
    for row in on_node(tx, Kind.VM, node.id):
        if row.gone:
            continue
        old = row.status_as(VmStatus)
        if old.state in (State.RUNNING, State.STOPPED, State.ERROR):
            save(tx, row, status=old.model_copy(update={"state": State.UNKNOWN, "reason": reason}))
