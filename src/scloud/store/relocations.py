"""Drains and rebalances, with what became of each VM."""

from __future__ import annotations

from sqlalchemy import delete, select

from scloud.model.relocations import Relocation
from scloud.store.database import Tx
from scloud.store.documents import Documents
from scloud.store.tables import relocation

PREFIX = "rel"


_documents = Documents(relocation, Relocation)
find = _documents.find
forget_old = _documents.forget_old


def save(tx: Tx, value: Relocation) -> Relocation:
    """Keep it, new or changed."""
    return _documents.save(
        tx,
        value.id,
        value,
        kind=value.kind,
        subject=value.subject,
        began_at=value.began_at,
        ended_at=value.ended_at,
    )


def newest(tx: Tx, kind: str, subject: str, limit: int = 1) -> list[Relocation]:
    """Of a node or a cluster, the newest first."""
    query = (
        select(relocation.c.data)
        .where(relocation.c.kind == kind, relocation.c.subject == subject)
        .order_by(relocation.c.id.desc())
        .limit(limit)
    )
    return _documents.all(tx, query)


def open_of(tx: Tx, kind: str, subject: str) -> Relocation | None:
    """The one that is under way, if there is one: there is at most one, and it is the newest."""
    found = next(iter(newest(tx, kind, subject)), None)
    return found if found is not None and found.open else None


def forget_subject(tx: Tx, subject: str) -> None:
    """All of a node that is taken out of the cloud."""
    tx.conn.execute(delete(relocation).where(relocation.c.subject == subject))
