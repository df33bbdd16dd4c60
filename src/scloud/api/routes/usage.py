"""What each node has promised to VMs and how busy it is; what each account has of disks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Response

from scloud.api.context import AdminDep, CallerDep, ContextDep, send
from scloud.api.schemas import PROBLEMS, AllAccounts, Answer, RefFilter
from scloud.model.kinds import Kind
from scloud.model.observed import NodeLoad
from scloud.model.specs import ClusterSpec, NodeSpec
from scloud.model.statuses import Capacity, NodeStatus
from scloud.store import nodes
from scloud.store.database import Tx
from scloud.store.disk_use import disk_use
from scloud.store.resources import SYSTEM, all_of, get

router = APIRouter(tags=["nodes"], responses=PROBLEMS)


class Smoothed(Answer):
    """Averages over half a minute (memory and disk: five seconds), which placement goes by.

    Fractions, but `storage_ms`; `pressure` is all of them as one number, from 0 to 3.25.
    """

    cpu: float
    memory: float
    disk: float
    network: float
    storage: float
    storage_ms: float
    pressure: float


class NodeUsage(Answer):
    """`promisable` is the capacity with the cluster's CPU overcommit; `load` is of the last second, `smoothed` what
    placement sees. Both are null while the node is silent."""

    node: str
    name: str
    state: str
    promisable: Capacity
    promised: Capacity
    load: NodeLoad | None
    smoothed: Smoothed | None


class UsageAnswer(Answer):
    items: list[NodeUsage]


@router.get("/usage", response_model=UsageAnswer)
async def usage(context: ContextDep, _admin: AdminDep, node: RefFilter = None) -> Response:
    """Every node, or one: what it could promise, what it has promised, and its load."""
    sessions = context.manager.sessions

    def read(tx: Tx) -> list[dict[str, Any]]:
        promised = nodes.usages(tx)
        overcommit = {row.id: row.spec_as(ClusterSpec).cpu_overcommit for row in all_of(tx, Kind.CLUSTER)}
        items = []
        for row in all_of(tx, Kind.NODE) if node is None else [get(tx, Kind.NODE, node, SYSTEM)]:
            capacity = row.status_as(NodeStatus).capacity
            used = promised.get(row.id, nodes.Usage(row.id))
            cpus = int(capacity.cpus * overcommit.get(row.spec_as(NodeSpec).cluster, 1.0))
            session = sessions.get(row.id)
            load = session.load if session is not None else None
            items.append(
                {
                    "node": row.id,
                    "name": row.name,
                    "state": row.state,
                    "promisable": {**capacity.model_dump(), "cpus": cpus},
                    "promised": {"cpus": used.cpus, "memory_mib": used.memory_mib, "disk_mib": used.disk_mib},
                    "load": load.model_dump() if load is not None else None,
                    "smoothed": asdict(session.smoothed) if session is not None and load is not None else None,
                }
            )
        return items

    return send({"items": await context.store.read(read)})


class AccountStorage(Answer):
    """What an account has of one disk type (null: nodes' own storage), in MiB, trash included; `trashed_mib` of it is
    what the trash occupies. `used_mib` leaves out what disks share with images and what only snapshots keep.
    `pool` is an administrator's to see.
    """

    account: str
    account_name: str
    type: str | None
    pool: str | None
    disks: int
    provisioned_mib: int
    used_mib: int
    trashed: int
    trashed_mib: int


class AccountStorageAnswer(Answer):
    items: list[AccountStorage]


@router.get("/usage/storage", response_model=AccountStorageAnswer, tags=["disks"])
async def storage_usage(context: ContextDep, caller: CallerDep, all_accounts: AllAccounts = False) -> Response:
    """What accounts' disks may grow to and really occupy, by account and disk type."""
    scope = caller.scope(all_accounts)

    def read(tx: Tx) -> list[dict[str, Any]]:
        names = {row.id: row.name for row in all_of(tx, Kind.ACCOUNT)} if scope is None else {}
        items = [
            {
                "account": account,
                "account_name": names.get(account, account) if scope is None else caller.account_name,
                "type": type_,
                "pool": pool if caller.admin else None,
                **asdict(use),
            }
            for (account, type_, pool), use in disk_use(tx, scope).items()
        ]
        return sorted(items, key=lambda item: (item["account_name"], item["type"] or "", item["pool"] or ""))

    return send({"items": await context.store.read(read)})
