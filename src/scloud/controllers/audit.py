"""`scloud audit`: what runs without an owner, and what has an owner and does not run."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from scloud.controllers import migration
from scloud.controllers.manager import Manager
from scloud.controllers.storage import auditing, left
from scloud.model.errors import CloudError
from scloud.model.kinds import Kind, State
from scloud.model.observed import Inventory
from scloud.model.specs import DiskSpec, NicSpec, VmSpec
from scloud.store.database import Tx
from scloud.store.resources import Resource, all_of

Finding = dict[str, Any]
CHANGING = (State.PENDING, State.CREATING, State.STARTING, State.STOPPING, State.UPDATING, State.DELETING)


async def audit(manager: Manager) -> dict[str, Any]:
    """Ask every node what it has, and compare with what it should have."""
    nodes = {row.id: row for row in await manager.store.read(lambda tx: all_of(tx, Kind.NODE))}
    inventories: dict[str, Inventory] = {}

    async def ask(node: str) -> None:
        session = manager.sessions.get(node)
        if session is None:
            return
        try:
            inventories[node] = Inventory.model_validate(await session.call("inventory", 20.0))
        except CloudError:
            return

    async with asyncio.TaskGroup() as group:
        clusters = group.create_task(auditing.ask(manager.store, manager.sessions))
        for node in nodes:
            group.create_task(ask(node))
    names = {id: row.name for id, row in nodes.items()}
    findings = await manager.store.read(lambda tx: compare(tx, inventories, names))
    strange, blocked = clusters.result()
    findings += [_finding(severity, "", key, message) for severity, key, message in strange]
    now = manager.store.clock()
    cut_off = await manager.store.read(lambda tx: list(left.cut_off(tx, inventories, blocked, now)))
    findings += [_finding(severity, node, key, message) for severity, node, key, message in cut_off]
    silent = sorted(names[id] for id in nodes if id not in inventories and nodes[id].state != State.JOINING)
    findings += [_finding("warning", name, "", "the node did not answer; what it has is not known") for name in silent]
    return {
        "clean": not findings,
        "findings": findings,
        "nodes_asked": sorted(names[id] for id in inventories),
        "nodes_silent": silent,
    }


def _finding(severity: str, node: str, key: str, message: str) -> Finding:
    return {"severity": severity, "node": node, "key": key, "message": message}


def compare(tx: Tx, inventories: Mapping[str, Inventory], names: Mapping[str, str]) -> list[Finding]:
    """Pure but for reading rows: the differences, in words."""
    rows = {
        f"{prefix}/{row.id}": row
        for prefix, kind in (("vm", Kind.VM), ("disk", Kind.DISK), ("port", Kind.NIC), ("vpc", Kind.VPC))
        for row in all_of(tx, kind, gone=True)
    }
    findings = _twice(inventories, names, rows)
    for node, inventory in inventories.items():
        name = names[node]
        for what, keys in (
            ("domain", inventory.domains),
            ("disk", inventory.disks),
            ("switch port", inventory.ports),
        ):
            for key in keys:
                row = rows.get(key)
                if key.startswith("vpc/"):
                    continue  # a VPC's service port is looked at with its namespace
                if row is None or (row.node != node and node not in _on_their_way(row, rows)):
                    where = f"; its owner is on {names.get(row.node or '', 'no node')}" if row else ""
                    findings.append(_finding("error", name, key, f"a {what} without an owner{where}"))
        for key in inventory.namespaces:
            if key not in rows:
                findings.append(_finding("error", name, key, "a network namespace of a VPC that does not exist"))
        findings += _missing(node, name, inventory, rows)
    findings += [
        _finding("error", names[node], key, message) for node, key, message in auditing.compare(tx, inventories)
    ]
    findings += _in_pools(tx, inventories, names, rows)
    return findings + [
        _finding(severity, names[node], key, message) for severity, node, key, message in left.in_pools(tx, inventories)
    ]


def _on_their_way(row: Resource, rows: Mapping[str, Resource]) -> set[str]:
    """The nodes where something of a VM, or of what is attached to it, may be besides its own, because it migrates."""
    vm = row
    if row.kind in (Kind.DISK, Kind.NIC):
        spec = row.spec_as(DiskSpec) if row.kind == Kind.DISK else row.spec_as(NicSpec)
        owner = rows.get(f"vm/{spec.vm}")
        if owner is None:
            return set()
        vm = owner
    return migration.nodes_of(vm) if vm.kind == Kind.VM else set()


def _in_pools(
    tx: Tx, inventories: Mapping[str, Inventory], names: Mapping[str, str], rows: Mapping[str, Resource]
) -> list[Finding]:
    """Bytes in shared pools, which every node of their cluster sees: each told of once."""
    seen: dict[str, str] = {}
    for node, inventory in inventories.items():
        for key in inventory.pool_disks:
            seen.setdefault(key, names[node])
    kept = {f"{kind}/{row.id}": row for kind in (Kind.SNAPSHOT, Kind.IMAGE) for row in all_of(tx, kind, gone=True)}
    pools = {row.id: row for row in all_of(tx, Kind.POOL)}
    findings = []
    for key, name in seen.items():
        if key.startswith("disk/"):
            row = rows.get(key)
            if row is None or row.spec_as(DiskSpec).pool is None:
                findings.append(_finding("error", name, key, "a disk in a pool without an owner"))
        elif key.startswith("stranger/"):
            _, pool, image = key.split("/", 2)
            called = pools[pool].name if pool in pools else pool
            message = f"image '{image}' in pool '{called}' is nothing of this cloud's: it is left alone"
            findings.append(_finding("warning", name, key, message))
        elif key not in kept:
            what = "a snapshot without an owner" if key.startswith("snapshot/") else "the base of an image that is gone"
            findings.append(
                _finding("warning" if key.startswith("image/") else "error", name, key, f"{what}, in a pool")
            )
    findings += _missing_in_pools(inventories, names, rows, kept, seen)
    return findings


def _missing_in_pools(
    inventories: Mapping[str, Inventory],
    names: Mapping[str, str],
    rows: Mapping[str, Resource],
    kept: Mapping[str, Resource],
    seen: Mapping[str, str],
) -> list[Finding]:
    findings = []
    unsettled = (*CHANGING, State.ERROR)
    for key, row in rows.items():
        if row.kind != Kind.DISK or row.gone or row.state in unsettled or row.node not in inventories:
            continue
        if row.spec_as(DiskSpec).pool is not None and key not in seen:
            findings.append(_finding("error", names[str(row.node)], key, f"disk '{row.name}' has no bytes in its pool"))
    for key, row in kept.items():
        disk = rows.get(f"disk/{row.parent}")
        if row.kind != Kind.SNAPSHOT or row.gone or row.state in unsettled or disk is None:
            continue
        if disk.spec_as(DiskSpec).pool is not None and disk.node in inventories and key not in seen:
            message = f"snapshot '{row.name}' of disk '{disk.name}' is not in its pool"
            findings.append(_finding("error", names[str(disk.node)], key, message))
    return findings


def _twice(
    inventories: Mapping[str, Inventory], names: Mapping[str, str], rows: Mapping[str, Resource]
) -> list[Finding]:
    where: dict[str, list[str]] = {}
    for node, inventory in inventories.items():
        for key in inventory.running:
            where.setdefault(key, []).append(names[node])
    return [
        _finding("error", ", ".join(nodes), key, f"vm '{rows[key].name if key in rows else key}' runs more than once")
        for key, nodes in where.items()
        if len(nodes) > 1
    ]


def _missing(node: str, name: str, inventory: Inventory, rows: Mapping[str, Resource]) -> list[Finding]:
    findings = []
    running, disks, ports = set(inventory.running), set(inventory.disks), set(inventory.ports)
    for key, row in rows.items():
        if row.node != node or row.gone or row.state in CHANGING or row.state == State.ERROR:
            continue
        if row.kind == Kind.VM:
            on = row.spec_as(VmSpec).power == "on"
            if on and key not in running:
                findings.append(_finding("error", name, key, f"vm '{row.name}' should run and does not"))
            elif not on and key in running:
                findings.append(_finding("error", name, key, f"vm '{row.name}' should be off and runs"))
        elif row.kind == Kind.DISK and key not in disks and row.spec_as(DiskSpec).pool is None:
            findings.append(_finding("error", name, key, f"disk '{row.name}' has no bytes on its node"))
        elif row.kind == Kind.NIC and row.spec_as(NicSpec).vm and key not in ports:
            findings.append(_finding("error", name, key, f"nic '{row.name}' has no port on its node's switch"))
    return findings
