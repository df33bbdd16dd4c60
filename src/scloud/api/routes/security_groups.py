"""Security groups and their rules."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Request, Response

from scloud.api.context import CallerDep, ContextDep, IdempotencyKey, write
from scloud.api.intents import networks
from scloud.api.reading import add_reading, owner_for, router_for
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
async def create_security_group(
    body: GroupCreate, request: Request, context: ContextDep, caller: CallerDep, key: IdempotencyKey = None
) -> Response:
    """A group that lets everything out and, inwards, only its own members."""
    return await write(
        context, caller, lambda tx: networks.create_group(tx, caller.account, body.name), request=request, key=key
    )


@router.post("/{ref}/rules", status_code=202, response_model=Accepted)
async def add_rule(
    request: Request, ref: RefPath, body: RuleSpec, context: ContextDep, caller: CallerDep, key: IdempotencyKey = None
) -> Response:
    """Allow something; it takes effect on running VMs when the operation is done."""
    return await write(
        context,
        caller,
        lambda tx: networks.add_rule(tx, owner_for(tx, Kind.SECURITY_GROUP, ref, caller), ref, body),
        request=request,
        key=key,
    )


@router.delete("/{ref}/rules/{rule}", status_code=202, response_model=Accepted)
async def remove_rule(ref: RefPath, rule: RuleId, context: ContextDep, caller: CallerDep) -> Response:
    """Take a permission back; connections that only it allowed are cut when the operation is done."""
    return await write(
        context,
        caller,
        lambda tx: networks.remove_rule(tx, owner_for(tx, Kind.SECURITY_GROUP, ref, caller), ref, rule),
    )
