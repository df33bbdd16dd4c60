"""How much of each node has been promised. Changed in the transaction that promises it, so nothing is overbooked."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, func, select, text

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


_PROMISE = text(
    "INSERT INTO node_usage (node, cpus, memory_mib, disk_mib) VALUES (:node, :cpus, :memory_mib, :disk_mib) "
    "ON CONFLICT (node) DO UPDATE SET cpus = node_usage.cpus + excluded.cpus, "
    "memory_mib = node_usage.memory_mib + excluded.memory_mib, disk_mib = node_usage.disk_mib + excluded.disk_mib"
)


def promise(tx: Tx, node: str, *, cpus: int = 0, memory_mib: int = 0, disk_mib: int = 0) -> None:
    """Add to (or, with negative numbers, give back from) what a node has promised."""
    tx.conn.execute(_PROMISE, {"node": node, "cpus": cpus, "memory_mib": memory_mib, "disk_mib": disk_mib})
    if tx.memory.placement is not None:
        tx.memory.placement.promise(node, cpus, memory_mib, disk_mib)


def forget(tx: Tx, node: str) -> None:
    tx.conn.execute(delete(usage).where(usage.c.node == node))
    tx.memory.forget()


def vms_by_account(tx: Tx, account: str) -> dict[str, int]:
    """How many VMs of an account each node has."""
    query = (
        select(resource.c.node, func.count())
        .where(resource.c.kind == "vm", resource.c.account == account, resource.c.node.is_not(None))
        .group_by(resource.c.node)
    )
    return {row[0]: row[1] for row in tx.conn.execute(query)}
