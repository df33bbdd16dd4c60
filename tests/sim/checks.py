"""What may never be so, and what must be so in the end."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from typing import Any

from sqlalchemy import select

from scloud.controllers import snapshots
from scloud.controllers.audit import audit
from scloud.controllers.directory import Directory
from scloud.drivers.switch.protocol import TUNNEL_OFPORT
from scloud.flows.compile import compile_view
from scloud.link.digest import digest_of
from scloud.model.desired import DesiredPort
from scloud.model.kinds import TRANSITIONAL, Kind, State
from scloud.model.specs import DiskSpec, NicSpec, NodeSpec, VmSpec
from scloud.model.statuses import DiskStatus, VmStatus
from scloud.reconcile.network import node_view
from scloud.store import incidents, operations, relocations
from scloud.store import nodes as usage
from scloud.store.database import Tx
from scloud.store.resources import Resource, all_of, users_of
from scloud.store.tables import resource, work

from .processes import AgentProcess
from .world import World

SLACK_S = 8.0
"""After an operation's deadline, or the manager's start if that came later, until the operation must have ended."""
GOOD_REASONS = (
    re.compile(r"^no node can take it"),
    re.compile(r"^QEMU died .* within ten minutes"),
    re.compile(r"^its node was removed as lost"),
)
"""Why a VM may be in `error` when nothing is broken any more."""


def _rows(tx: Tx) -> list[Resource]:
    query = select(resource).order_by(resource.c.id)
    return [Resource(*tuple(row)) for row in tx.conn.execute(query)]


def _history(tx: Tx, id: str) -> list[operations.Operation]:
    return operations.page(tx, None, limit=9, resource=id)[0]


class Checks:
    """`always` at any moment; `converged` says what is still to happen; `final` once nothing is."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen: dict[str, str] = {}
        self._buried: set[str] = set()
        self._makings: dict[str, tuple[int, int]] = {}

    # --- at any moment

    def always(self) -> None:
        world = self._world
        rows = world.base.read_now(_rows)
        by_id = {row.id: row for row in rows}
        self._deleted_stays_deleted(rows, by_id)
        self._nothing_twice()
        self._promises(rows)
        self._deadlines()
        self._bytes()

    def _deleted_stays_deleted(self, rows: list[Resource], by_id: dict[str, Resource]) -> None:
        world = self._world
        for row in rows:
            if row.id in world.dead_ids:
                world.violation(f"{row.kind} {row.id} was deleted and is back")
            if row.id in self._buried and not row.gone:
                world.violation(f"{row.kind} {row.id} was deleted for its owner and is back")
            if row.gone:
                self._buried.add(row.id)
        world.dead_ids.update(id for id in self._seen if id not in by_id)
        self._seen = {row.id: row.kind for row in rows}
        left_over = {
            disk
            for row in rows
            if row.kind == Kind.VM
            for disks in row.status_as(VmStatus).leftovers.values()
            for disk in disks
        }
        for node in world.nodes:
            machine = node.hardware
            for vm, domain in machine.host.domains.items():
                if vm in world.dead_ids and not world.harmless(node, domain.disks):
                    world.violation(f"{vm} was deleted, and has a domain on {node.name}")
            for disk in machine.disk.volumes:
                if disk in world.dead_ids and disk not in left_over:
                    world.violation(f"{disk} was deleted, and has bytes on {node.name}")
        for disk in world.pool_disk.volumes:
            if disk in world.dead_ids:
                world.violation(f"{disk} was deleted, and has bytes in the pool")

    def incidents(self) -> tuple[int, int]:
        """(nodes that were taken for dead, VMs that were given to others)."""
        found, _ = self._world.base.read_now(lambda tx: incidents.page(tx, limit=100))
        return len(found), sum(item.placed_at is not None for one in found for item in one.vms)

    def _nothing_twice(self) -> None:
        running: Counter[str] = Counter()
        macs: Counter[str] = Counter()
        for node in self._world.nodes:
            for vm, domain in node.hardware.host.domains.items():
                if domain.running and not domain.paused and not self._world.harmless(node, domain.disks):
                    running[vm] += 1
                    macs.update(nic.mac for nic in domain.nics.values())
        for what, count in (running + macs).items():
            if count > 1:
                self._world.violation(f"{what} is live {count} times")
        addresses: dict[tuple[str, str], str] = {}
        for node in self._world.nodes:
            if node.id in self._world.pool_disk.fenced:
                continue
            on_switch = _on_switch(node)
            for item in node.hardware.desired():
                if isinstance(item, DesiredPort) and item.node_id == node.id and f"port/{item.id}" in on_switch:
                    key = (item.vpc, item.ip)
                    if addresses.setdefault(key, item.id) != item.id:
                        self._world.violation(f"{item.ip} is on {addresses[key]} and {item.id} of one VPC")

    def _promises(self, rows: list[Resource]) -> None:
        world = self._world
        due: dict[str, list[int]] = {}
        in_pool = 0
        for row in rows:
            if row.kind == Kind.DISK and row.spec_as(DiskSpec).pool is not None:
                in_pool += row.spec_as(DiskSpec).size_mib
                continue
            if row.node is None:
                continue
            mine = due.setdefault(row.node, [0, 0, 0])
            if row.kind == Kind.VM:
                spec = row.spec_as(VmSpec)
                mine[0] += spec.cpus
                mine[1] += spec.memory_mib
                if (move := row.status_as(VmStatus).migration) is not None:
                    coming = due.setdefault(move.target, [0, 0, 0])
                    coming[0] += spec.cpus
                    coming[1] += spec.memory_mib
                    coming[2] += sum(copy.size_mib for copy in move.copies)
            elif row.kind == Kind.DISK:
                mine[2] += row.spec_as(DiskSpec).size_mib
        promised = world.base.read_now(usage.usages)
        if promised.get(world.pool, usage.Usage(world.pool)).disk_mib != in_pool:
            world.violation(f"the pool has promised {promised.get(world.pool)}, and in it are {in_pool} MiB")
        for node in world.nodes:
            has = promised.get(node.id, usage.Usage(node.id))
            wanted = due.get(node.id, [0, 0, 0])
            if [has.cpus, has.memory_mib, has.disk_mib] != wanted:
                world.violation(f"{node.name} has promised {has}, and on it are {wanted} (CPUs, memory, disk)")

    def _deadlines(self) -> None:
        world = self._world
        if not world.manager.up:
            return
        for op in world.base.read_now(operations.all_open):
            since = max(op.deadline_at, world.manager.up_since + world.clock() - world.loop.time())
            if world.clock() > since + SLACK_S:
                world.violation(f"{op.action} {op.id} is open {world.clock() - op.deadline_at:.1f} s past its deadline")

    def _bytes(self) -> None:
        """A disk's bytes are made once for each incarnation, as far as any guest has seen them."""
        for storage in (*(node.hardware.disk for node in self._world.nodes), self._world.pool_disk):
            for disk in sorted(storage.in_use):
                volume = storage.volumes.get(disk)
                if volume is None:
                    self._world.violation(f"{disk} is open and has no bytes")
                    continue
                known = self._makings.setdefault(disk, (volume.incarnation, volume.making))
                if known[0] == volume.incarnation and known[1] != volume.making:
                    self._world.violation(f"the bytes of {disk} were made anew, and a guest had written to them")
                self._makings[disk] = (volume.incarnation, volume.making)

    # --- in the end

    def pending(self) -> list[str]:
        """What has still to happen before all is as it should be."""
        world = self._world
        rows = world.base.read_now(_rows)
        left = [f"operation {op.action} {op.resource_id} is open" for op in world.base.read_now(operations.all_open)]
        items = world.base.read_now(lambda tx: [row.key for row in tx.conn.execute(select(work.c.key))])
        kept = world.base.read_now(_kept_for_clones)
        at_rest = {f"trash/{id}" for id in kept}
        again = ("schedule/", "drain/", "rebalance/")  # what comes back to its work as long as it is there
        left += [f"work on {key} is queued" for key in items if not key.startswith(again) and key not in at_rest]
        left += world.base.read_now(_relocating)
        lost = world.base.read_now(_lost)
        left += [
            f"node {incident.node_name} is lost: {incident.state}"
            for incident in world.base.read_now(incidents.open_ones)
        ]
        for row in rows:
            if row.id in kept:
                continue
            if row.gone:
                left.append(f"{row.kind} {row.id} is a tombstone: {row.status}")
            elif row.state in TRANSITIONAL:
                left.append(f"{row.kind} {row.id} is {row.state}: {row.status}")
            elif row.kind == Kind.NODE and row.state != State.READY:
                left.append(f"node {row.name} is {row.state}")
            elif row.kind == Kind.VM:
                left += _vm_pending(row)
            elif row.kind in (Kind.DISK, Kind.SNAPSHOT) and row.id in lost:
                pass  # its bytes are gone with its node; its owner has to delete it
            elif row.kind in (Kind.DISK, Kind.NIC, Kind.SNAPSHOT) and row.state != State.READY:
                left.append(f"{row.kind} {row.id} is {row.state}: {row.status}")
        return left

    def explain(self, left: list[str]) -> None:
        """Into the record: what the nodes know of the things that are left, and what was asked of them."""
        world = self._world
        ids = {word.strip(":") for text in left for word in text.split() if re.match(r"^(vm|dsk|nic|sg|vpc)-", word)}
        for id in sorted(ids):
            for op in world.base.read_now(partial(_history, id=id)):
                world.note(f"{id}: {op.action} of generation {op.generation} is {op.state}: {op.message}")
            for node in world.nodes:
                for item in node.hardware.desired():
                    if item.id == id and node.daemon is not None:
                        world.note(f"{id} on {node.name} is desired as {item!r}")
                        world.note(f"{id} on {node.name} is {node.daemon.board.get(f'{item.kind}/{id}')!r}")
            for row in world.base.read_now(_rows):
                if row.id == id:
                    world.note(f"{id}: {row}")

    async def final(self) -> None:
        """`pending` is empty: now everything agrees with everything."""
        world = self._world
        world.base.read_now(self._drained)
        for node in world.nodes:
            self._wishes(node)
            self._flows(node)
        self._devices(world.base.read_now(_rows))
        report = await self._audit()
        if not report["clean"]:
            world.violation("the audit finds: " + "; ".join(f"{item}" for item in report["findings"]))

    def _drained(self, tx: Tx) -> None:
        """What is left on a node that drains has said why; what has been moved by it is elsewhere."""
        for node in all_of(tx, Kind.NODE):
            going = relocations.open_of(tx, "drain", node.id)
            if going is None:
                continue
            told = {move.vm: move for move in going.moves}
            self._world.statistics["drained"] = self._world.statistics.get("drained", 0) + going.count("moved")
            for row in all_of(tx, Kind.VM):
                move = told.get(row.id)
                if row.node == node.id and (move is None or move.state != "stays" or not move.reason):
                    self._world.violation(f"{row.id} is still on {node.name}, which drains: {move}")
                if row.node != node.id and move is not None and move.state not in ("moved", "gone"):
                    self._world.violation(f"{row.id} is not on {node.name} any more, and its drain says {move}")

    def running(self) -> list[tuple[str, str]]:
        """(VM, node) of what runs, as the database has it."""
        rows = self._world.base.read_now(_rows)
        return [(row.id, row.node) for row in rows if row.kind == Kind.VM and row.state == State.RUNNING and row.node]

    def runs(self, vm: str, node: str) -> bool:
        machine = next(item for item in self._world.nodes if item.id == node).hardware
        domain = machine.host.domains.get(vm)
        return domain is not None and domain.running

    def networks(self) -> None:
        """Every switch has the flows of its node's journal; an agent that knows of nothing touches none."""
        for node in self._world.nodes:
            if list(node.hardware.desired()):
                self._flows(node)

    async def _audit(self) -> dict[str, Any]:
        manager = self._world.manager
        assert manager.life is not None and manager.manager is not None
        report: dict[str, Any] = await manager.life.spawn(audit(manager.manager))
        return report

    def _wishes(self, node: AgentProcess) -> None:
        """The node has been told what the manager wishes, no more and no less."""
        directory = Directory()
        self._world.base.read_now(directory.load)
        wanted = {key: directory.wish(node.id, key) for key in directory.wishes(node.id)}
        told = {f"{item.kind}/{item.id}": digest_of(item) for item in node.hardware.desired()}
        for key in sorted(wanted.keys() | told.keys()):
            wish = wanted.get(key)
            if told.get(key) != (wish[1] if wish is not None else None):
                self._world.violation(f"{node.name} was told otherwise of {key}: wished is {wish!r}")
                self.explain([key.partition("/")[2]])

    def _flows(self, node: AgentProcess) -> None:
        """The switch has what a fresh compile of the journal gives."""
        ofports = _on_switch(node)
        view = node_view(node.hardware.desired(), node.id, ofports, node.tunnel_ip, TUNNEL_OFPORT)
        wanted, has = set(compile_view(view)), set(node.hardware.switch.flows.flows())
        if wanted != has:
            extra, missing = sorted(map(str, has - wanted))[:3], sorted(map(str, wanted - has))[:3]
            self._world.violation(f"flows of {node.name}: too many {extra}, missing {missing}")

    def _devices(self, rows: list[Resource]) -> None:
        """A running VM has the disks and nics it is to have, and no others; sizes too."""
        world = self._world
        nodes = {node.id: node for node in world.nodes}
        for row in rows:
            if row.kind != Kind.VM or row.state != State.RUNNING or row.node is None:
                continue
            domain = nodes[row.node].hardware.host.domains.get(row.id)
            if domain is None or not domain.running:
                world.violation(f"{row.id} is said to run on {nodes[row.node].name} and does not")
                continue
            disks = {r.id for r in rows if r.kind == Kind.DISK and r.spec_as(DiskSpec).vm == row.id}
            nics = {r.id for r in rows if r.kind == Kind.NIC and r.spec_as(NicSpec).vm == row.id}
            has_disks = {disk for disk in domain.disks if not disk.endswith("-cidata")}
            if has_disks != disks or set(domain.nics) != nics:
                world.violation(f"{row.id} has {has_disks} and {set(domain.nics)}, not {disks} and {nics}")


def _kept_for_clones(tx: Tx) -> set[str]:
    """Disks that stay in the trash for as long as others depend on their snapshots."""
    trashed = [row for row in all_of(tx, Kind.DISK) if row.state == State.TRASHED]
    return {row.id for row in trashed if any(users_of(tx, snap.id) for snap in snapshots.of_disk(tx, row.id))}


def _lost(tx: Tx) -> set[str]:
    """Disks whose bytes are gone with their node, and their snapshots."""
    disks = [row for row in all_of(tx, Kind.DISK) if row.status_as(DiskStatus).lost]
    return {row.id for disk in disks for row in (disk, *snapshots.of_disk(tx, disk.id)) if row.state == State.ERROR}


def _relocating(tx: Tx) -> list[str]:
    """Drains and rebalances that have something to do still, and drains of which the rows say two things."""
    left = []
    for row in (*all_of(tx, Kind.NODE), *all_of(tx, Kind.CLUSTER)):
        going = relocations.open_of(tx, "drain" if row.kind == Kind.NODE else "rebalance", row.id)
        if going is not None and going.state == "moving":
            left.append(f"{going.kind} of {row.name} goes on: {going.moves}")
        if row.kind == Kind.NODE and row.spec_as(NodeSpec).draining != (going is not None):
            left.append(f"node {row.name} is {row.spec}, and its drain is {going}")
    return left


def _vm_pending(row: Resource) -> list[str]:
    spec = row.spec_as(VmSpec)
    if row.state == State.ERROR:
        reason = str(row.status)
        if any(pattern.search(_reason(row)) for pattern in GOOD_REASONS):
            return []
        return [f"vm {row.id} is in error: {reason}"]
    wanted = State.RUNNING if spec.power == "on" else State.STOPPED
    return [] if row.state == wanted else [f"vm {row.id} is {row.state}, wanted {wanted}: {row.status}"]


def _reason(row: Resource) -> str:
    return row.status_as(VmStatus).reason


def _on_switch(node: AgentProcess) -> dict[str, int]:
    switch = node.hardware.switch
    present = switch.devices | set(switch.taps)
    return {port.owner: port.ofport for name, port in switch._ports.items() if name in present}
