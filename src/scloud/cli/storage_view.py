"""What `scloud storage-cluster show` prints: the whole cluster on one screen of 80 columns."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scloud.cli import human
from scloud.cli.human import clean
from scloud.cli.looks import at, mib, yes
from scloud.cli.output import Column, Resource, card, table
from scloud.cli.storage_looks import capacity_text, days_left, worst
from scloud.cli.storage_use import BY_ACCOUNT, by_account

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

LEVELS = ("datacenter", "rack", "host")
BAR, PATH = 6, 12
_STYLE = {"error": "red", "warning": "yellow", "info": "dim"}


def rendered(
    cluster: Resource, nodes: Mapping[str, str], pools: Sequence[Resource] = (), use: Sequence[Resource] = ()
) -> Group:
    """`nodes` are names by id; `pools` those of all clusters; `use` is what accounts have in each pool."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [card(_card(nodes), cluster)]

    def section(title: str, *inner: RenderableType) -> None:
        parts.extend((Text(""), Text(title, style="bold"), *inner))

    conditions = at(cluster, "status.conditions") or []
    if conditions:
        section("Conditions", *(_condition(item) for item in conditions))
    osds = at(cluster, "status.osds") or []
    if osds:
        section("Tree and devices", table(_COLUMNS, list(tree_rows(osds))))
    mine = [pool for pool in pools if at(pool, "spec.cluster") == cluster.get("id")]
    if mine:
        section("Pools", table(_POOL_COLUMNS, mine))
    accounts = by_account(use, {pool["id"] for pool in mine})
    if accounts:
        section("Accounts", table(BY_ACCOUNT, accounts))
    recovery = recovery_text(cluster)
    if recovery:
        section("Recovery", Text(clean(recovery)))
    removing = at(cluster, "status.removing") or {}
    if removing:
        section("Being removed", *(Text(clean(f"{what}: {how}")) for what, how in removing.items()))
    damaged = at(cluster, "status.inconsistent") or []
    if damaged:
        objects = at(cluster, "status.inconsistent_objects") or {}
        whose = at(cluster, "status.damaged") or {}
        lines = [f"{group}: {text}" for group in damaged for text in _objects(objects.get(group), whose)]
        section("Inconsistent placement groups", *(Text(clean(line)) for line in lines))
    return Group(*parts)


def _objects(names: list[str] | None, whose: Mapping[str, str]) -> list[str]:
    if not names:
        return ["objects not known yet"]
    return [f"{whose[name]} ({name})" if name in whose else name for name in names]


def _card(nodes: Mapping[str, str]) -> list[Column]:
    def names(path: str) -> Any:
        return lambda cluster: ", ".join(nodes.get(id, human.short_id(id)) for id in at(cluster, path) or ())

    return [
        Column("Name", lambda cluster: str(cluster.get("name", ""))),
        Column("State", lambda cluster: str(at(cluster, "status.state")), state=True),
        Column("Health", worst, state=True),
        Column("Reason", lambda cluster: at(cluster, "status.reason") or ""),
        Column("Ceph", _version),
        Column("Nodes", names("spec.nodes")),
        Column("Monitors", _monitors),
        Column("Capacity", capacity_text),
        Column("Placement groups", groups_text),
        Column("Recovery gives way", lambda cluster: _PROFILES.get(at(cluster, "spec.recovery_profile"), "")),
        Column("Maintenance", names("spec.maintenance")),
        Column("Scrubs", _scrubs),
        Column("Looked at", _seen),
    ]


_PROFILES = {
    "client": "to clients' I/O",
    "balanced": "half and half",
    "recovery": "to nothing: clients' I/O waits",
}


def _version(cluster: Resource) -> str:
    version = at(cluster, "status.version") or ""
    return f"{version} ({at(cluster, 'spec.mode')}), {at(cluster, 'spec.fsid')}" if version else ""


def _monitors(cluster: Resource) -> str:
    up, leader = at(cluster, "status.monitors_up") or [], at(cluster, "status.leader")
    wanted = len(at(cluster, "spec.monitors") or ()) or len(up)
    if not up:
        return ""
    return f"{len(up)} of {wanted}: {', '.join(f'{name} (leads)' if name == leader else name for name in up)}"


def groups_text(cluster: Resource) -> str:
    states = at(cluster, "status.placement_groups") or {}
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items(), key=lambda item: -item[1]))


def _scrubs(cluster: Resource) -> str:
    begin, end = at(cluster, "spec.scrub_begin_hour"), at(cluster, "spec.scrub_end_hour")
    days = at(cluster, "spec.deep_scrub_days")
    if at(cluster, "spec.mode") != "deployed" or days is None:
        return ""
    hours = "at any hour" if begin == end or (begin, end) == (0, 24) else f"from {begin} to {end} o'clock"
    return f"{hours}; everything is read every {days} days"


def _seen(cluster: Resource) -> str:
    seen = at(cluster, "status.observed_at")
    return human.ago(time.time() - seen) if seen else ""


def _condition(item: Mapping[str, Any]) -> RenderableType:
    from rich.text import Text

    since = f" ({human.ago(time.time() - item['since'])})" if item.get("since") else ""
    return Text.assemble((item["level"], _STYLE.get(item["level"], "")), " ", clean(item["message"]), (since, "dim"))


def recovery_text(cluster: Resource) -> str:
    recovery = at(cluster, "status.recovery") or {}
    parts = [f"{recovery[name]} objects {name}" for name in ("degraded", "misplaced", "unfound") if recovery.get(name)]
    if not parts:
        return ""
    if recovery.get("objects_per_s"):
        parts.append(f"{recovery['objects_per_s']:.0f} objects a second")
    if recovery.get("seconds_left") is not None:
        parts.append(f"{human.age(recovery['seconds_left'])} to go")
    return ", ".join(parts)


def tree_rows(osds: list[Mapping[str, Any]]) -> Iterator[Resource]:
    """Buckets and the OSDs below them, indented, in order."""

    def path(osd: Mapping[str, Any]) -> list[tuple[str, str]]:
        place = osd.get("place") or {"host": osd.get("node", "")}
        return [(level, place[level]) for level in LEVELS if place.get(level)]

    shown: list[tuple[str, str]] = []
    for osd in sorted(osds, key=lambda item: (path(item), item["osd"])):
        above = path(osd)
        for depth, (level, name) in enumerate(above):
            if shown[: depth + 1] != above[: depth + 1]:
                yield {"what": f"{'  ' * depth}{level} {name}"}
        shown = above
        yield {"what": f"{'  ' * len(above)}osd.{osd['osd']}", "osd": osd}


def bar(fraction: float) -> str:
    """`██····  31 %`"""
    filled = min(BAR, round(fraction * BAR))
    return f"{'█' * filled}{'·' * (BAR - filled)} {100 * fraction:3.0f} %"


def tail(path: str) -> str:
    """The end of a path, which is what differs."""
    return path if len(path) <= PATH else f"…{path[1 - PATH :]}"


def _state(row: Resource) -> str:
    osd = row.get("osd")
    if not osd:
        return ""
    return ("up" if osd["up"] else "down") + ("" if osd["taken_in"] else ", out")


def _of(row: Resource, say: Any) -> str:
    return str(say(row["osd"])) if row.get("osd") else ""


_COLUMNS = (
    Column("WHERE", lambda row: row["what"]),
    Column("STATE", _state, state=True),
    Column("MEDIA", lambda row: _of(row, lambda osd: osd["media"])),
    Column("SIZE", lambda row: _of(row, lambda osd: human.size(osd["total_mib"])), right=True),
    Column(
        "FILL", lambda row: _of(row, lambda osd: bar(osd["used_mib"] / osd["total_mib"]) if osd["total_mib"] else "")
    ),
    Column("PGS", lambda row: _of(row, lambda osd: osd["pgs"]), right=True),
    Column("COMMIT", lambda row: _of(row, lambda osd: f"{osd['commit_ms']:.0f} ms"), right=True),
    Column("DEVICE", lambda row: _of(row, lambda osd: tail(osd["path"]))),
)
_POOL_COLUMNS = (
    Column("POOL", lambda pool: pool["name"]),
    Column("REDUNDANCY", lambda pool: at(pool, "spec.redundancy") or ""),
    Column("USED", mib("status.capacity.used_mib"), right=True),
    Column("FREE", mib("status.capacity.available_mib"), right=True),
    Column("PROMISED", mib("status.capacity.provisioned_mib"), right=True),
    Column("FULL IN", days_left, right=True),
    Column("NEW DISKS", yes("status.accepts_new"), state=True),
)
