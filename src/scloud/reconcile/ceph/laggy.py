"""Placement groups that wait for a lease that nobody renews. Pure.

A placement group answers only while its read lease lasts (`osd_heartbeat_grace` × 0.8). If its primary's process stood
still and one renewal was lost, it stays `laggy` for ever, and every request to it waits, while its OSD is up and well:
nothing in Ceph looks at it again before its next interval (tracker.ceph.com, issue 80404). Marked down, the OSD
comes back within a second or two, and with it a new interval.
"""

from __future__ import annotations

from collections.abc import Mapping

from scloud.model.storage import Condition
from scloud.reconcile.ceph.commands import Command, mon

STUCK_S = 30.0
"""Leases are renewed within seconds, on the slowest of clusters within Ceph's default grace of 20 s."""


def follow(before: Mapping[str, float], seen: Mapping[str, int], now: float) -> dict[str, float]:
    """Since when each placement group of `seen` has been laggy in every look; seconds of any clock."""
    return {group: before.get(group, now) for group in seen}


def stuck(since: Mapping[str, float], seen: Mapping[str, int], now: float) -> dict[str, int]:
    """Those of `seen` (placement group to primary) that will not go on by themselves."""
    return {group: osd for group, osd in seen.items() if now - since.get(group, now) >= STUCK_S}


def plan(groups: Mapping[str, int]) -> list[Command]:
    """A new interval for the placement groups of `groups`."""
    return [
        mon(
            f"osd.{osd} begins anew with its placement groups, which nobody renews the leases of", "osd down", ids=[osd]
        )
        for osd in (str(number) for number in sorted(set(groups.values())))
    ]


def condition(seen: Mapping[str, int], *, ours: bool) -> Condition:
    osds = ", ".join(f"osd.{number}" for number in sorted(set(seen.values())))
    groups = "1 placement group answers" if len(seen) == 1 else f"{len(seen)} placement groups answer"
    remedy = (
        f"what stays so for {STUCK_S:g} s is made to begin anew"
        if ours
        else f"if it stays so, `ceph osd down` for {osds}, which come back by themselves"
    )
    message = (
        f"{groups} nobody, after a pause of {osds}: reads and writes of some disks wait, nothing is lost; {remedy}"
    )
    return Condition(name="paused", level="warning", message=message)
