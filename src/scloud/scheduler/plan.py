"""Placement: f(snapshot, request) -> plan. Equal inputs give equal plans; ties go to the smaller id."""

from __future__ import annotations

from collections.abc import Iterable

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
