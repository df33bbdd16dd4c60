"""What every route has at hand: the manager, and who is calling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

import orjson
from fastapi import Depends, Response
from starlette.requests import HTTPConnection

from scloud.controllers.link_server import LinkServer
from scloud.controllers.manager import Manager
from scloud.controllers.settings import seconds_for
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import Kind
from scloud.model.specs import AccountSpec
from scloud.store import operations, tokens
from scloud.store.database import Store, Tx
from scloud.store.operations import Operation
from scloud.store.resources import Resource, find

COOKIE = "scloud_token"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking. `scope(all)` is what queries are limited to: None is everything, for administrators only."""

    account: str
    account_name: str
    admin: bool

    def scope(self, all_accounts: bool = False) -> str | None:
        if all_accounts:
            self.need_admin()
            return None
        return self.account

    def need_admin(self) -> None:
        if not self.admin:
            raise CloudError(ErrorKind.FORBIDDEN, "only an administrator may do this")


class Context:
    """One per process, kept at `app.state.context`."""

    def __init__(self, manager: Manager, link: LinkServer, *, join_address: str, ca_pin: str) -> None:
        self.manager = manager
        self.link = link
        self.join_address = join_address
        self.ca_pin = ca_pin
        self._callers: dict[str, tuple[Caller, float | None]] = {}
        manager.store.listeners.append(self._forget_callers)

    @property
    def store(self) -> Store:
        return self.manager.store

    def _forget_callers(self, keys: Any) -> None:
        """A token or account that changed is looked up anew."""
        if any(key.startswith(("token/", "account/")) for key in keys):
            self._callers.clear()

    async def caller(self, connection: HTTPConnection) -> Caller:
        """UNAUTHENTICATED unless a valid token comes with the request."""
        secret = _secret(connection)
        if secret is None:
            raise CloudError(
                ErrorKind.UNAUTHENTICATED,
                "a token is needed: send `Authorization: Bearer TOKEN` (`scloud token create`)",
            )
        digest = tokens.digest(secret)
        known = self._callers.get(digest)
        if known is not None and (known[1] is None or known[1] > self.store.clock()):
            return known[0]
        caller, expires = await self.store.read(lambda tx: _look_up(tx, secret))
        if len(self._callers) > 10_000:
            self._callers.clear()
        self._callers[digest] = (caller, expires)
        return caller


def _secret(connection: HTTPConnection) -> str | None:
    header = connection.headers.get("authorization", "")
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer" and value:
        return value.strip()
    return connection.cookies.get(COOKIE) if _from_our_page(connection) else None


def _from_our_page(connection: HTTPConnection) -> bool:
    """Browsers send the cookie for pages on other ports of this host too; those name another origin."""
    origin = connection.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == connection.headers.get("host")


def _look_up(tx: Tx, secret: str) -> tuple[Caller, float | None]:
    token = tokens.find(tx, secret)
    account = find(tx, token.account) if token else None
    if token is None or account is None or account.kind != Kind.ACCOUNT:
        raise CloudError(ErrorKind.UNAUTHENTICATED, "this token is unknown or out of date; ask for a new one")
    return Caller(account.id, account.name, account.spec_as(AccountSpec).admin), token.expires_at


def context_of(connection: HTTPConnection) -> Context:
    context: Context = connection.app.state.context
    return context


async def get_context(connection: HTTPConnection) -> Context:
    """Asynchronous because a plain function would be run in a thread, for each request."""
    return context_of(connection)


async def get_caller(connection: HTTPConnection) -> Caller:
    return await context_of(connection).caller(connection)


async def get_admin(connection: HTTPConnection) -> Caller:
    caller = await get_caller(connection)
    caller.need_admin()
    return caller


ContextDep = Annotated[Context, Depends(get_context)]
CallerDep = Annotated[Caller, Depends(get_caller)]
AdminDep = Annotated[Caller, Depends(get_admin)]


def send(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status_code=status, media_type="application/json")


def accepted(op: Operation, row: Resource, **more: Any) -> dict[str, Any]:
    """The answer to every write."""
    return {"operation": op.public(), "resource": row.public(), **more}


def begin(tx: Tx, action: str, row: Resource, *, progress: int = 0, message: str = "accepted") -> Operation:
    return operations.begin(tx, action, row, seconds=seconds_for(action), progress=progress, message=message)


def begin_and_end(tx: Tx, action: str, row: Resource, message: str = "done") -> Operation:
    """For what is true as soon as it is written."""
    op = begin(tx, action, row)
    return operations.end(tx, op, operations.OperationState.DONE, message)
