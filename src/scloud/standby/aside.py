"""When a leader stands aside for a standby that reaches more nodes than it does. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from scloud.store.lease import Holder, Offer

HEARD_S = 3.0
"""A node that has said nothing for so long (a heartbeat is due every second) is not counted as heard."""
SETTLE_S = 30.0
"""A manager that has just begun to lead is given so long to be found by its nodes."""


def successor(heard: int, offers: Sequence[Offer], led_s: float) -> Holder | None:
    """To whom the lease goes, if it should: `heard` nodes are heard by the leader, which has led for `led_s` seconds.

    A standby that strictly more nodes reach than the leader hears, and that cannot bring them to it. They are not among
    those that it hears, so these are fewer than half of all nodes that could be heard. As long as who reaches whom
    stays as it is, each change of hands raises the number of nodes that are heard: it cannot go to and fro.
    """
    if led_s < SETTLE_S or not offers:
        return None
    best = max(offers, key=lambda offer: offer.nodes)
    return best.holder if best.nodes > heard else None
