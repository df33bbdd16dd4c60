"""Images made from disks: a snapshot, which the importer then reads through the disk's node and deletes."""

from __future__ import annotations

from typing import Any

from scloud.api.context import accepted, begin
from scloud.api.intents.common import refuse_while_leaving, side_name
from scloud.api.intents.disks import usable
from scloud.controllers import placement, snapshots
from scloud.controllers.image_import import SNAPSHOT
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import PREFIX, Kind, State
from scloud.model.specs import DiskSpec, ImageFormat, ImageSpec, VmSpec
from scloud.model.statuses import ImageStatus
from scloud.store.database import Tx
from scloud.store.resources import Resource, create, find, get, refer


def from_disk(tx: Tx, account: str, ref: str, name: str, login_user: str | None) -> dict[str, Any]:
    """Of a disk that is in use the image is as after a power cut: flush in the guest what must be in it."""
    return _make(tx, usable(get(tx, Kind.DISK, ref, account)), name, login_user)


def from_vm(tx: Tx, account: str, ref: str, name: str, login_user: str | None) -> dict[str, Any]:
    """Of the system disk of a VM that is off."""
    vm = get(tx, Kind.VM, ref, account)
    refuse_while_leaving(vm)
    if vm.state != State.STOPPED or vm.spec_as(VmSpec).power != "off":
        raise CloudError(ErrorKind.CONFLICT, f"vm '{vm.name}' is {vm.state}: stop it first, or make one of its disk")
    disks, _nics = placement.attached(tx, vm)
    disk = next((row for row in disks if row.spec_as(DiskSpec).system), None)
    if disk is None:
        raise CloudError(ErrorKind.CONFLICT, f"vm '{vm.name}' has no system disk")
    return _make(tx, usable(disk), name, login_user)


def _make(tx: Tx, disk: Resource, name: str, login_user: str | None) -> dict[str, Any]:
    if disk.node is None:
        raise CloudError(ErrorKind.CONFLICT, f"disk '{disk.name}' has no bytes yet; attach it to a VM first")
    origin = disk.spec_as(DiskSpec).image
    before = find(tx, origin) if origin else None
    old = before.spec_as(ImageSpec) if before is not None else None
    id = tx.new_id(PREFIX[Kind.SNAPSHOT])
    _op, snapshot = snapshots.take(tx, disk, side_name(tx, Kind.SNAPSHOT, disk.account, name, "source", id), id=id)
    spec = ImageSpec(
        source=f"{SNAPSHOT}{snapshot.id}",
        format=ImageFormat.RAW,
        architecture=old.architecture if old else "x86_64",
        login_user=login_user or (old.login_user if old else "root"),
    )
    status = ImageStatus(state=State.CREATING, reason="waiting for the snapshot of its disk")
    row = create(tx, Kind.IMAGE, disk.account, name, spec, status)
    refer(tx, row.id, snapshot.id, "snapshot")
    return accepted(begin(tx, "image.import", row), row)
