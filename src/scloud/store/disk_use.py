"""What disks may grow to and what they occupy, summed up by account, disk type and pool.

Read from the disks' own rows, in one query without a join: the nodes that have the disks open or serve them measure
them once a minute (of a pool: from its object map, which costs one small object) and report what has changed.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import JSON, BigInteger, Column, ColumnElement, String, case, cast, func, select

from scloud.model.kinds import Kind, State
from scloud.store.database import Tx
from scloud.store.tables import resource


@dataclass(slots=True)
class DiskUse:
    """MiB. Disks in the trash count in all three figures until they are deleted, and once more by themselves.

    `used_mib` is what the disks' present contents occupy beside what they share with images; not what only their
    snapshots keep, nor the copies of their pool's redundancy.
    """

    disks: int = 0
    provisioned_mib: int = 0
    used_mib: int = 0
    trashed: int = 0
    trashed_mib: int = 0


Owner = tuple[str, str | None, str | None]
"""Account, disk type, pool; both None for nodes' own storage."""


def disk_use(tx: Tx, account: str | None = None) -> dict[Owner, DiskUse]:
    """Of one account, or of all. The database sums up: 100,000 disks are not to be read one by one."""
    dialect = tx.conn.dialect.name
    type_, pool = (_field(dialect, resource.c.spec, name) for name in ("type", "pool"))
    size = cast(_field(dialect, resource.c.spec, "size_mib"), BigInteger)
    used = func.coalesce(cast(_field(dialect, resource.c.status, "used_mib"), BigInteger), 0)
    trashed = resource.c.state == State.TRASHED
    figures = (
        func.count(),
        func.sum(size),
        func.sum(used),
        func.sum(case((trashed, 1), else_=0)),
        func.sum(case((trashed, used), else_=0)),
    )
    groups = (resource.c.account, type_.label("type"), pool.label("pool"))
    query = (
        select(*groups, *figures)
        .where(resource.c.kind == Kind.DISK, resource.c.gone.is_(False))
        .group_by(resource.c.account, "type", "pool")
    )
    if account is not None:
        query = query.where(resource.c.account == account)
    found = (tuple(row) for row in tx.conn.execute(query))
    return {row[:3]: DiskUse(*(int(figure) for figure in row[3:])) for row in found}


def _field(dialect: str, column: Column[str], name: str) -> ColumnElement[str]:
    """One field of a spec or status. The columns are text, and each database has its own word for it."""
    if dialect == "sqlite":
        return func.json_extract(column, f"$.{name}", type_=String)
    return func.json_extract_path_text(cast(column, JSON), name, type_=String)
