"""Placement: f(snapshot, request) -> plan. Equal inputs give equal plans; ties go to the smaller id."""

from __future__ import annotations

from collections.abc import Iterable

from scloud.scheduler.filters import FILTERS
from scloud.scheduler.snapshot import Candidate, NodeSnapshot, Plan, Request, counted
from scloud.scheduler.weighers import parts


def place(nodes: Iterable[NodeSnapshot], request: Request) -> Plan:
    """Judge every node, with every reason: what a dry run shows."""
    nodes = tuple(nodes)
    request = counted(nodes, request)
    candidates = []
    for node in nodes:
        reasons = tuple(text for check in FILTERS if (text := check(node, request)) is not None)
        weighed = {} if reasons else parts(node, request)
        candidates.append(Candidate(node.id, node.name, reasons, sum(weighed.values()), weighed))
    fitting = [candidate for candidate in candidates if candidate.fits]
    best = min(fitting, key=lambda candidate: (candidate.score, candidate.node), default=None)
    ordered = sorted(candidates, key=lambda candidate: (not candidate.fits, candidate.score, candidate.name))
    return Plan(best.node if best else None, tuple(ordered))
