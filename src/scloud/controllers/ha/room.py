"""Why VMs of a lost node find no room, at a bounded price.

To say it takes a look at every node with all its reasons. Looking for room is done every few seconds, for every VM that
waits, in the database's only writer: so VMs that ask for the same are told the same, and of what differs only a few are
explained anew at once, those first that were explained longest ago.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from scloud.controllers import placement
from scloud.controllers.placement import Loads
from scloud.scheduler.plan import place
from scloud.scheduler.snapshot import Request
from scloud.store.database import Tx

EXPLAINED = 4
"""Shapes that are explained anew in one look."""
LASTS_S = 10.0
"""So long an explanation is good enough."""
LATER = "what each node lacks is told shortly"
Shape = tuple[object, ...]


def shape(request: Request) -> Shape:
    """What decides whether there is room, and in which words not."""
    group = (frozenset(request.group_vms.items()), request.group_hard, request.group_over)
    size = (request.cpus, request.memory_mib, request.disk_mib, request.architecture, request.gpus, request.gpu_model)
    return (*size, *group, request.node, request.reachable_from, request.away)


@dataclass(slots=True)
class Reasons:
    """What was said of each shape, and when, in seconds since 1970. Of one incident; forgotten with its manager."""

    _known: dict[Shape, tuple[str, float]] = field(default_factory=dict)

    def of(self, tx: Tx, requests: Iterable[Request], loads: Loads) -> dict[Shape, str]:
        """Of all that find no room now; what is not among them is forgotten."""
        asked = {shape(request): request for request in requests}
        self._known = {one: known for one, known in self._known.items() if one in asked}
        due = [one for one in asked if one not in self._known or tx.now - self._known[one][1] >= LASTS_S]
        due.sort(key=lambda one: self._known[one][1] if one in self._known else 0.0)
        if due:
            nodes = placement.view_of(tx, loads).fleet.snapshots()
            for one in due[:EXPLAINED]:
                self._known[one] = (place(nodes, asked[one]).explain(), tx.now)
        return {one: self._known[one][0] if one in self._known else LATER for one in asked}
