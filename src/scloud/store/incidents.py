"""Nodes that were lost, and what became of their VMs: written by the controller of high availability alone."""

from __future__ import annotations

from sqlalchemy import bindparam, select

from scloud.model.ha import Incident, IncidentState
from scloud.store.database import Tx
from scloud.store.documents import Documents
from scloud.store.tables import incident

_documents = Documents(incident, Incident)
_OPEN = select(incident.c.data).where(incident.c.state != IncidentState.CLOSED.value)
_OPEN_OF = _OPEN.where(incident.c.node == bindparam("node")).order_by(incident.c.id.desc()).limit(1)
find = _documents.find
forget_old = _documents.forget_old


def save(tx: Tx, value: Incident) -> Incident:
    """Keep it, new or changed."""
    return _documents.save(
        tx,
        value.id,
        value,
        node=value.node,
        state=value.state.value,
        began_at=value.began_at,
        ended_at=value.ended_at,
    )


def open_ones(tx: Tx) -> list[Incident]:
    """Of every node that has not returned, oldest first."""
    return _documents.all(tx, _OPEN.order_by(incident.c.id))


def open_of(tx: Tx, node: str) -> Incident | None:
    return _documents.first(tx, _OPEN_OF, node=node)


def page(
    tx: Tx, *, limit: int, before: str | None = None, node: str | None = None
) -> tuple[list[Incident], str | None]:
    """The newest first, and where the next page begins."""
    query = select(incident.c.id, incident.c.data)
    if before is not None:
        query = query.where(incident.c.id < before)
    if node is not None:
        query = query.where(incident.c.node == node)
    rows = list(tx.conn.execute(query.order_by(incident.c.id.desc()).limit(limit + 1)))
    items = [_documents.read(row.data) for row in rows[:limit]]
    return items, (rows[limit - 1].id if len(rows) > limit else None)
