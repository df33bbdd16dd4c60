"""Reasons why a node cannot take a VM. Each filter answers None, or a sentence for people."""

from __future__ import annotations

from collections.abc import Callable

from scloud.scheduler.snapshot import NodeSnapshot, Request

Filter = Callable[[NodeSnapshot, Request], str | None]


def pinned(node: NodeSnapshot, request: Request) -> str | None:
    if request.node is not None and node.id != request.node:
        return "another node was asked for"
    return None


def alive(node: NodeSnapshot, request: Request) -> str | None:
    if not node.ready:
        return node.reason or "is not ready"
    return None


def not_cordoned(node: NodeSnapshot, request: Request) -> str | None:
    if node.draining:
        return "is being drained (`scloud node undrain` ends that)"
    if node.cordoned:
        return "is cordoned (`scloud node uncordon` opens it)"
    return None


def architecture(node: NodeSnapshot, request: Request) -> str | None:
    if node.architecture != request.architecture:
        return f"is {node.architecture or 'of unknown architecture'}, the image is {request.architecture}"
    return None


def cpus(node: NodeSnapshot, request: Request) -> str | None:
    free = node.cpus - node.cpus_used
    if request.cpus > free:
        return f"has too few CPUs left ({max(free, 0)} of {node.cpus} with overcommit, {request.cpus} asked for)"
    return None


def memory(node: NodeSnapshot, request: Request) -> str | None:
    free = node.memory_mib - node.memory_used_mib
    if request.memory_mib > free:
        return f"has too little memory left ({max(free, 0)} MiB, {request.memory_mib} asked for)"
    return None


def disk(node: NodeSnapshot, request: Request) -> str | None:
    free = node.disk_mib - node.disk_used_mib
    if request.disk_mib > free:
        return f"has too little disk left ({max(free, 0)} MiB, {request.disk_mib} asked for)"
    return None


def anti_affinity(node: NodeSnapshot, request: Request) -> str | None:
    if not request.group_hard:
        return None
    if request.group_over == "rack":
        if not node.rack:
            return "stands in no rack that is known, and its hard group is spread over racks (`scloud node label`)"
        if request.members_near(node):
            return f"stands in rack {node.rack}, which already has a VM of this hard placement group"
    elif request.members_near(node):
        return "already has a VM of this hard placement group"
    return None


def not_left(node: NodeSnapshot, request: Request) -> str | None:
    return "is where it runs, or has left something that is being removed" if node.id in request.away else None


def reaches_pools(node: NodeSnapshot, request: Request) -> str | None:
    if request.reachable_from is not None and node.id not in request.reachable_from:
        return "is not a node of the storage cluster that has its disks"
    return None


def gpus(node: NodeSnapshot, request: Request) -> str | None:
    free = node.free_gpus(request.gpu_model)
    if request.gpus > free:
        kind = f" of model {request.gpu_model}" if request.gpu_model else " of one model"
        return f"has too few GPUs{kind} free ({free}, {request.gpus} asked for)"
    return None


FILTERS: tuple[Filter, ...] = (
    *(pinned, alive, not_cordoned, not_left, architecture, reaches_pools, cpus, memory, disk, gpus, anti_affinity),
)
