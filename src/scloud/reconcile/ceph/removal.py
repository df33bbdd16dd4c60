"""Whether a storage cluster can do without some of its devices. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from scloud.model.errors import CloudError, ErrorKind
from scloud.model.storage import OsdStatus, PoolSpec, StorageClusterStatus
from scloud.reconcile.ceph.layout import Spot
from scloud.reconcile.ceph.redundancy import domains, objections, width

ROOM = 0.80
"""How full the rest may become: Ceph warns at 0.85 and stops moving data at 0.90, and no two OSDs are equally full."""


def refusal(
    cluster: str,
    pools: Sequence[tuple[str, PoolSpec]],
    before: Sequence[Spot],
    after: Sequence[Spot],
    status: StorageClusterStatus,
    leaving: Collection[str],
    going: Collection[str] = (),
) -> CloudError | None:
    """Why devices (by uuid) cannot go, with what would have to be done first; None if they can. `going` are those that
    are being drained already."""
    for name, spec in pools:
        media = spec.media.value if spec.media else None
        have, left = domains(before, spec.fault_domain, media), domains(after, spec.fault_domain, media)
        need = width(spec.redundancy)
        if len(left) < need and left != have:
            said = objections(spec, cluster, after) if after else f"cluster '{cluster}' would have no devices"
            return CloudError(
                ErrorKind.CONFLICT,
                f"pool '{name}' would lose redundancy: {said}; add other devices first, or replace this one "
                "(`scloud storage-cluster device replace`)",
            )
    return no_room(cluster, pools, status, leaving, going)


def no_room(
    cluster: str,
    pools: Iterable[tuple[str, PoolSpec]],
    status: StorageClusterStatus,
    leaving: Collection[str],
    going: Collection[str] = (),
) -> CloudError | None:
    """Why what is on devices (by uuid) has no place on the others, which hold what comes from those that are `going`,
    too; None if it has. What has left a device already, since that is out, needs no more room."""
    moving = [osd for osd in status.osds if osd.uuid in leaving and osd.taken_in and osd.used_mib]
    if not moving:
        return None
    rest = [osd for osd in status.osds if osd.taken_in and osd.uuid not in leaving and osd.uuid not in going]
    # What is out and alive is being emptied. What is out and dead is being made anew on others, if anything is.
    rebuilt = status.recovery.degraded > 0
    held = [osd for osd in status.osds if osd.taken_in or osd.up or rebuilt]
    for name, spec in pools:
        refused = _crowded(cluster, name, spec, held, rest, moving)
        if refused is not None:
            return refused
    for media in sorted({osd.media for osd in moving}):
        room = sum(osd.total_mib for osd in rest if osd.media == media)
        used = sum(osd.used_mib for osd in held if osd.media == media)
        if used > room * ROOM:
            return CloudError(
                ErrorKind.NO_CAPACITY,
                f"the other {media} devices of cluster '{cluster}' have {room} MiB, and {used} MiB are used: "
                f"they would be more than {ROOM:.0%} full; add devices first",
            )
    return None


def _crowded(
    cluster: str,
    name: str,
    spec: PoolSpec,
    held: Iterable[OsdStatus],
    rest: Iterable[OsdStatus],
    moving: Iterable[OsdStatus],
) -> CloudError | None:
    """A pool that needs every fault domain that is left has one copy (or chunk) of everything in each: what is on a
    device then goes to others of its domain, and what was in a domain that goes altogether to each of the others."""
    level, media = spec.fault_domain.value, spec.media.value if spec.media else None

    def by_domain(osds: Iterable[OsdStatus]) -> dict[str, list[OsdStatus]]:
        found: dict[str, list[OsdStatus]] = {}
        for osd in osds:
            if level in osd.place and (media is None or osd.media == media):
                found.setdefault(osd.place[level], []).append(osd)
        return found

    full, left, goes = by_domain(held), by_domain(rest), by_domain(moving)
    need = width(spec.redundancy)
    if not left or len(left) > need:
        return None
    lost = full.keys() - left.keys()
    everything = sum(osd.used_mib for osds in full.values() for osd in osds) // min(need, len(full)) if lost else 0
    for domain, others in sorted(left.items()):
        comes = domain in goes or (lost & goes.keys())
        room = sum(osd.total_mib for osd in others)
        there = max(sum(osd.used_mib for osd in full.get(domain, ())), everything)
        if comes and there > room * ROOM:
            return CloudError(
                ErrorKind.NO_CAPACITY,
                f"pool '{name}' ({spec.redundancy}) needs every {level} that is left in cluster '{cluster}', and has a "
                f"share of everything in each: the devices that stay in {level} {domain} have {room} MiB, and "
                f"{there} MiB would be on them, which is more than {ROOM:.0%}; add devices to {domain} first",
            )
    return None


def stranded(pools: Iterable[PoolSpec], left: Sequence[Spot]) -> bool:
    """Whether what a device holds has no other place to go: some pool needs every fault domain there is."""
    return any(
        len(domains(left, spec.fault_domain, spec.media.value if spec.media else None)) < width(spec.redundancy)
        for spec in pools
    )
