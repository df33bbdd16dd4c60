"""Capacity, forecast, and how far moving data has got. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scloud.model.storage import Condition, PoolSpec, Recovery, StorageCapacity, copies_of
from scloud.reconcile.ceph.view import OsdSeen, PoolSeen, View

MIB = 1 << 20
DAY = 86400.0
LEAST_SPAN_S = 3600.0
"""History shorter than that says nothing of the days to come."""
FAR_DAYS = 3650.0
REFUSE, ACCEPT_AGAIN = 0.85, 0.82
"""Fill of the fullest device at which a pool takes no new disks: Ceph warns there, stops recovery at 0.90 and ALL
writes at 0.95. Some way below before it takes them again, so that it does not flicker."""


def raw_factor(redundancy: str) -> float:
    """Bytes on devices for each byte of a disk."""
    data, more = copies_of(redundancy)
    return (data + more) / data


def full_in_days(history: Sequence[tuple[float, int]], available_mib: int) -> float | None:
    """When so much more will be used, by the straight line that fits the history best."""
    if len(history) < 3 or history[-1][0] - history[0][0] < LEAST_SPAN_S:
        return None
    count = len(history)
    mean_at = sum(at for at, _ in history) / count
    mean_used = sum(used for _, used in history) / count
    spread = sum((at - mean_at) ** 2 for at, _ in history)
    slope = sum((at - mean_at) * (used - mean_used) for at, used in history) / spread
    if slope <= 0:
        return None
    days = available_mib / slope / DAY
    return round(days, 1) if days < FAR_DAYS else None


def cluster_capacity(view: View, provisioned_mib: int, history: Sequence[tuple[float, int]]) -> StorageCapacity:
    """The forecast is of the fullest device, which decides, if all go on filling as they have."""
    total, used = view.total_bytes // MIB, view.used_bytes // MIB
    fullest = max(fill(view.osds, None), used / total if total else 0.0)

    def room(limit: float) -> int:
        return max(0, int(used * (limit / fullest - 1))) if fullest else int(total * limit)

    return StorageCapacity(
        total_mib=total,
        used_mib=used,
        available_mib=view.available_bytes // MIB,
        provisioned_mib=provisioned_mib,
        refused_in_days=full_in_days(history, room(closing(view))),
        full_in_days=full_in_days(history, room(view.full)),
    )


def pool_capacity(
    spec: PoolSpec, view: View, seen: PoolSeen, provisioned_mib: int, history: Sequence[tuple[float, int]]
) -> StorageCapacity:
    """As its users see it; what is available is shared with the cluster's other pools, and is what can be written until
    the fullest device is full."""
    used, available = -(-seen.stored // MIB), seen.available // MIB
    at, limit = pool_fill(spec, view, seen), closing(view)
    open_mib = int(available * (limit - at) / (view.full - at)) if at < limit < view.full else 0
    return StorageCapacity(
        total_mib=used + available,
        used_mib=used,
        available_mib=available,
        provisioned_mib=provisioned_mib,
        refused_in_days=full_in_days(history, open_mib),
        full_in_days=full_in_days(history, available),
    )


def sooner(pool: StorageCapacity, cluster: StorageCapacity) -> StorageCapacity:
    """The forecast of a pool that shares all its devices with others: those fill them, too."""

    def first(*days: float | None) -> float | None:
        return min((each for each in days if each is not None), default=None)

    return pool.model_copy(
        update={
            "refused_in_days": first(pool.refused_in_days, cluster.refused_in_days),
            "full_in_days": first(pool.full_in_days, cluster.full_in_days),
        }
    )


def forecast(capacity: StorageCapacity) -> str:
    """`; at this rate new disks are refused in 3 days and all writes wait in 9 days`, as far as it is so."""
    words = []
    if capacity.refused_in_days:
        words.append(f"new disks are refused in {capacity.refused_in_days:g} days")
    if capacity.full_in_days is not None:
        words.append(f"all writes wait in {capacity.full_in_days:g} days")
    return f"; at this rate {' and '.join(words)}" if words else ""


def closing(view: View) -> float:
    """Fill of the fullest device at which new disks are refused, 0..1."""
    return min(REFUSE, view.nearfull)


def fill(osds: Iterable[OsdSeen], media: str | None) -> float:
    """Of the fullest device of this kind that takes data, 0..1: that one decides when writes stop."""
    return max(
        (
            osd.used_kib / osd.total_kib
            for osd in osds
            if osd.total_kib and osd.up and osd.taken_in and (media is None or osd.media == media)
        ),
        default=0.0,
    )


def room_told(view: View) -> bool:
    """Whether it is known how full devices are: only a manager tells."""
    return any(osd.total_kib for osd in view.osds)


def pool_fill(spec: PoolSpec, view: View, seen: PoolSeen) -> float:
    """Of the fullest device that the pool may use, 0..1."""
    # Ceph's share of a pool is 1 when its devices are at the full ratio; brought to the scale of the devices' fill.
    return max(fill(view.osds, spec.media.value if spec.media else None), seen.used_fraction * view.full)


def fullness(
    spec: PoolSpec, view: View, seen: PoolSeen, warn: float, accepted: bool, when: str = ""
) -> tuple[bool, list[Condition]]:
    """Whether the pool takes new disks, and what is to be said of its room. `accepted` is whether it did until now,
    `when` its forecast in words."""
    used, limit = pool_fill(spec, view, seen), closing(view)
    if seen.over_quota:
        message = (
            "the quota that somebody has set for it in Ceph is used up: ALL WRITES WAIT until there is room, reads go "
            "on; delete disks for good (`scloud disk delete --now`) or raise the quota (`ceph osd pool set-quota "
            f"{seen.name} max_bytes N`)"
        )
        return False, [Condition(name="full", level="error", message=message)]
    if seen.full:
        message = (
            f"{used:.0%} of its fullest device is used: ALL WRITES WAIT until there is room, reads go on; delete disks "
            "for good (`scloud disk delete --now`) or add devices (`scloud storage-cluster device add`)"
        )
        return False, [Condition(name="full", level="error", message=message)]
    if used >= limit or (not accepted and used >= limit - (REFUSE - ACCEPT_AGAIN)):
        message = (
            f"{used:.0%} of its fullest device is used: no new disks are made and none grows, so that those there are "
            f"can go on being written; at {view.full:.0%} all writes would wait{when}; add devices "
            "(`scloud storage-cluster device add`) or delete disks"
        )
        return False, [Condition(name="near-full", level="error", message=message)]
    if used >= warn:
        message = (
            f"{used:.0%} of its fullest device is used; from {limit:.0%} on it takes no new disks{when}: add devices "
            "(`scloud storage-cluster device add`) or delete disks"
        )
        return True, [Condition(name="filling-up", level="warning", message=message)]
    return True, []


@dataclass(frozen=True, slots=True)
class Track:
    """How far moving data is: when it was last looked at, what was left, the most there was, objects a second."""

    at: float
    left: int
    most: int
    rate: float = 0.0


def track(before: Track | None, now: float, left: int, told: float) -> Track | None:
    """None when nothing is left. The rate is what was really done, smoothed; `told` is Ceph's own, to begin with."""
    if left <= 0:
        return None
    if before is None or left > before.most:
        return Track(now, left, max(left, before.most if before else 0), told)
    passed = now - before.at
    if passed <= 0:
        return before
    done = max(0, before.left - left) / passed
    rate = done if before.rate == 0 else before.rate * 0.7 + done * 0.3
    return Track(now, left, before.most, rate if rate > 0.01 else told)


def recovery(view: View, at: Track | None) -> Recovery:
    if at is None:
        return Recovery(unfound=view.unfound)
    return Recovery(
        degraded=view.degraded,
        misplaced=view.misplaced,
        unfound=view.unfound,
        objects_per_s=round(at.rate, 1),
        seconds_left=round(at.left / at.rate, 0) if at.rate > 0.01 else None,
    )


def spoken(seconds: float) -> str:
    """45 s, 12 min, 3 h, 2 days."""
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (2 * 86400, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def progress(at: Track | None) -> tuple[int, str]:
    """(percent, words) of a removal that waits for data to move."""
    if at is None:
        return 95, "no object is left to move; waiting until nothing needs it"
    done = min(94, 100 * (at.most - at.left) // at.most) if at.most else 0
    if at.rate > 0.01:
        return done, f"{at.left} objects left, {at.rate:.0f} a second, {spoken(at.left / at.rate)} to go"
    return done, f"{at.left} objects left"
