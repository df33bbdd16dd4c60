"""Disks."""

from __future__ import annotations

from fastapi import Request, Response

from scloud.api.context import CallerDep, ContextDep, IdempotencyKey, send, write
from scloud.api.intents import disks, networks
from scloud.api.reading import add_show, list_page, owner_for, router_for
from scloud.api.schemas import (
    Accepted,
    AllAccounts,
    AttachAsk,
    Cursor,
    DiskAsk,
    DiskCreate,
    Limit,
    NameFilter,
    RefFilter,
    RefPath,
    Rename,
    ResourcePage,
)
from scloud.model.kinds import Kind
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
    all_accounts: AllAccounts = False,
) -> Response:
    """A page of disks, of one VM if asked."""

    def read(tx: Tx) -> object:
        parent = get(tx, Kind.VM, vm, caller.account).id if vm else None
        return list_page(tx, Kind.DISK, caller, all_accounts, limit, cursor, {"name": name, "parent": parent})

    return send(await context.store.read(read))


@router.post("", status_code=202, response_model=Accepted)
async def create_disk(
    body: DiskCreate, request: Request, context: ContextDep, caller: CallerDep, key: IdempotencyKey = None
) -> Response:
    """An empty data disk."""
    return await write(
        context,
        caller,
        lambda tx: disks.create_disk(tx, caller.account, body.name, body.spec.size_mib),
        request=request,
        key=key,
    )


@router.patch("/{ref}", status_code=202, response_model=Accepted)
async def rename_disk(ref: RefPath, body: Rename, context: ContextDep, caller: CallerDep) -> Response:
    """Give it another name."""
    return await write(
        context,
        caller,
        lambda tx: networks.rename_plain(tx, Kind.DISK, owner_for(tx, Kind.DISK, ref, caller), ref, body.name),
    )


@router.delete("/{ref}", status_code=202, response_model=Accepted)
async def delete_disk(ref: RefPath, context: ContextDep, caller: CallerDep) -> Response:
    """Delete a disk that is attached to nothing; its bytes are lost."""
    return await write(context, caller, lambda tx: disks.delete(tx, owner_for(tx, Kind.DISK, ref, caller), ref))


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
    request: Request, ref: RefPath, body: DiskAsk, context: ContextDep, caller: CallerDep, key: IdempotencyKey = None
) -> Response:
    """Grow it, also while it is in use."""
    return await write(
        context,
        caller,
        lambda tx: disks.resize(tx, owner_for(tx, Kind.DISK, ref, caller), ref, body.size_mib),
        request=request,
        key=key,
    )
