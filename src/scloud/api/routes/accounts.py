"""Accounts and tokens."""

from __future__ import annotations

import secrets

from fastapi import APIRouter, Response

from scloud.api.commands import AdminCommandDep
from scloud.api.context import CallerDep, ContextDep, accepted, begin_and_end, send
from scloud.api.intents.common import resolve
from scloud.api.intents.networks import DEFAULT_GROUP, make_group
from scloud.api.reading import add_reading, router_for
from scloud.api.schemas import (
    PROBLEMS,
    Accepted,
    AccountCreate,
    AllAccounts,
    Answer,
    Cursor,
    Limit,
    RefPath,
    TokenCreate,
)
from scloud.model.errors import CloudError, ErrorKind, not_found
from scloud.model.kinds import Kind, State
from scloud.model.specs import AccountSpec
from scloud.model.statuses import Status
from scloud.store import tokens
from scloud.store.database import Tx
from scloud.store.resources import SYSTEM, Resource, create, get, page, remove

accounts = router_for(Kind.ACCOUNT)
add_reading(accounts, Kind.ACCOUNT)


class TokenOut(Answer):
    id: str
    name: str
    account: str
    created_at: float
    expires_at: float | None


class TokenMade(Answer):
    token: TokenOut
    secret: str


class TokenPage(Answer):
    items: list[TokenOut]
    next: str | None


class WhoAmI(Answer):
    account: dict[str, str]
    admin: bool


def make_account(tx: Tx, name: str, spec: AccountSpec) -> Resource:
    """An account comes with a security group for nics that ask for none."""
    row = create(tx, Kind.ACCOUNT, SYSTEM, name, spec, Status(state=State.READY))
    make_group(tx, row.id, DEFAULT_GROUP)
    return row


@accounts.post("", status_code=202, response_model=Accepted)
async def create_account(body: AccountCreate, command: AdminCommandDep) -> Response:
    """A tenant. Make tokens for it with POST /tokens."""

    def make(tx: Tx) -> dict[str, object]:
        row = make_account(tx, body.name, AccountSpec(admin=body.spec.admin))
        return accepted(begin_and_end(tx, "account.create", row), row)

    return await command.run(make)


@accounts.delete("/{ref}", status_code=202, response_model=Accepted)
async def delete_account(ref: RefPath, command: AdminCommandDep) -> Response:
    """Delete an empty account and its tokens."""

    def delete(tx: Tx) -> dict[str, object]:
        row = get(tx, Kind.ACCOUNT, ref, SYSTEM)
        if row.id == command.caller.account:
            raise CloudError(ErrorKind.CONFLICT, "this is the account you are asking with; use another administrator's")
        mine = []
        for kind in Kind:
            mine += page(tx, kind, row.id, limit=6)[0]
        own = [item for item in mine if not (item.kind == Kind.SECURITY_GROUP and item.name == DEFAULT_GROUP)]
        if own:
            names = [f"{item.kind} {item.name}" for item in own]
            raise CloudError(
                ErrorKind.IN_USE,
                f"account '{row.name}' still has {', '.join(names[:5])}; delete them first",
                users=names,
            )
        for item in mine:
            remove(tx, item)
        tokens.revoke_all(tx, row.id)
        op = begin_and_end(tx, "account.delete", row, "deleted")
        remove(tx, row)
        return accepted(op, row)

    return await command.run(delete)


router = APIRouter(tags=["tokens"], responses=PROBLEMS)


@router.get("/tokens", response_model=TokenPage)
async def list_tokens(
    context: ContextDep, caller: CallerDep, limit: Limit = 100, cursor: Cursor = None, all_accounts: AllAccounts = False
) -> Response:
    """The account's tokens, without their secrets, which nobody knows any more."""
    scope = caller.scope(all_accounts)
    rows, following = await context.store.read(lambda tx: tokens.page(tx, scope, limit=limit, after=cursor))
    return send({"items": [row.public() for row in rows], "next": following})


@router.post("/tokens", status_code=201, response_model=TokenMade)
async def create_token(body: TokenCreate, context: ContextDep, caller: CallerDep) -> Response:
    """A new secret, shown this once; for another account only by an administrator."""
    secret = f"sct-{secrets.token_urlsafe(32)}"

    def make(tx: Tx) -> dict[str, object]:
        account = caller.account
        if body.account is not None:
            caller_owns = body.account in (caller.account, caller.account_name)
            if not caller_owns:
                caller.need_admin()
                account = resolve(tx, "account", Kind.ACCOUNT, body.account, SYSTEM).id
        token = tokens.add(tx, account, body.name, secret, ttl_s=body.ttl_s)
        return {"token": token.public(), "secret": secret}

    return send(await context.store.write(make), 201)


@router.delete("/tokens/{ref}", status_code=204)
async def delete_token(ref: RefPath, context: ContextDep, caller: CallerDep) -> Response:
    """Revoke a token at once."""
    scope = None if caller.admin else caller.account
    if not await context.store.write(lambda tx: tokens.revoke(tx, ref, scope)):
        raise not_found("token", ref)
    return Response(status_code=204)


@router.get("/whoami", response_model=WhoAmI)
async def whoami(caller: CallerDep) -> Response:
    """Whose token this is."""
    return send({"account": {"id": caller.account, "name": caller.account_name}, "admin": caller.admin})
