"""How storage clusters, pools and disk types look in a table and on a card."""

from __future__ import annotations

from scloud.cli import human
from scloud.cli.looks import BY_KIND, at, look_of, mib, named, text, yes
from scloud.cli.output import Column, Resource


def _osds_up(cluster: Resource) -> str:
    osds = at(cluster, "status.osds") or []
    return f"{sum(1 for osd in osds if osd['up'])}/{len(osds)}" if osds else ""


def worst(resource: Resource) -> str:
    """The level of the worst condition, `ok` if there is none and it is in use."""
    state = at(resource, "status.state")
    if state in ("error", "unknown"):
        return "error"
    if state == "creating":
        return "-"
    levels = {item["level"] for item in at(resource, "status.conditions") or ()}
    return next((level for level in ("error", "warning") if level in levels), "ok")


def _conditions(resource: Resource) -> str:
    return "\n".join(f"{item['level']}: {item['message']}" for item in at(resource, "status.conditions") or ())


def _rates(pool: Resource) -> str:
    status = at(pool, "status") or {}
    reads, writes = status.get("iops_read", 0), status.get("iops_write", 0)
    if not reads and not writes:
        return ""
    kib_out, kib_in = status.get("kib_read_per_s", 0), status.get("kib_write_per_s", 0)
    return f"{reads:.0f} reads/s ({kib_out:.0f} KiB/s), {writes:.0f} writes/s ({kib_in:.0f} KiB/s)"


def days_left(resource: Resource) -> str:
    """`12 days` at the present rate, which is known after an hour; empty while it does not fill."""
    days = at(resource, "status.capacity.full_in_days")
    return f"{days:g} days" if days is not None else ""


def capacity_text(resource: Resource) -> str:
    """`1 GiB of 10 GiB used (10 %), 9 GiB free, 5 GiB promised to disks (50 %), full in 12 days`."""
    capacity = at(resource, "status.capacity") or {}
    total, used = capacity.get("total_mib", 0), capacity.get("used_mib", 0)
    if not total:
        return ""
    parts = [f"{human.size(used)} of {human.size(total)} used ({100 * used / total:.0f} %)"]
    parts.append(f"{human.size(capacity.get('available_mib', 0))} free")
    promised = capacity.get("provisioned_mib", 0)
    parts.append(f"{human.size(promised)} promised to disks ({100 * promised / total:.0f} %)")
    if capacity.get("refused_in_days"):
        parts.append(f"new disks refused in {capacity['refused_in_days']:g} days")
    if days_left(resource):
        parts.append(f"full in {days_left(resource)}")
    return ", ".join(parts)


STORAGE_CLUSTER = look_of(
    "storage-cluster",
    lambda _: (
        Column("HEALTH", worst, state=True),
        Column("NODES", lambda cluster: str(len(at(cluster, "spec.nodes") or ())), right=True),
        Column("OSDS", _osds_up, right=True),
        Column("USED", mib("status.capacity.used_mib"), right=True),
        Column("TOTAL", mib("status.capacity.total_mib"), right=True),
    ),
    lambda names: (
        Column("Mode", text("spec.mode")),
        Column("Ceph", text("status.version")),
        Column("Nodes", named(names, "nodes", "spec.nodes")),
        Column("Devices", _osds_up),
        Column("Capacity", capacity_text),
        Column("Conditions", _conditions),
    ),
    ("nodes", "spec.nodes"),
)
POOL = look_of(
    "pool",
    lambda names: (
        Column("CLUSTER", named(names, "storage-clusters", "spec.cluster")),
        Column("REDUNDANCY", text("spec.redundancy")),
        Column("OVER", text("spec.fault_domain")),
        Column("MEDIA", lambda pool: at(pool, "spec.media") or "any"),
        Column("USED", mib("status.capacity.used_mib"), right=True),
        Column("FREE", mib("status.capacity.available_mib"), right=True),
        Column("HEALTH", worst, state=True),
    ),
    lambda names: (
        Column("Storage cluster", named(names, "storage-clusters", "spec.cluster")),
        Column("Redundancy", text("spec.redundancy")),
        Column("On different", lambda pool: f"{at(pool, 'spec.fault_domain')}s"),
        Column("Media", lambda pool: at(pool, "spec.media") or "any"),
        Column("Capacity", capacity_text),
        Column("Takes new disks", yes("status.accepts_new")),
        Column("Load", _rates),
        Column("Conditions", _conditions),
        Column(
            "Inside the cluster",
            lambda pool: ", ".join(filter(None, (at(pool, "spec.rados_name"), at(pool, "spec.data_name")))),
        ),
    ),
    ("storage-clusters", "spec.cluster"),
)
DISK_TYPE = look_of(
    "disk-type",
    lambda names: (Column("POOL", named(names, "pools", "spec.pool")),),
    lambda names: (Column("Pool", named(names, "pools", "spec.pool")),),
    ("pools", "spec.pool"),
)
# Whoever prints one of these has imported this module.
BY_KIND.update({look.noun: look for look in (STORAGE_CLUSTER, POOL, DISK_TYPE)})
