"""How much of each node has been promised. Changed in the transaction that promises it, so nothing is overbooked."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, func, insert, select, update

from scloud.store.database import Tx
from scloud.store.tables import resource, usage


@dataclass(frozen=True, slots=True)
class Usage:
    node: str
    cpus: int = 0
    memory_mib: int = 0
    disk_mib: int = 0


def usages(tx: Tx) -> dict[str, Usage]:
    return {row.node: Usage(*row) for row in tx.conn.execute(select(usage))}


def usage_of(tx: Tx, node: str) -> Usage:
    row = tx.conn.execute(select(usage).where(usage.c.node == node)).first()
    return Usage(*row) if row else Usage(node)


def promise(tx: Tx, node: str, *, cpus: int = 0, memory_mib: int = 0, disk_mib: int = 0) -> None:
    """Add to (or, with negative numbers, give back from) what a node has promised."""
    changed = tx.conn.execute(
        update(usage)
        .where(usage.c.node == node)
        .values(
            cpus=usage.c.cpus + cpus, memory_mib=usage.c.memory_mib + memory_mib, disk_mib=usage.c.disk_mib + disk_mib
        )
    )
    if not changed.rowcount:
        tx.conn.execute(insert(usage), [{"node": node, "cpus": cpus, "memory_mib": memory_mib, "disk_mib": disk_mib}])


def forget(tx: Tx, node: str) -> None:
    tx.conn.execute(delete(usage).where(usage.c.node == node))


def vms_by_account(tx: Tx, account: str) -> dict[str, int]:
    """How many VMs of an account each node has."""
    query = (
        select(resource.c.node, func.count())
        .where(resource.c.kind == "vm", resource.c.account == account, resource.c.node.is_not(None))
        .group_by(resource.c.node)
    )
    return {row[0]: row[1] for row in tx.conn.execute(query)}
