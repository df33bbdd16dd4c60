"""Ceph's health checks in words: what is so, what it means for those who use it, and what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from scloud.model.storage import Condition
from scloud.reconcile.ceph.view import Check

SHOWN = 3
"""Details that a condition repeats; the rest is counted."""

WAITING_REMEDY = (
    "bring back the devices that are down; of an erasure-coded pool one device more is needed than it has data chunks. "
    "What stays away for ten minutes is rebuilt on other hosts, if there are enough of them"
)
# code: (name, what it means, what to do)
_WORDS: dict[str, tuple[str, str, str]] = {
    "OSD_DOWN": (
        "osd-down",
        "what is on them has fewer copies until they return or, after ten minutes, is rebuilt elsewhere",
        "if the device is broken, `scloud storage-cluster device replace`; if its node is down, start it",
    ),
    "OSD_HOST_DOWN": (
        "host-down",
        "all devices of the host are away",
        "start the node; for work that was planned, `scloud storage-cluster maintenance` keeps data from being moved",
    ),
    "OSD_RACK_DOWN": ("rack-down", "all devices of the rack are away", "look after its power and network"),
    "OSD_DATACENTER_DOWN": (
        "datacenter-down",
        "all devices of the datacenter are away",
        "look after its power and network",
    ),
    "PG_AVAILABILITY": (
        "data-unavailable",
        "reads and writes of some disks wait",
        WAITING_REMEDY,
    ),
    "PG_DEGRADED": (
        "fewer-copies",
        "some data has fewer copies than it should",
        "nothing, while recovery goes on; else bring back or replace the devices that are down",
    ),
    "PG_DAMAGED": (
        "damaged",
        "copies of some data differ; the good ones are known and can be restored",
        "`scloud storage-cluster repair`",
    ),
    "OSD_SCRUB_ERRORS": (
        "scrub-errors",
        "a scrub has found copies that differ or cannot be read",
        "`scloud storage-cluster repair`; if it is the same device again and again, replace it",
    ),
    "OBJECT_UNFOUND": (
        "unfound",
        "the last copies of some objects are on devices that are away; reads of them wait",
        "bring those devices back, and do not replace them before",
    ),
    "OBJECT_MISPLACED": ("moving", "data is moving to where it should be", "nothing"),
    "OSD_NEARFULL": (
        "near-full",
        "devices are nearly full; before they are full, writes are stopped",
        "add devices (`scloud storage-cluster device add`) or delete disks",
    ),
    "OSD_BACKFILLFULL": (
        "too-full-to-recover",
        "devices are so full that no more data is moved to them",
        "add devices (`scloud storage-cluster device add`) or delete disks",
    ),
    "OSD_FULL": (
        "full",
        "ALL WRITES to pools on them WAIT until there is room; reads go on",
        "delete disks for good (`scloud disk delete --now`) or add devices (`scloud storage-cluster device add`)",
    ),
    "POOL_NEARFULL": ("pool-near-full", "pools are nearly full", "add devices or delete disks"),
    "POOL_BACKFILLFULL": ("pool-too-full-to-recover", "pools are too full to recover", "add devices or delete disks"),
    "POOL_FULL": (
        "pool-full",
        "ALL WRITES to them WAIT until there is room; reads go on",
        "delete disks for good (`scloud disk delete --now`) or add devices",
    ),
    "PG_RECOVERY_FULL": (
        "too-full-to-recover",
        "copies that are behind are not brought up to date while one of them is on a full device",
        "delete disks for good or add devices; if new ones have room and this stays, `ceph osd set-full-ratio 0.97` "
        "lets it go on, and 0.95 is to be set again after it",
    ),
    "PG_BACKFILL_FULL": ("too-full-to-move", "data cannot move for want of room", "add devices"),
    "MON_DOWN": (
        "monitor-down",
        "the other monitors go on; if more than half of them are away, everything stands still",
        "start the node the monitor is on, or take it out of the cluster so that another node gets one",
    ),
    "MON_CLOCK_SKEW": (
        "clocks-differ",
        "the nodes' clocks differ; monitors may lose their quorum",
        "have all nodes set their clocks by the same time servers",
    ),
    "MON_DISK_LOW": ("monitor-disk-low", "a monitor's file system fills up", "make room on the node's root disk"),
    "MON_DISK_CRIT": ("monitor-disk-full", "a monitor will stop for want of room", "make room on the node's root disk"),
    "MGR_DOWN": (
        "no-manager",
        "figures and progress are out of date, data is not concerned",
        "start the nodes that the managers are on",
    ),
    "OSDMAP_FLAGS": ("flags", "somebody has set flags for the whole cluster", "`ceph osd unset FLAG` once it is over"),
    "OSD_FLAGS": (
        "maintenance",
        "what is on these hosts is not rebuilt elsewhere while they are down",
        "`scloud storage-cluster maintenance off` when the work is done",
    ),
    "SLOW_OPS": (
        "slow-requests",
        "some requests have been waiting for more than 30 s",
        "see which device is slow in `scloud storage-cluster show`; replace it if it stays so",
    ),
    "PG_NOT_SCRUBBED": (
        "scrub-late",
        "some data has not been scrubbed in time",
        "give scrubbing more hours (`scloud storage-cluster set --scrub-hours`)",
    ),
    "PG_NOT_DEEP_SCRUBBED": (
        "deep-scrub-late",
        "some data has not been read and compared in time",
        "give scrubbing more hours (`scloud storage-cluster set --scrub-hours`)",
    ),
    "RECENT_CRASH": (
        "crashed",
        "a daemon has crashed and was started again",
        "see its log; `ceph crash archive-all` forgets it",
    ),
    "BLUEFS_SPILLOVER": ("spillover", "a device's metadata has spilled to its slow part", "give it a larger fast part"),
    "TOO_MANY_PGS": ("many-placement-groups", "devices have more placement groups than is good", "add devices"),
    "OSD_SLOW_PING_TIME_BACK": ("slow-network", "devices answer each other slowly", "look at the nodes' network"),
    "OSD_SLOW_PING_TIME_FRONT": ("slow-network", "devices answer each other slowly", "look at the nodes' network"),
    "AUTH_INSECURE_GLOBAL_ID_RECLAIM": (
        "old-clients",
        "clients that log in in an unsafe way are connected",
        "update them",
    ),
    "AUTH_INSECURE_GLOBAL_ID_RECLAIM_ALLOWED": (
        "old-clients-allowed",
        "clients may log in in an unsafe way",
        "`ceph config set mon auth_allow_insecure_global_id_reclaim false`",
    ),
}
_SILENT = frozenset({"POOL_NO_REDUNDANCY", "TOO_FEW_OSDS"})
"""What we say ourselves, better."""


def named(check: Check) -> Condition:
    """One check as a condition, without its time."""
    level: Literal["info", "warning", "error"] = "error" if check.error else "warning"
    known = _WORDS.get(check.code)
    said = _sentence(check)
    if known is None:
        name = check.code.lower().replace("_", "-")
        return Condition(name=name, level=level, message=f"{said}; `ceph health detail` has Ceph's own words")
    name, meaning, remedy = known
    if name in ("moving", "maintenance"):
        level = "info"
    return Condition(name=name, level=level, message=f"{said}: {meaning}; {remedy}")


def _sentence(check: Check) -> str:
    details = [detail.strip() for detail in check.details if detail.strip() != check.summary]
    if check.code == "OSD_FLAGS" and details:
        return ", ".join(details)
    if not details or check.code in ("PG_DEGRADED", "PG_AVAILABILITY"):
        return check.summary
    more = f" and {len(details) - SHOWN} more" if len(details) > SHOWN else ""
    return f"{check.summary} ({', '.join(details[:SHOWN])}{more})"


def from_checks(checks: Iterable[Check]) -> list[Condition]:
    """Of one name the worst only: several of Ceph's checks can be the same thing to people."""
    rank = {"error": 0, "warning": 1, "info": 2}
    found: dict[str, Condition] = {}
    for check in checks:
        if check.muted or check.code in _SILENT:
            continue
        condition = named(check)
        known = found.get(condition.name)
        if known is None or rank[condition.level] < rank[known.level]:
            found[condition.name] = condition
    return sorted(found.values(), key=lambda item: (rank[item.level], item.name))


def waiting(groups: int, of: int) -> Condition:
    """Ceph itself says so only after a minute."""
    said = f"{groups} of {of} placement groups have too few copies or chunks to be read and written"
    message = f"{said}: reads and writes of some disks wait, nothing is lost; {WAITING_REMEDY}"
    return Condition(name="data-unavailable", level="error", message=message)


def dated(now: float, fresh: Iterable[Condition], before: Sequence[Condition]) -> tuple[Condition, ...]:
    """Each since it was first there."""
    since = {item.name: item.since for item in before}
    return tuple(item.model_copy(update={"since": since.get(item.name) or now}) for item in fresh)


def appeared(fresh: Sequence[Condition], before: Sequence[Condition]) -> list[Condition]:
    """Those that are new or have become worse, and are worth telling of."""
    known = {(item.name, item.level) for item in before}
    return [item for item in fresh if item.level != "info" and (item.name, item.level) not in known]


def vanished(fresh: Sequence[Condition], before: Sequence[Condition]) -> list[Condition]:
    names = {item.name for item in fresh}
    return [item for item in before if item.level != "info" and item.name not in names]
