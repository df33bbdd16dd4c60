"""Keys of storage clusters, by the resource they belong to. They are in the manager's database and nowhere else: no
answer of the API, event or message shows them."""

from __future__ import annotations

import base64
import struct

from sqlalchemy import delete, select, text

from scloud.store.database import Tx
from scloud.store.tables import secret

_PUT = text(
    "INSERT INTO secret (owner, name, value) VALUES (:owner, :name, :value) "
    "ON CONFLICT (owner, name) DO UPDATE SET value = excluded.value"
)


def put(tx: Tx, owner: str, name: str, value: str) -> None:
    """Keep a secret of a resource, in place of what it had under this name."""
    tx.conn.execute(_PUT, {"owner": owner, "name": name, "value": value})


def secrets_of(tx: Tx, owner: str) -> dict[str, str]:
    """All of a resource's, by name."""
    return {row.name: row.value for row in tx.conn.execute(select(secret).where(secret.c.owner == owner))}


def forget(tx: Tx, owner: str, name: str | None = None) -> None:
    """One of them, or all."""
    query = delete(secret).where(secret.c.owner == owner)
    if name is not None:
        query = query.where(secret.c.name == name)
    tx.conn.execute(query)


def cephx_key(tx: Tx) -> str:
    """A new cephx key in its usual text: type 1 (AES), time of making in seconds and nanoseconds, length, 128 bits."""
    bits = tx.random_bits(128).to_bytes(16, "big")
    return base64.b64encode(struct.pack("<hiih", 1, int(tx.now), 0, len(bits)) + bits).decode()


def uuid4(tx: Tx) -> str:
    """A random UUID of the transaction's own randomness."""
    bits = tx.random_bits(128)
    bits = bits & ~(0xF << 76) | (4 << 76)
    bits = bits & ~(0x3 << 62) | (2 << 62)
    digits = f"{bits:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
