"""Disks."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Response

from scloud.api.commands import CommandDep
from scloud.api.context import CallerDep, ContextDep, send
from scloud.api.disk_schemas import (
    DiskCreate,
    DiskResize,
    LimitAsk,
    MoveAsk,
    RestoreAsk,
    RollbackAsk,
    ScheduleAsk,
)
from scloud.api.intents import disks
from scloud.api.reading import add_show, list_page, owner_for, router_for
from scloud.api.schemas import (
    Accepted,
    AllAccounts,
    AttachAsk,
    Cursor,
    Limit,
    NameFilter,
    RefFilter,
    RefPath,
    Rename,
    ResourcePage,
)
from scloud.model.ids import is_id
from scloud.model.kinds import Kind, State
from scloud.model.specs import DiskSpec
from scloud.store.database import Tx
from scloud.store.resources import get

router = router_for(Kind.DISK)
add_show(router, Kind.DISK)


@router.get("", response_model=ResourcePage)
async def list_disks(
    context: ContextDep,
    caller: CallerDep,
    limit: Limit = 100,
    cursor: Cursor = None,
    name: NameFilter = None,
    vm: RefFilter = None,
    state: State | None = None,
    all_accounts: AllAccounts = False,
) -> Response:
    """A page of disks, of one VM or in one state if asked; those in the trash only with `state=trashed`."""

    def read(tx: Tx) -> object:
        parent = get(tx, Kind.VM, vm, caller.account).id if vm else None
        filters = {"name": name, "parent": parent, "state": state}
        without = None if state is State.TRASHED else {"state": State.TRASHED}
        return list_page(tx, Kind.DISK, caller, all_accounts, limit, cursor, filters, without)

    return send(await context.store.read(read))


@router.post("", status_code=202, response_model=Accepted)
async def create_disk(body: DiskCreate, command: CommandDep) -> Response:
    """A data disk: empty, or with a snapshot's bytes; of a disk type, or of its VM's own node."""
    return await command.run(disks.create_disk, command.caller.account, body.name, body.spec)


@router.patch("/{ref}", status_code=202, response_model=Accepted)
async def rename_disk(ref: RefPath, body: Rename, command: CommandDep) -> Response:
    """Give it another name."""
    return await command.on(Kind.DISK, ref, disks.rename, body.name)


@router.delete("/{ref}", status_code=202, response_model=Accepted)
async def delete_disk(
    ref: RefPath,
    command: CommandDep,
    now: Annotated[bool, Query(description="not by way of the trash: its bytes are lost at once")] = False,
) -> Response:
    """Delete a disk that is attached to nothing. One of a pool waits in the trash for a while; a local one is lost."""
    trash_s = command.context.manager.settings.trash_hours * 3600
    return await command.on(Kind.DISK, ref, disks.delete, now=now, trash_s=trash_s)


@router.post("/{ref}/actions/attach", status_code=202, response_model=Accepted)
async def attach_disk(ref: RefPath, body: AttachAsk, command: CommandDep) -> Response:
    """Plug it into a VM, running or not."""
    return await command.on(Kind.DISK, ref, disks.attach, body.vm)


@router.post("/{ref}/actions/detach", status_code=202, response_model=Accepted)
async def detach_disk(ref: RefPath, command: CommandDep) -> Response:
    """Unplug it; unmount it in the guest first."""
    return await command.on(Kind.DISK, ref, disks.detach)


@router.post("/{ref}/actions/resize", status_code=202, response_model=Accepted)
async def resize_disk(ref: RefPath, body: DiskResize, command: CommandDep) -> Response:
    """Grow it, also while it is in use."""
    return await command.on(Kind.DISK, ref, disks.resize, body.size_mib)


@router.post("/{ref}/actions/limit", status_code=202, response_model=Accepted)
async def limit_disk(ref: RefPath, body: LimitAsk, command: CommandDep) -> Response:
    """What it may do a second, from now on; also while it is in use."""

    def limit(tx: Tx, account: str, ref: str) -> dict[str, Any]:
        return disks.limit(tx, account, ref, body.on(get(tx, Kind.DISK, ref, account).spec_as(DiskSpec).limits))

    return await command.on(Kind.DISK, ref, limit)


@router.post("/{ref}/actions/schedule", status_code=202, response_model=Accepted)
async def schedule_disk(ref: RefPath, body: ScheduleAsk, command: CommandDep) -> Response:
    """A snapshot every so often, of which the newest are kept."""
    return await command.on(Kind.DISK, ref, disks.set_schedule, body.schedule)


@router.post("/{ref}/actions/rollback", status_code=202, response_model=Accepted)
async def roll_back_disk(ref: RefPath, body: RollbackAsk, command: CommandDep) -> Response:
    """Bring back a snapshot's bytes; what was written since is lost. Its VM must be off, or the disk detached."""
    return await command.on(Kind.DISK, ref, disks.roll_back, body.snapshot)


@router.post("/{ref}/actions/flatten", status_code=202, response_model=Accepted)
async def flatten_disk(ref: RefPath, command: CommandDep) -> Response:
    """Copy what it shares with its image or snapshot, so that those can be deleted."""
    return await command.on(Kind.DISK, ref, disks.flatten)


@router.post("/{ref}/actions/restore", status_code=202, response_model=Accepted)
async def restore_disk(ref: RefPath, command: CommandDep, body: RestoreAsk | None = None) -> Response:
    """Have it back from the trash, by its id or former name; under another name if that is taken."""

    def restore(tx: Tx) -> dict[str, Any]:
        account = owner_for(tx, Kind.DISK, ref, command.caller) if is_id(ref) else command.caller.account
        return disks.restore(tx, account, ref, body.name if body else None)

    return await command.run(restore)


@router.post("/{ref}/actions/move", status_code=202, response_model=Accepted)
async def move_disk(ref: RefPath, body: MoveAsk, command: CommandDep) -> Response:
    """To another type's pool, by copy; detached or with its VM off. The answer's resource takes the disk's place."""
    return await command.on(Kind.DISK, ref, disks.move, body.type)
