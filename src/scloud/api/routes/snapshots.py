"""Snapshots of disks."""

from __future__ import annotations

from fastapi import Response

from scloud.api.commands import CommandDep
from scloud.api.context import CallerDep, ContextDep, accepted, begin_and_end, send
from scloud.api.disk_schemas import SnapshotCreate
from scloud.api.intents import snapshots
from scloud.api.reading import add_show, fetch, list_page, router_for
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
async def create_snapshot(body: SnapshotCreate, command: CommandDep) -> Response:
    """Keep a disk's bytes as they are now, also while it is in use."""
    return await command.run(snapshots.create, command.caller.account, body.name, body.spec.disk)


@router.patch("/{ref}", status_code=202, response_model=Accepted)
async def rename_snapshot(ref: RefPath, body: Rename, command: CommandDep) -> Response:
    """Give it another name."""

    def rename(tx: Tx, account: str, ref: str) -> dict[str, object]:
        row = snapshots.rename(tx, account, ref, body.name)
        return accepted(begin_and_end(tx, "snapshot.rename", row), row)

    return await command.on(Kind.SNAPSHOT, ref, rename)


@router.delete("/{ref}", status_code=202, response_model=Accepted)
async def delete_snapshot(ref: RefPath, command: CommandDep) -> Response:
    """Delete it; refused, with their list, while disks that were made from it depend on it."""
    return await command.on(Kind.SNAPSHOT, ref, snapshots.delete)
