"""Network interfaces."""

from __future__ import annotations

from fastapi import Response

from scloud.api.commands import CommandDep
from scloud.api.context import CallerDep, ContextDep, send
from scloud.api.intents import networks
from scloud.api.reading import add_show, list_page, router_for
from scloud.api.schemas import (
    Accepted,
    AllAccounts,
    AttachAsk,
    Cursor,
    Limit,
    NameFilter,
    NicCreate,
    NicPatch,
    RefFilter,
    RefPath,
    ResourcePage,
)
from scloud.model.errors import invalid
from scloud.model.kinds import Kind
from scloud.store.database import Tx
from scloud.store.resources import find_many, get, sources_of

router = router_for(Kind.NIC)
add_show(router, Kind.NIC)


@router.get("", response_model=ResourcePage)
async def list_nics(
    context: ContextDep,
    caller: CallerDep,
    limit: Limit = 100,
    cursor: Cursor = None,
    name: NameFilter = None,
    vm: RefFilter = None,
    vpc: RefFilter = None,
    subnet: RefFilter = None,
    all_accounts: AllAccounts = False,
) -> Response:
    """A page of nics; of one VM, VPC or subnet if asked."""

    def read(tx: Tx) -> object:
        owner, role = None, ""
        if vm is not None:
            owner, role = get(tx, Kind.VM, vm, caller.account), "vm"
        elif subnet is not None:
            owner, role = get(tx, Kind.SUBNET, subnet, caller.account), "subnet"
        if owner is not None:
            rows = find_many(tx, sources_of(tx, owner.id, role), gone=False)
            mine = [row for row in rows.values() if row.kind == Kind.NIC and (cursor is None or row.id > cursor)]
            mine = [row for row in mine if name is None or row.name == name]
            mine.sort(key=lambda row: row.id)
            following = mine[limit - 1].id if len(mine) > limit else None
            return {"items": [row.public() for row in mine[:limit]], "next": following}
        parent = get(tx, Kind.VPC, vpc, caller.account).id if vpc else None
        return list_page(tx, Kind.NIC, caller, all_accounts, limit, cursor, {"name": name, "parent": parent})

    return send(await context.store.read(read))


@router.post("", status_code=202, response_model=Accepted)
async def create_nic(body: NicCreate, command: CommandDep) -> Response:
    """A nic with an address of its own, attached to a VM if one is named."""
    ask = body.spec
    return await command.run(
        networks.create_nic, command.caller.account, body.name, ask.subnet, ask.ip, ask.security_groups, ask.vm
    )


@router.patch("/{ref}", status_code=202, response_model=Accepted)
async def change_nic(ref: RefPath, body: NicPatch, command: CommandDep) -> Response:
    """Another name, or other security groups."""
    if body.name is None and body.spec is None:
        raise invalid("name", "give a name, spec.security_groups or both")
    groups = body.spec.security_groups if body.spec else None
    return await command.on(Kind.NIC, ref, networks.change_nic, body.name, groups)


@router.delete("/{ref}", status_code=202, response_model=Accepted)
async def delete_nic(ref: RefPath, command: CommandDep) -> Response:
    """Delete a nic that is attached to nothing."""
    return await command.on(Kind.NIC, ref, networks.delete_nic)


@router.post("/{ref}/actions/attach", status_code=202, response_model=Accepted)
async def attach_nic(ref: RefPath, body: AttachAsk, command: CommandDep) -> Response:
    """Plug it into a VM, running or not."""
    return await command.on(Kind.NIC, ref, networks.attach_nic, body.vm)


@router.post("/{ref}/actions/detach", status_code=202, response_model=Accepted)
async def detach_nic(ref: RefPath, command: CommandDep) -> Response:
    """Unplug it; it keeps its address and MAC."""
    return await command.on(Kind.NIC, ref, networks.detach_nic)
