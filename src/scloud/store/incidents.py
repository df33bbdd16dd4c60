"""Nodes that were lost, and what became of their VMs: written by the controller of high availability alone."""

from __future__ import annotations

from sqlalchemy import delete, insert, select, update

from scloud.model.ha import Incident, IncidentState
from scloud.store.database import Tx
from scloud.store.tables import incident


def save(tx: Tx, value: Incident) -> Incident:
    """Keep it, new or changed."""
    values = {
        "node": value.node,
        "state": value.state.value,
        "began_at": value.began_at,
        "ended_at": value.ended_at,
        "data": value.model_dump_json(),
    }
    done = tx.conn.execute(update(incident).where(incident.c.id == value.id).values(**values))
    if done.rowcount == 0:
        tx.conn.execute(insert(incident).values(id=value.id, **values))
    tx.touch(f"incident/{value.id}")
    return value


def find(tx: Tx, id: str) -> Incident | None:
    row = tx.conn.execute(select(incident.c.data).where(incident.c.id == id)).first()
    return Incident.model_validate_json(row.data) if row else None


def open_ones(tx: Tx) -> list[Incident]:
    """Of every node that has not returned, oldest first."""
    query = select(incident.c.data).where(incident.c.state != IncidentState.CLOSED.value).order_by(incident.c.id)
    return [Incident.model_validate_json(row.data) for row in tx.conn.execute(query)]


def open_of(tx: Tx, node: str) -> Incident | None:
    query = (
        select(incident.c.data)
        .where(incident.c.node == node, incident.c.state != IncidentState.CLOSED.value)
        .order_by(incident.c.id.desc())
    )
    row = tx.conn.execute(query).first()
    return Incident.model_validate_json(row.data) if row else None


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
    items = [Incident.model_validate_json(row.data) for row in rows[:limit]]
    return items, (rows[limit - 1].id if len(rows) > limit else None)


def forget_old(tx: Tx, before: float) -> None:
    """Those that ended before a time, seconds since 1970."""
    tx.conn.execute(delete(incident).where(incident.c.ended_at < before))
