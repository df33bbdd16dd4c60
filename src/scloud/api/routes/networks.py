"""VPCs and subnets."""

from __future__ import annotations

from fastapi import APIRouter, Response

from scloud.api.commands import CommandDep
from scloud.api.context import CallerDep, ContextDep, send
from scloud.api.intents import networks
from scloud.api.reading import add_reading, add_show, list_page, owner_for, router_for
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
    SubnetCreate,
    VpcCreate,
)
from scloud.model.kinds import Kind
from scloud.store.database import Tx
from scloud.store.resources import get

vpcs = router_for(Kind.VPC)
add_reading(vpcs, Kind.VPC)


@vpcs.post("", status_code=202, response_model=Accepted)
async def create_vpc(body: VpcCreate, command: CommandDep) -> Response:
    """An isolated network; its VNI is chosen at random unless given."""
    return await command.run(networks.create_vpc, command.caller.account, body.name, body.spec.vni)


subnets = router_for(Kind.SUBNET)
add_show(subnets, Kind.SUBNET)


@subnets.get("", response_model=ResourcePage)
async def list_subnets(
    context: ContextDep,
    caller: CallerDep,
    limit: Limit = 100,
    cursor: Cursor = None,
    name: NameFilter = None,
    vpc: RefFilter = None,
    all_accounts: AllAccounts = False,
) -> Response:
    """A page of subnets, of one VPC if asked."""

    def read(tx: Tx) -> object:
        parent = get(tx, Kind.VPC, vpc, caller.account).id if vpc else None
        return list_page(tx, Kind.SUBNET, caller, all_accounts, limit, cursor, {"name": name, "parent": parent})

    return send(await context.store.read(read))


@subnets.post("", status_code=202, response_model=Accepted)
async def create_subnet(body: SubnetCreate, command: CommandDep) -> Response:
    """A range of addresses in a VPC. The first is the gateway's, the second DHCP's and DNS's."""
    return await command.run(networks.create_subnet, command.caller.account, body.name, body.spec.vpc, body.spec.cidr)


def add_plain_changes(router: APIRouter, kind: Kind) -> None:
    """Renaming and deleting of what lives in the database alone."""

    @router.patch("/{ref}", status_code=202, response_model=Accepted, operation_id=f"rename_{kind.name.lower()}")
    async def rename(ref: RefPath, body: Rename, command: CommandDep) -> Response:
        """Give it another name."""
        return await command.run(
            lambda tx: networks.rename_plain(tx, kind, owner_for(tx, kind, ref, command.caller), ref, body.name)
        )

    @router.delete("/{ref}", status_code=202, response_model=Accepted, operation_id=f"delete_{kind.name.lower()}")
    async def delete(ref: RefPath, command: CommandDep) -> Response:
        """Delete it; refused, with the list of users, while something uses it."""
        return await command.run(
            lambda tx: networks.delete_plain(tx, kind, owner_for(tx, kind, ref, command.caller), ref)
        )


add_plain_changes(vpcs, Kind.VPC)
add_plain_changes(subnets, Kind.SUBNET)
