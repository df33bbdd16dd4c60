"""Whose a node's GPUs are: each is claimed by at most one VM, in the transaction that places it."""

from __future__ import annotations

from collections import Counter

from scloud.model.errors import CloudError, ErrorKind
from scloud.model.gpus import Gpu
from scloud.model.specs import VmSpec
from scloud.model.statuses import NodeStatus
from scloud.store.database import Tx
from scloud.store.resources import Resource, claim_value, claimed, find, unclaim


def _scope(node: str) -> str:
    return f"gpu/{node}"


def free(tx: Tx, node: Resource) -> list[Gpu]:
    """Those that can be given to a VM now, in order of address."""
    offered = [gpu for gpu in node.status_as(NodeStatus).gpus if not gpu.reason]
    if not offered:
        return []
    taken = claimed(tx, _scope(node.id))
    return [gpu for gpu in offered if gpu.address not in taken]


def counts(tx: Tx, node: Resource) -> dict[str, int]:
    """How many of each model nobody has."""
    return dict(Counter(gpu.model for gpu in free(tx, node)))


def take(tx: Tx, vm: str, node: str, spec: VmSpec) -> tuple[Gpu, ...]:
    """Claim as many as a VM is to have; NO_CAPACITY if the node has too few, which the scheduler has ruled out."""
    if not spec.gpus:
        return ()
    row = find(tx, node)
    there = free(tx, row) if row is not None else []
    models = Counter(gpu.model for gpu in there)
    model = spec.gpu_model or max(models, key=lambda name: (models[name], name), default="")
    chosen = tuple(gpu for gpu in there if gpu.model == model)[: spec.gpus]
    if len(chosen) < spec.gpus or not all(claim_value(tx, _scope(node), gpu.address, vm) for gpu in chosen):
        raise CloudError(ErrorKind.NO_CAPACITY, f"node {node} has no {spec.gpus} GPUs free any more; try again")
    tx.memory.forget()  # the view of all nodes has them as free
    return chosen


def give_back(tx: Tx, vm: str, node: str) -> None:
    """The VM has left its node."""
    if unclaim(tx, _scope(node), vm):
        tx.memory.forget()
