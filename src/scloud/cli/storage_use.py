"""What accounts have of disks, as tables: of everything, of a pool, of a storage cluster."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from scloud.cli import human
from scloud.cli.output import Column, Resource

USAGE = "/usage/storage"
FIGURES = ("disks", "provisioned_mib", "used_mib", "trashed", "trashed_mib")


def _trash(row: Resource) -> str:
    return f"{row['trashed']} ({human.size(row['trashed_mib'])})" if row["trashed"] else ""


_FIGURES = (
    Column("DISKS", lambda row: str(row["disks"]), right=True),
    Column("PROVISIONED", lambda row: human.size(row["provisioned_mib"]), right=True),
    Column("USED", lambda row: human.size(row["used_mib"]), right=True),
    Column("IN TRASH", _trash, right=True),
)
COLUMNS = (
    Column("ACCOUNT", lambda row: row["account_name"]),
    Column("TYPE", lambda row: row["type"] or "local" if "type" in row else ""),
    *_FIGURES,
)
BY_ACCOUNT = (COLUMNS[0], *_FIGURES)


def _sum(items: Iterable[Resource], **named: str) -> Resource:
    rows = list(items)
    return {**named, **{name: sum(row[name] for row in rows) for name in FIGURES}}


def with_total(items: Sequence[Resource]) -> list[Resource]:
    """A last line with the sums, where there is more than one."""
    return [*items, _sum(items, account_name="all")] if len(items) > 1 else list(items)


def by_account(items: Iterable[Resource], pools: Container[str]) -> list[Resource]:
    """Of the disks in these pools, whatever their types; who occupies most comes first."""
    accounts: dict[str, list[Resource]] = {}
    for item in items:
        if item["pool"] in pools:
            accounts.setdefault(item["account"], []).append(item)
    rows = [_sum(rows, account_name=rows[0]["account_name"]) for rows in accounts.values()]
    return sorted(rows, key=lambda row: (-row["used_mib"], -row["provisioned_mib"], row["account_name"]))
