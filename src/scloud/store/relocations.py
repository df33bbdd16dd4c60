"""Drains and rebalances, with what became of each VM."""

from __future__ import annotations

from sqlalchemy import delete, insert, select, update

from scloud.model.relocations import Relocation
from scloud.store.database import Tx
from scloud.store.tables import relocation

PREFIX = "rel"


def save(tx: Tx, value: Relocation) -> Relocation:
    """Keep it, new or changed."""
    values = {
        "kind": value.kind,
        "subject": value.subject,
        "began_at": value.began_at,
        "ended_at": value.ended_at,
        "data": value.model_dump_json(),
    }
    done = tx.conn.execute(update(relocation).where(relocation.c.id == value.id).values(**values))
    if done.rowcount == 0:
        tx.conn.execute(insert(relocation).values(id=value.id, **values))
    tx.touch(f"relocation/{value.id}")
    return value


def find(tx: Tx, id: str) -> Relocation | None:
    row = tx.conn.execute(select(relocation.c.data).where(relocation.c.id == id)).first()
    return Relocation.model_validate_json(row.data) if row else None


def newest(tx: Tx, kind: str, subject: str, limit: int = 1) -> list[Relocation]:
    """Of a node or a cluster, the newest first."""
    query = (
        select(relocation.c.data)
        .where(relocation.c.kind == kind, relocation.c.subject == subject)
        .order_by(relocation.c.id.desc())
        .limit(limit)
    )
    return [Relocation.model_validate_json(row.data) for row in tx.conn.execute(query)]


def open_of(tx: Tx, kind: str, subject: str) -> Relocation | None:
    """The one that is under way, if there is one: there is at most one, and it is the newest."""
    found = next(iter(newest(tx, kind, subject)), None)
    return found if found is not None and found.open else None


def forget_subject(tx: Tx, subject: str) -> None:
    """All of a node that is taken out of the cloud."""
    tx.conn.execute(delete(relocation).where(relocation.c.subject == subject))


def forget_old(tx: Tx, before: float) -> None:
    """Those that ended before a time, seconds since 1970."""
    tx.conn.execute(delete(relocation).where(relocation.c.ended_at < before))
