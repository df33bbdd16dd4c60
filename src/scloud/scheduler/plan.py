"""Placement: f(snapshot, request) -> plan. Equal inputs give equal plans; ties go to the smaller id."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from scloud.scheduler.filters import FILTERS
from scloud.scheduler.snapshot import Candidate, NodeSnapshot, Plan, Request
from scloud.scheduler.weighers import score


def place(nodes: Iterable[NodeSnapshot], request: Request) -> Plan:
    """Judge every node, with every reason: what a dry run shows."""
    candidates = []
    for node in nodes:
        reasons = tuple(text for check in FILTERS if (text := check(node, request)) is not None)
        candidates.append(Candidate(node.id, node.name, reasons, 0.0 if reasons else score(node, request)))
    fitting = [candidate for candidate in candidates if candidate.fits]
    best = min(fitting, key=lambda candidate: (candidate.score, candidate.node), default=None)
    ordered = sorted(candidates, key=lambda candidate: (not candidate.fits, candidate.score, candidate.name))
    return Plan(best.node if best else None, tuple(ordered))


def choose(nodes: Iterable[NodeSnapshot], request: Request) -> str | None:
    """The same decision as `place` without the account of it, stopping at a node's first reason."""
    best: tuple[float, str] | None = None
    for node in nodes:
        for check in FILTERS:
            if check(node, request) is not None:
                break
        else:
            key = (score(node, request), node.id)
            if best is None or key < best:
                best = key
    return best[1] if best else None


def take(nodes: Sequence[NodeSnapshot], index: int, request: Request) -> NodeSnapshot:
    """The node as it is once the request has been placed on it, for the next decision of a batch."""
    node = nodes[index]
    return replace(
        node,
        cpus_used=node.cpus_used + request.cpus,
        memory_used_mib=node.memory_used_mib + request.memory_mib,
        disk_used_mib=node.disk_used_mib + request.disk_mib,
    )
