"""What `cluster rebalance` is told: the VMs of a cluster as the scheduler wants to see them, and its proposal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scloud.controllers import placement
from scloud.model.kinds import Kind, State
from scloud.model.specs import DiskSpec, ImageSpec, NodeSpec, PlacementGroupSpec, VmSpec
from scloud.scheduler.rebalance import Placed, Proposal, propose
from scloud.scheduler.snapshot import NodeSnapshot
from scloud.store.database import Tx
from scloud.store.resources import Resource, all_of

SETTLED = (State.RUNNING, State.STOPPED)


@dataclass(frozen=True, slots=True)
class Rebalancing:
    """A proposal for one cluster: its nodes as they are, and how many VMs stay where they are, by the reason."""

    proposal: Proposal
    nodes: Sequence[NodeSnapshot]
    stays: dict[str, int]


def rebalancing(tx: Tx, cluster: Resource, loads: placement.Loads, limit: int) -> Rebalancing:
    """At most `limit` moves among the cluster's nodes. Nothing is written."""
    mine = {row.id for row in all_of(tx, Kind.NODE) if row.spec_as(NodeSpec).cluster == cluster.id}
    nodes = [node for node in placement.snapshot(tx, loads) if node.id in mine]
    vms = placed(tx)
    stays = Counter(vm.stays for vm in vms if vm.stays and vm.node in mine)
    return Rebalancing(propose(nodes, vms, limit=limit), nodes, dict(stays))


def placed(tx: Tx) -> list[Placed]:
    """Every VM that has a node."""
    disks: dict[str, list[DiskSpec]] = {}
    for row in all_of(tx, Kind.DISK):
        disk = row.spec_as(DiskSpec)
        if disk.vm is not None:
            disks.setdefault(disk.vm, []).append(disk)
    images = {row.id: row.spec_as(ImageSpec).architecture for row in all_of(tx, Kind.IMAGE)}
    groups = {row.id: row.spec_as(PlacementGroupSpec) for row in all_of(tx, Kind.PLACEMENT_GROUP)}
    draining = {row.id for row in all_of(tx, Kind.NODE) if row.spec_as(NodeSpec).draining}
    reaches: dict[frozenset[str], frozenset[str] | None] = {}
    result = []
    for row in all_of(tx, Kind.VM):
        if row.node is None:
            continue
        spec, own = row.spec_as(VmSpec), disks.get(row.id, [])
        pools = frozenset(item.pool for item in own if item.pool is not None)
        if pools not in reaches:
            reaches[pools] = placement.reachable_from(tx, pools)
        group = groups.get(spec.placement_group or "", PlacementGroupSpec())
        result.append(
            Placed(
                id=row.id,
                name=row.name,
                account=row.account or "",
                node=row.node,
                cpus=spec.cpus,
                memory_mib=spec.memory_mib,
                disk_mib=sum(item.size_mib for item in own if item.pool is None),
                architecture=images.get(spec.image, "x86_64"),
                group=spec.placement_group,
                group_hard=spec.placement_group is not None and group.policy == "hard",
                group_over_racks=group.over == "rack",
                stays=_stays(row, spec, own, row.node in draining),
                reachable_from=reaches[pools],
            )
        )
    return result


def _stays(row: Resource, spec: VmSpec, disks: list[DiskSpec], draining: bool) -> str:
    """Why a VM is not to be moved, if it is not."""
    if draining:
        return "leave a node that is being drained"
    if spec.gpus:
        return "have GPUs, and devices of a host cannot be moved"
    if any(disk.pool is None for disk in disks):
        return "have disks in their node's own storage"
    if spec.node is not None:
        return "may be on one node only"
    if row.state not in SETTLED:
        return f"is {row.state}"
    return ""
