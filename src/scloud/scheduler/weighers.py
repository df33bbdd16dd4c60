"""How well a node would do, among those that can: lower is better. Weights order the concerns."""

from __future__ import annotations

from scloud.scheduler.snapshot import NodeSnapshot, Request

LOAD_WEIGHT = 0.5
"""A node whose CPUs are all busy is as bad as one of which half as much again has been promised."""
GROUP_WEIGHT = 100.0
"""One more member of the placement group outweighs everything else."""
SCATTER_WEIGHT = 0.5
"""One more VM of the same account weighs as much as half a node's load."""


def load(node: NodeSnapshot, request: Request) -> float:
    """How full the node would be, 0..1 each: the worse of CPU and memory promised, and the CPU really used."""
    cpu = (node.cpus_used + request.cpus) / node.cpus if node.cpus else 1.0
    memory = (node.memory_used_mib + request.memory_mib) / node.memory_mib if node.memory_mib else 1.0
    return max(cpu, memory) + LOAD_WEIGHT * node.cpu_load


def score(node: NodeSnapshot, request: Request) -> float:
    return (
        load(node, request)
        + GROUP_WEIGHT * request.group_vms.get(node.id, 0)
        + SCATTER_WEIGHT * request.account_vms.get(node.id, 0)
    )
