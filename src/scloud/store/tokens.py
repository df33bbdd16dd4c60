"""Tokens (kept as SHA-256 digests only), repeatable requests, the leader's lease, and counters."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, select, update

from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import TOKEN_PREFIX
from scloud.store.database import Tx
from scloud.store.tables import counter, idempotency, token


def digest(secret: str) -> str:
    """Secrets carry 256 random bits, so a plain hash cannot be searched."""
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Token:
    id: str
    account: str
    name: str
    purpose: str
    created_at: float
    expires_at: float | None

    def public(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "account": self.account,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
        }


_COLUMNS = (token.c.id, token.c.account, token.c.name, token.c.purpose, token.c.created_at, token.c.expires_at)


def add(tx: Tx, account: str, name: str, secret: str, *, purpose: str = "api", ttl_s: float | None = None) -> Token:
    made = Token(tx.new_id(TOKEN_PREFIX), account, name, purpose, tx.now, tx.now + ttl_s if ttl_s else None)
    tx.conn.execute(
        insert(token),
        [{**{name_: getattr(made, name_) for name_ in Token.__slots__}, "digest": digest(secret)}],
    )
    tx.touch(f"token/{made.id}")
    return made


def find(tx: Tx, secret: str, *, purpose: str = "api") -> Token | None:
    row = tx.conn.execute(select(*_COLUMNS).where(token.c.digest == digest(secret), token.c.purpose == purpose)).first()
    if row is None or (row.expires_at is not None and row.expires_at <= tx.now):
        return None
    return Token(*row)


def page(tx: Tx, account: str | None, *, limit: int, after: str | None) -> tuple[list[Token], str | None]:
    query = select(*_COLUMNS).where(token.c.purpose == "api")
    if account is not None:
        query = query.where(token.c.account == account)
    if after:
        query = query.where(token.c.id > after)
    rows = [Token(*row) for row in tx.conn.execute(query.order_by(token.c.id).limit(limit + 1))]
    return (rows[:limit], rows[limit - 1].id) if len(rows) > limit else (rows, None)


def revoke(tx: Tx, id: str, account: str | None) -> bool:
    query = delete(token).where(token.c.id == id)
    if account is not None:
        query = query.where(token.c.account == account)
    tx.touch(f"token/{id}")
    return bool(tx.conn.execute(query).rowcount)


def revoke_all(tx: Tx, account: str) -> None:
    """Every token of an account (or, for joining, of a node)."""
    tx.conn.execute(delete(token).where(token.c.account == account))
    tx.touch(f"token/of-{account}")


# --- repeatable requests


def recall(tx: Tx, account: str, key: str, request_digest: str) -> str | None:
    """The answer given before to this Idempotency-Key; CONFLICT if the request was another one."""
    row = tx.conn.execute(select(idempotency).where(idempotency.c.account == account, idempotency.c.key == key)).first()
    if row is None:
        return None
    if row.digest != request_digest:
        raise CloudError(ErrorKind.CONFLICT, "this Idempotency-Key was used before with another request; use a new key")
    return str(row.response)


def remember(tx: Tx, account: str, key: str, request_digest: str, response: str) -> None:
    tx.conn.execute(
        insert(idempotency),
        [{"account": account, "key": key, "digest": request_digest, "response": response, "created_at": tx.now}],
    )


def forget_requests(tx: Tx, before: float) -> None:
    tx.conn.execute(delete(idempotency).where(idempotency.c.created_at < before))


# --- lease and counters


def next_number(tx: Tx, name: str) -> int:
    """1, 2, 3, ... per name."""
    row = tx.conn.execute(select(counter.c.value).where(counter.c.name == name)).first()
    if row is None:
        tx.conn.execute(insert(counter), [{"name": name, "value": 1}])
        return 1
    tx.conn.execute(update(counter).where(counter.c.name == name).values(value=row.value + 1))
    return int(row.value + 1)
