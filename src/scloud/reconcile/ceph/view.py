"""What a cluster says of itself: its answers to a fixed set of questions, read into values. Pure.

The shapes are those of Ceph 16; every field that may be missing has a harmless default, for other versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Any
Answers = Mapping[str, Json]

MON_QUESTIONS: dict[str, dict[str, Json]] = {
    "status": {"prefix": "status"},
    "health": {"prefix": "health", "detail": "detail"},
    "quorum": {"prefix": "quorum_status"},
    "osds": {"prefix": "osd dump"},
    "tree": {"prefix": "osd tree"},
    "df": {"prefix": "df", "detail": "detail"},
}
"""Asked of the monitors each time."""
MGR_QUESTIONS: dict[str, dict[str, Json]] = {
    "fill": {"prefix": "osd df", "output_method": "plain"},
    "latency": {"prefix": "osd perf"},
    "rates": {"prefix": "osd pool stats"},
}
"""Asked of the manager each time there is one."""
SLOW_QUESTIONS: dict[str, dict[str, Json]] = {
    "auth": {"prefix": "auth ls"},
    "config": {"prefix": "config dump"},
    "rules": {"prefix": "osd crush rule dump"},
    "versions": {"prefix": "versions"},
}
"""Asked when something is to be changed, and now and then."""


@dataclass(frozen=True, slots=True)
class OsdSeen:
    """`place` as in layout.Site.place; sizes in KiB, latency in milliseconds."""

    number: int
    uuid: str
    up: bool
    taken_in: bool
    media: str = ""
    place: Mapping[str, str] = field(default_factory=dict)
    total_kib: int = 0
    used_kib: int = 0
    pgs: int = 0
    commit_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolSeen:
    """`owner` is the id of our pool that made it; sizes in bytes, of what users wrote."""

    name: str
    id: int
    size: int
    min_size: int
    pg_num: int
    rule: int
    applications: tuple[str, ...] = ()
    owner: str = ""
    overwrites: bool = False
    erasure_coded: bool = False
    autoscale: str = ""
    full: bool = False
    """Writes wait: one of its devices, or its quota, is full."""
    over_quota: bool = False
    stored: int = 0
    available: int = 0
    used_fraction: float = 0.0
    """Of what the pool may have until one of its devices is at the full ratio, 0..1."""
    objects: int = 0
    reads_per_s: float = 0.0
    writes_per_s: float = 0.0
    read_bytes_per_s: float = 0.0
    write_bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Check:
    """One of Ceph's own health checks."""

    code: str
    error: bool
    summary: str
    details: tuple[str, ...] = ()
    muted: bool = False


@dataclass(frozen=True, slots=True)
class View:
    quorum: tuple[str, ...] = ()
    monitors: tuple[str, ...] = ()
    leader: str = ""
    manager: bool = False
    osds: tuple[OsdSeen, ...] = ()
    pools: Mapping[str, PoolSeen] = field(default_factory=dict)
    hosts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Each host's place above it."""
    empty_buckets: tuple[str, ...] = ()
    buckets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """What is above each bucket of the tree, by level; without "root" in it, nothing below it can be given data."""
    noout: frozenset[str] = frozenset()
    checks: tuple[Check, ...] = ()
    pg_states: Mapping[str, int] = field(default_factory=dict)
    pgs: int = 0
    degraded: int = 0
    misplaced: int = 0
    unfound: int = 0
    recovering_per_s: float = 0.0
    total_bytes: int = 0
    used_bytes: int = 0
    available_bytes: int = 0
    nearfull: float = 0.85
    full: float = 0.95
    profiles: frozenset[str] = frozenset()

    def osd(self, uuid: str) -> OsdSeen | None:
        return next((osd for osd in self.osds if osd.uuid == uuid), None)

    @property
    def forming(self) -> bool:
        """Whether placement groups have only just been made, and are nowhere yet."""
        return any({"unknown", "creating"} & set(state.split("+")) for state in self.pg_states)

    @property
    def waiting(self) -> int:
        """Placement groups that take neither reads nor writes; not those that are only just agreeing on something."""
        passing = {"active", "peering", "activating", "creating", "unknown"}
        return sum(count for state, count in self.pg_states.items() if not passing & set(state.split("+")))

    @property
    def settled(self) -> bool:
        """Whether every placement group is where it should be, as often as it should be."""
        return sum(self.pg_states.values()) == sum(
            count for state, count in self.pg_states.items() if {"active", "clean"} <= set(state.split("+"))
        )


@dataclass(frozen=True, slots=True)
class Slow:
    """Keys and capabilities by entity, settings by (section, name), rules' names, the version."""

    auth: Mapping[str, tuple[str, Mapping[str, str]]] = field(default_factory=dict)
    config: Mapping[tuple[str, str], str] = field(default_factory=dict)
    rules: Mapping[str, int] = field(default_factory=dict)
    version: str = ""


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _dict(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


def read_slow(answers: Answers) -> Slow:
    auth = {}
    for entry in _list(_dict(answers.get("auth")).get("auth_dump")):
        auth[entry["entity"]] = (entry["key"], _dict(entry.get("caps")))
    versions = list(_dict(_dict(answers.get("versions")).get("overall")))
    words = versions[0].split() if versions else []
    return Slow(
        auth=auth,
        config={(item["section"], item["name"]): str(item["value"]) for item in _list(answers.get("config"))},
        rules={item["rule_name"]: int(item["rule_id"]) for item in _list(answers.get("rules"))},
        version=(words[2] + (" and others" if len(versions) > 1 else "")) if len(words) > 2 else "",
    )


def read(answers: Answers) -> View:
    """All answers there are; a manager's may be missing."""
    status, quorum = _dict(answers.get("status")), _dict(answers.get("quorum"))
    dump, df = _dict(answers.get("osds")), _dict(answers.get("df"))
    pgmap, stats = _dict(status.get("pgmap")), _dict(df.get("stats"))
    # The manager's own sum is ahead of what it tells the monitors, and fits its figures of each OSD.
    summary = _dict(_dict(answers.get("fill")).get("summary"))
    total, used, available = (
        int(summary[kib]) << 10 if summary.get("total_kb") else int(stats.get(sent, 0))
        for kib, sent in (
            ("total_kb", "total_bytes"),
            ("total_kb_used", "total_used_raw_bytes"),
            ("total_kb_avail", "total_avail_bytes"),
        )
    )
    tree = _dict(answers.get("tree"))
    buckets, of_osd, empty = _tree(tree)
    return View(
        quorum=tuple(_list(quorum.get("quorum_names"))),
        monitors=tuple(item["name"] for item in _list(_dict(quorum.get("monmap")).get("mons"))),
        leader=str(quorum.get("quorum_leader_name", "")),
        manager=bool(_dict(status.get("mgrmap")).get("available")),
        osds=_osds(dump, of_osd, answers),
        pools=_pools(dump, df, answers),
        hosts={
            item["name"]: _rootless(buckets.get(item["name"], {}))
            for item in _list(tree.get("nodes"))
            if item["type"] == "host"
        },
        empty_buckets=empty,
        buckets=buckets,
        noout=frozenset(name for name, flags in _dict(dump.get("crush_node_flags")).items() if "noout" in flags),
        checks=_checks(_dict(answers.get("health")) or _dict(status.get("health"))),
        pg_states={item["state_name"]: int(item["count"]) for item in _list(pgmap.get("pgs_by_state"))},
        pgs=int(pgmap.get("num_pgs", 0)),
        degraded=int(pgmap.get("degraded_objects", 0)),
        misplaced=int(pgmap.get("misplaced_objects", 0)),
        unfound=int(pgmap.get("unfound_objects", 0)),
        recovering_per_s=float(pgmap.get("recovering_objects_per_sec", 0)),
        total_bytes=total,
        used_bytes=used,
        available_bytes=available,
        nearfull=float(dump.get("nearfull_ratio", 0.85)),
        full=float(dump.get("full_ratio", 0.95)),
        profiles=frozenset(_dict(dump.get("erasure_code_profiles"))),
    )


def _tree(
    tree: dict[str, Json],
) -> tuple[dict[str, dict[str, str]], dict[int, tuple[dict[str, str], str]], tuple[str, ...]]:
    """What is above each bucket; OSD number to (place with its host, media); buckets with nothing below them."""
    nodes = {int(item["id"]): item for item in _list(tree.get("nodes"))}
    buckets: dict[str, dict[str, str]] = {}
    osds: dict[int, tuple[dict[str, str], str]] = {}
    empty: list[str] = []

    def walk(id: int, above: dict[str, str]) -> int:
        item = nodes.get(id)
        if item is None:
            return 0
        if item["type"] == "osd":
            osds[id] = (_rootless(above), item.get("device_class", ""))
            return 1
        buckets[item["name"]] = above
        place = {**above, item["type"]: item["name"]}
        below = sum(walk(int(child), place) for child in item.get("children", ()))
        if not below and item["type"] != "root":
            empty.append(item["name"])
        return below

    inner = {int(child) for item in nodes.values() for child in item.get("children", ())}
    for id, item in nodes.items():
        if id not in inner and item["type"] != "osd":
            walk(id, {})
    return buckets, osds, tuple(empty)


def _rootless(place: Mapping[str, str]) -> dict[str, str]:
    return {level: name for level, name in place.items() if level != "root"}


def _osds(
    dump: dict[str, Json], of_osd: Mapping[int, tuple[dict[str, str], str]], answers: Answers
) -> tuple[OsdSeen, ...]:
    fill = {int(item["id"]): item for item in _list(_dict(answers.get("fill")).get("nodes"))}
    latency = _dict(answers.get("latency"))
    infos = _list(_dict(latency.get("osdstats", latency)).get("osd_perf_infos"))
    commit = {int(item["id"]): float(item["perf_stats"]["commit_latency_ms"]) for item in infos}
    found = []
    for item in _list(dump.get("osds")):
        number = int(item["osd"])
        place, media = of_osd.get(number, ({}, ""))
        stats = fill.get(number, {})
        found.append(
            OsdSeen(
                number=number,
                uuid=item["uuid"],
                up=bool(item["up"]),
                taken_in=bool(item["in"]),
                media=media,
                place=place,
                total_kib=int(stats.get("kb", 0)),
                used_kib=int(stats.get("kb_used", 0)),
                pgs=int(stats.get("pgs", 0)),
                commit_ms=commit.get(number, 0.0),
            )
        )
    return tuple(found)


def _pools(dump: dict[str, Json], df: dict[str, Json], answers: Answers) -> dict[str, PoolSeen]:
    usage = {item["name"]: _dict(item.get("stats")) for item in _list(df.get("pools"))}
    rates = {item["pool_name"]: _dict(item.get("client_io_rate")) for item in _list(answers.get("rates"))}
    found = {}
    for item in _list(dump.get("pools")):
        name = item["pool_name"]
        used, rate = usage.get(name, {}), rates.get(name, {})
        flags = set(str(item.get("flags_names", "")).split(","))
        applications = _dict(item.get("application_metadata"))
        found[name] = PoolSeen(
            name=name,
            id=int(item["pool"]),
            size=int(item["size"]),
            min_size=int(item["min_size"]),
            pg_num=int(item.get("pg_num_target", item["pg_num"])),
            rule=int(item["crush_rule"]),
            applications=tuple(applications),
            owner=str(_dict(applications.get("rbd")).get("scloud", "")),
            overwrites="ec_overwrites" in flags,
            erasure_coded=int(item.get("type", 1)) == 3,
            autoscale=str(item.get("pg_autoscale_mode", "")),
            full=bool({"full", "full_quota"} & flags),
            over_quota="full_quota" in flags,
            stored=int(used.get("stored", 0)),
            available=int(used.get("max_avail", 0)),
            used_fraction=float(used.get("percent_used", 0.0)),
            objects=int(used.get("objects", 0)),
            reads_per_s=float(rate.get("read_op_per_sec", 0)),
            writes_per_s=float(rate.get("write_op_per_sec", 0)),
            read_bytes_per_s=float(rate.get("read_bytes_sec", 0)),
            write_bytes_per_s=float(rate.get("write_bytes_sec", 0)),
        )
    return found


def _checks(health: dict[str, Json]) -> tuple[Check, ...]:
    found = []
    for code, item in sorted(_dict(health.get("checks")).items()):
        details = tuple(detail["message"] for detail in _list(item.get("detail")))
        summary = str(_dict(item.get("summary")).get("message", code))
        found.append(Check(code, item.get("severity") == "HEALTH_ERR", summary, details, muted=bool(item.get("muted"))))
    return tuple(found)


def inconsistent(pg_ls: Json) -> tuple[str, ...]:
    """Placement groups in the answer to `pg ls inconsistent`."""
    return tuple(item["pgid"] for item in _list(_dict(pg_ls).get("pg_stats")))


def laggy(pg_ls: Json) -> dict[str, int]:
    """Placement groups in the answer to `pg ls laggy`, each with the number of the OSD that leads it."""
    return {item["pgid"]: int(item["acting_primary"]) for item in _list(_dict(pg_ls).get("pg_stats"))}


def safe(answer: Json) -> frozenset[int]:
    """OSDs in the answer to `osd safe-to-destroy` that nothing needs any more."""
    return frozenset(int(number) for number in _list(_dict(answer).get("safe_to_destroy")))


def damaged_objects(log: Json, groups: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """What the cluster's log says of objects in these placement groups, newest last, each object once.

    Lines read like `3.1 shard 2 soid 3:8a7c::: rbd_data.x:head : candidate had a read error`.
    """
    found: dict[str, dict[str, None]] = {}
    for entry in _list(log):
        text = str(_dict(entry).get("message", ""))
        group, _, rest = text.partition(" ")
        if group not in groups or ":::" not in rest:
            continue
        name = rest.partition(":::")[2].split(" ")[0].rstrip(":")
        found.setdefault(group, {})[name.rpartition(":")[0] or name] = None
    return {group: tuple(names) for group, names in found.items()}
