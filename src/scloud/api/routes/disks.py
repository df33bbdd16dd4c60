"""Disks."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request, Response

from scloud.api.context import CallerDep, ContextDep, IdempotencyKey, send, write
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
from scloud.api.reading import add_show, fetch, list_page, owner_for, router_for
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
async def create_disk(
    body: DiskCreate, request: Request, context: ContextDep, caller: CallerDep, key: IdempotencyKey = None
) -> Response:
    """A data disk: empty, or with a snapshot's bytes; of a disk type, or of its VM's own node."""
    return await write(
        context,
        caller,
        lambda tx: disks.create_disk(tx, caller.account, body.name, body.spec),
        request=request,
        key=key,
    )


@router.patch("/{ref}", status_code=202, response_model=Accepted)
async def rename_disk(ref: RefPath, body: Rename, context: ContextDep, caller: CallerDep) -> Response:
    """Give it another name."""
    return await write(
        context,
        caller,
        lambda tx: disks.rename(tx, owner_for(tx, Kind.DISK, ref, caller), ref, body.name),
    )


@router.delete("/{ref}", status_code=202, response_model=Accepted)
async def delete_disk(
    ref: RefPath,
    context: ContextDep,
    caller: CallerDep,
    now: Annotated[bool, Query(description="not by way of the trash: its bytes are lost at once")] = False,
) -> Response:
    """Delete a disk that is attached to nothing. One of a pool waits in the trash for a while; a local one is lost."""
    trash_s = context.manager.settings.trash_hours * 3600

    def delete(tx: Tx) -> dict[str, Any]:
        return disks.delete(tx, owner_for(tx, Kind.DISK, ref, caller), ref, now=now, trash_s=trash_s)

    return await write(context, caller, delete)


@router.post("/{ref}/actions/attach", status_code=202, response_model=Accepted)
async def attach_disk(
    request: Request, ref: RefPath, body: AttachAsk, context: ContextDep, caller: CallerDep, key: IdempotencyKey = None
) -> Response:
    """Plug it into a VM, running or not."""
    return await write(
        context,
        caller,
        lambda tx: disks.attach(tx, owner_for(tx, Kind.DISK, ref, caller), ref, body.vm),
        request=request,
        key=key,
    )


@router.post("/{ref}/actions/detach", status_code=202, response_model=Accepted)
async def detach_disk(
    request: Request, ref: RefPath, context: ContextDep, caller: CallerDep, key: IdempotencyKey = None
) -> Response:
    """Unplug it; unmount it in the guest first."""
    return await write(
        context,
        caller,
        lambda tx: disks.detach(tx, owner_for(tx, Kind.DISK, ref, caller), ref),
        request=request,
        key=key,
    )


@router.post("/{ref}/actions/resize", status_code=202, response_model=Accepted)
async def resize_disk(
    request: Request, ref: RefPath, body: DiskResize, context: ContextDep, caller: CallerDep, key: IdempotencyKey = None
) -> Response:
    """Grow it, also while it is in use."""
    return await write(
        context,
        caller,
        lambda tx: disks.resize(tx, owner_for(tx, Kind.DISK, ref, caller), ref, body.size_mib),
        request=request,
        key=key,
    )


@router.post("/{ref}/actions/limit", status_code=202, response_model=Accepted)
async def limit_disk(
    request: Request, ref: RefPath, body: LimitAsk, context: ContextDep, caller: CallerDep, key: IdempotencyKey = None
) -> Response:
    """What it may do a second, from now on; also while it is in use."""

    def limit(tx: Tx) -> dict[str, Any]:
        row = fetch(tx, Kind.DISK, ref, caller)
        return disks.limit(tx, owner_for(tx, Kind.DISK, ref, caller), ref, body.on(row.spec_as(DiskSpec).limits))

    return await write(context, caller, limit, request=request, key=key)


@router.post("/{ref}/actions/schedule", status_code=202, response_model=Accepted)
async def schedule_disk(
    request: Request,
    ref: RefPath,
    body: ScheduleAsk,
    context: ContextDep,
    caller: CallerDep,
    key: IdempotencyKey = None,
) -> Response:
    """A snapshot every so often, of which the newest are kept."""
    return await write(
        context,
        caller,
        lambda tx: disks.set_schedule(tx, owner_for(tx, Kind.DISK, ref, caller), ref, body.schedule),
        request=request,
        key=key,
    )


@router.post("/{ref}/actions/rollback", status_code=202, response_model=Accepted)
async def roll_back_disk(
    request: Request,
    ref: RefPath,
    body: RollbackAsk,
    context: ContextDep,
    caller: CallerDep,
    key: IdempotencyKey = None,
) -> Response:
    """Bring back a snapshot's bytes; what was written since is lost. Its VM must be off, or the disk detached."""
    return await write(
        context,
        caller,
        lambda tx: disks.roll_back(tx, owner_for(tx, Kind.DISK, ref, caller), ref, body.snapshot),
        request=request,
        key=key,
    )


@router.post("/{ref}/actions/flatten", status_code=202, response_model=Accepted)
async def flatten_disk(
    request: Request, ref: RefPath, context: ContextDep, caller: CallerDep, key: IdempotencyKey = None
) -> Response:
    """Copy what it shares with its image or snapshot, so that those can be deleted."""
    return await write(
        context,
        caller,
        lambda tx: disks.flatten(tx, owner_for(tx, Kind.DISK, ref, caller), ref),
        request=request,
        key=key,
    )


@router.post("/{ref}/actions/restore", status_code=202, response_model=Accepted)
async def restore_disk(
    request: Request,
    ref: RefPath,
    context: ContextDep,
    caller: CallerDep,
    body: RestoreAsk | None = None,
    key: IdempotencyKey = None,
) -> Response:
    """Have it back from the trash, by its id or former name; under another name if that is taken."""

    def restore(tx: Tx) -> dict[str, Any]:
        account = owner_for(tx, Kind.DISK, ref, caller) if is_id(ref) else caller.account
        return disks.restore(tx, account, ref, body.name if body else None)

    return await write(context, caller, restore, request=request, key=key)


@router.post("/{ref}/actions/move", status_code=202, response_model=Accepted)
async def move_disk(
    request: Request, ref: RefPath, body: MoveAsk, context: ContextDep, caller: CallerDep, key: IdempotencyKey = None
) -> Response:
    """To another type's pool, by copy; detached or with its VM off. The answer's resource takes the disk's place."""
    return await write(
        context,
        caller,
        lambda tx: disks.move(tx, owner_for(tx, Kind.DISK, ref, caller), ref, body.type),
        request=request,
        key=key,
    )
