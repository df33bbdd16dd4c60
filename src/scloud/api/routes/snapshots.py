"""Snapshots of disks."""

from __future__ import annotations

from fastapi import Request, Response

from scloud.api.context import CallerDep, ContextDep, IdempotencyKey, accepted, begin_and_end, send, write
from scloud.api.disk_schemas import SnapshotCreate
from scloud.api.intents import snapshots
from scloud.api.reading import add_show, fetch, list_page, owner_for, router_for
from scloud.api.schemas import (
    Accepted,
    AllAccounts,
    Cursor,
    Limit,
    NameFilter,
    RefFilter,
    RefPath,
    Rename,
    ResourcePage,
)
from scloud.model.kinds import Kind
from scloud.store.database import Tx

router = router_for(Kind.SNAPSHOT)
add_show(router, Kind.SNAPSHOT)


@router.get("", response_model=ResourcePage)
async def list_snapshots(
    context: ContextDep,
    caller: CallerDep,
    limit: Limit = 100,
    cursor: Cursor = None,
    name: NameFilter = None,
    disk: RefFilter = None,
    all_accounts: AllAccounts = False,
) -> Response:
    """A page of snapshots, of one disk if asked, in the order they were taken."""

    def read(tx: Tx) -> object:
        parent = fetch(tx, Kind.DISK, disk, caller).id if disk else None
        return list_page(tx, Kind.SNAPSHOT, caller, all_accounts, limit, cursor, {"name": name, "parent": parent})

    return send(await context.store.read(read))


@router.post("", status_code=202, response_model=Accepted)
async def create_snapshot(
    body: SnapshotCreate, request: Request, context: ContextDep, caller: CallerDep, key: IdempotencyKey = None
) -> Response:
    """Keep a disk's bytes as they are now, also while it is in use."""

    def create(tx: Tx) -> dict[str, object]:
        return snapshots.create(tx, caller.account, body.name, body.spec.disk)

    return await write(context, caller, create, request=request, key=key)


@router.patch("/{ref}", status_code=202, response_model=Accepted)
async def rename_snapshot(ref: RefPath, body: Rename, context: ContextDep, caller: CallerDep) -> Response:
    """Give it another name."""

    def rename(tx: Tx) -> dict[str, object]:
        row = snapshots.rename(tx, owner_for(tx, Kind.SNAPSHOT, ref, caller), ref, body.name)
        return accepted(begin_and_end(tx, "snapshot.rename", row), row)

    return await write(context, caller, rename)


@router.delete("/{ref}", status_code=202, response_model=Accepted)
async def delete_snapshot(ref: RefPath, context: ContextDep, caller: CallerDep) -> Response:
    """Delete it; refused, with their list, while disks that were made from it depend on it."""
    return await write(context, caller, lambda tx: snapshots.delete(tx, owner_for(tx, Kind.SNAPSHOT, ref, caller), ref))
