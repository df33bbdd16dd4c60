"""A small history of how full storage clusters and pools were, for the forecast."""

from __future__ import annotations

from sqlalchemy import delete, insert, select

from scloud.store.database import Tx
from scloud.store.tables import sample

EVERY_S = 900.0
KEPT_S = 7 * 86400.0


def history(tx: Tx, owner: str) -> list[tuple[float, int]]:
    """(seconds since 1970, MiB used), oldest first."""
    query = select(sample.c.at, sample.c.used_mib).where(sample.c.owner == owner).order_by(sample.c.at)
    return [(row.at, row.used_mib) for row in tx.conn.execute(query)]


def add(tx: Tx, owner: str, used_mib: int) -> None:
    """Note how much is used now, unless that was done a short while ago; what is too old goes."""
    latest = tx.conn.execute(
        select(sample.c.at).where(sample.c.owner == owner).order_by(sample.c.at.desc()).limit(1)
    ).scalar()
    if latest is not None and tx.now - latest < EVERY_S:
        return
    tx.conn.execute(delete(sample).where(sample.c.owner == owner, sample.c.at < tx.now - KEPT_S))
    tx.conn.execute(insert(sample).values(owner=owner, at=tx.now, used_mib=used_mib))


def forget(tx: Tx, owner: str) -> None:
    tx.conn.execute(delete(sample).where(sample.c.owner == owner))
