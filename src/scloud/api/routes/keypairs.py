"""SSH keypairs (public halves) and placement groups: kept, named, used at creation."""

from __future__ import annotations

from fastapi import Response

from scloud.api.commands import CommandDep
from scloud.api.context import accepted, begin_and_end
from scloud.api.reading import add_reading, router_for
from scloud.api.routes.networks import add_plain_changes
from scloud.api.schemas import Accepted, KeypairCreate, PlacementGroupCreate
from scloud.model.base import Value
from scloud.model.kinds import Kind, State
from scloud.model.specs import KeypairSpec, PlacementGroupSpec
from scloud.model.statuses import Status
from scloud.store.database import Tx
from scloud.store.resources import create

keypairs = router_for(Kind.KEYPAIR)
placement_groups = router_for(Kind.PLACEMENT_GROUP)
for _router, _kind in ((keypairs, Kind.KEYPAIR), (placement_groups, Kind.PLACEMENT_GROUP)):
    add_reading(_router, _kind)
    add_plain_changes(_router, _kind)


def _keep(tx: Tx, kind: Kind, account: str, name: str, spec: Value) -> dict[str, object]:
    row = create(tx, kind, account, name, spec, Status(state=State.READY))
    return accepted(begin_and_end(tx, f"{kind}.create", row), row)


@keypairs.post("", status_code=202, response_model=Accepted)
async def create_keypair(body: KeypairCreate, command: CommandDep) -> Response:
    """Keep a public key, to be put into VMs at their creation."""
    spec = KeypairSpec(public_key=body.spec.public_key)
    return await command.run(_keep, Kind.KEYPAIR, command.caller.account, body.name, spec)


@placement_groups.post("", status_code=202, response_model=Accepted)
async def create_placement_group(body: PlacementGroupCreate, command: CommandDep) -> Response:
    """VMs to be kept on different nodes, or in different racks: always (`hard`) or where possible (`soft`)."""
    spec = PlacementGroupSpec(policy=body.spec.policy, over=body.spec.over)
    return await command.run(_keep, Kind.PLACEMENT_GROUP, command.caller.account, body.name, spec)
