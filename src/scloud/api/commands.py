"""Requests that change something: whose they are, what they act on, and how often they count."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Concatenate, ParamSpec

import orjson
from fastapi import Depends, Header, Request, Response

from scloud.api.context import AdminDep, Caller, CallerDep, Context, ContextDep
from scloud.api.reading import owner_for
from scloud.model.fields import worded
from scloud.model.kinds import Kind
from scloud.store import tokens
from scloud.store.database import Tx

P = ParamSpec("P")
Made = Mapping[str, Any]
"""What a change gives back: an operation and a resource (`accepted`)."""
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=128,
        pattern=worded(r"^[\x21-\x7e]+$", "of visible ASCII characters only"),
        description="repeat a request with the same key and it is carried out once",
    ),
]


class Command:
    """One such request. It is carried out in one transaction; with an Idempotency-Key, once however often it is asked.

    `on` acts on a resource of an account, `run` on anything else.
    """

    def __init__(self, request: Request, context: Context, caller: Caller, key: str | None) -> None:
        self.context = context
        self.caller = caller
        self._request = request
        self._key = key

    async def run(self, change: Callable[Concatenate[Tx, P], Made], /, *args: P.args, **kwargs: P.kwargs) -> Response:
        """The answer to it: 202, and what the change has made."""
        return await self._carry_out(lambda tx: change(tx, *args, **kwargs))

    async def on(
        self,
        kind: Kind,
        ref: str,
        change: Callable[Concatenate[Tx, str, str, P], Made],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Response:
        """The same for what an account has: the change is told whose it is, and its id or name."""
        return await self._carry_out(lambda tx: change(tx, owner_for(tx, kind, ref, self.caller), ref, *args, **kwargs))

    async def run_afresh(self, change: Callable[[Tx], Made], afresh: Callable[[Tx, str], Made]) -> Response:
        """`afresh` gives, for the resource's id, what is added to the answer anew each time and never kept: secrets."""
        return await self._carry_out(change, afresh)

    async def _carry_out(
        self, change: Callable[[Tx], Made], afresh: Callable[[Tx, str], Made] | None = None
    ) -> Response:
        key, account = self._key, self.caller.account
        digest = await self._digest() if key is not None else ""

        def once(tx: Tx) -> bytes:
            known = tokens.recall(tx, account, key, digest) if key is not None else None
            answer = known.encode() if known is not None else orjson.dumps(change(tx))
            if known is None and key is not None:
                tokens.remember(tx, account, key, digest, answer.decode())
            if afresh is not None:
                kept = orjson.loads(answer)
                answer = orjson.dumps({**kept, **afresh(tx, kept["resource"]["id"])})
            return answer

        return Response(await self.context.store.write(once), status_code=202, media_type="application/json")

    async def _digest(self) -> str:
        """Of all that the request asks for."""
        asked = self._request
        what = f"{asked.method} {asked.url.path}?{asked.url.query}\n".encode()
        return hashlib.sha256(what + await asked.body()).hexdigest()


async def get_command(request: Request, context: ContextDep, caller: CallerDep, key: IdempotencyKey = None) -> Command:
    return Command(request, context, caller, key)


async def get_admin_command(
    request: Request, context: ContextDep, admin: AdminDep, key: IdempotencyKey = None
) -> Command:
    return Command(request, context, admin, key)


CommandDep = Annotated[Command, Depends(get_command)]
AdminCommandDep = Annotated[Command, Depends(get_admin_command)]
