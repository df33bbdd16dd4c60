"""Security groups and their rules."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Response

from scloud.api.commands import CommandDep
from scloud.api.intents import networks
from scloud.api.reading import add_reading, router_for
from scloud.api.routes.networks import add_plain_changes
from scloud.api.schemas import Accepted, GroupCreate, RefPath
from scloud.model.fields import ID_CHARACTERS
from scloud.model.kinds import Kind
from scloud.model.specs import RuleSpec

router = router_for(Kind.SECURITY_GROUP)
add_reading(router, Kind.SECURITY_GROUP)
add_plain_changes(router, Kind.SECURITY_GROUP)
RuleId = Annotated[str, Path(min_length=1, max_length=32, pattern=ID_CHARACTERS)]


@router.post("", status_code=202, response_model=Accepted)
async def create_security_group(body: GroupCreate, command: CommandDep) -> Response:
    """A group that lets everything out and, inwards, only its own members."""
    return await command.run(networks.create_group, command.caller.account, body.name)


@router.post("/{ref}/rules", status_code=202, response_model=Accepted)
async def add_rule(ref: RefPath, body: RuleSpec, command: CommandDep) -> Response:
    """Allow something; it takes effect on running VMs when the operation is done."""
    return await command.on(Kind.SECURITY_GROUP, ref, networks.add_rule, body)


@router.delete("/{ref}/rules/{rule}", status_code=202, response_model=Accepted)
async def remove_rule(ref: RefPath, rule: RuleId, command: CommandDep) -> Response:
    """Take a permission back; connections that only it allowed are cut when the operation is done."""
    return await command.on(Kind.SECURITY_GROUP, ref, networks.remove_rule, rule)
