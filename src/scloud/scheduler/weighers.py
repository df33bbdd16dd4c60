"""How well a node would do, among those that can: lower is better. Weights order the concerns."""

from __future__ import annotations

from scloud.scheduler.snapshot import NodeSnapshot, Request

LOAD_WEIGHT = 0.5
"""A node whose CPUs are all busy is as bad as one of which half as much again has been promised."""
GROUP_WEIGHT = 100.0
"""One more member of the placement group in the same node, or rack, outweighs everything else."""
WITHIN_RACK_WEIGHT = 10.0
"""Of a group that is spread over racks: members of one rack are still on different nodes where they can be."""
GPU_WEIGHT = 0.25
"""A node with free GPUs is as bad, for a VM that wants none, as one that is a quarter fuller."""
SCATTER_WEIGHT = 0.5
"""One more VM of the same account weighs as much as half a node's load."""


def fullness(node: NodeSnapshot, cpus: int = 0, memory_mib: int = 0) -> float:
    """How full a node is with so much more, 0..1: the worse of CPU and memory promised."""
    cpu = (node.cpus_used + cpus) / node.cpus if node.cpus else 1.0
    memory = (node.memory_used_mib + memory_mib) / node.memory_mib if node.memory_mib else 1.0
    return max(cpu, memory)


def promised(node: NodeSnapshot, request: Request) -> float:
    """How full the node would be."""
    return fullness(node, request.cpus, request.memory_mib)


def load(node: NodeSnapshot) -> float:
    """How busy it really is; see `Load.pressure`."""
    return LOAD_WEIGHT * node.load.pressure


def spared(node: NodeSnapshot, request: Request) -> float:
    """Nodes with free GPUs are kept for VMs that ask for some."""
    return GPU_WEIGHT if not request.gpus and node.free_gpus() else 0.0


def group(node: NodeSnapshot, request: Request) -> float:
    near = GROUP_WEIGHT * request.members_near(node)
    return near + WITHIN_RACK_WEIGHT * request.group_vms.get(node.id, 0) if request.group_over == "rack" else near


def scatter(node: NodeSnapshot, request: Request) -> float:
    return SCATTER_WEIGHT * request.account_vms.get(node.id, 0)


def parts(node: NodeSnapshot, request: Request) -> dict[str, float]:
    """What a node's score is the sum of, in the order in which it is added up."""
    return {
        "promised": promised(node, request),
        "load": load(node),
        "gpu": spared(node, request),
        "group": group(node, request),
        "account": scatter(node, request),
    }


def score(node: NodeSnapshot, request: Request) -> float:
    return sum(parts(node, request).values())
