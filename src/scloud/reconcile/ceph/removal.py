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
    pools: Iterable[tuple[str, PoolSpec]],
    before: Sequence[Spot],
    after: Sequence[Spot],
    status: StorageClusterStatus,
    leaving: Collection[str],
) -> CloudError | None:
    """Why devices (by uuid) cannot go, with what would have to be done first; None if they can."""
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
    return _no_room(cluster, status.osds, leaving)


def _no_room(cluster: str, osds: Sequence[OsdStatus], leaving: Collection[str]) -> CloudError | None:
    """Their bytes have to fit beside the others', among devices of the same kind."""
    for media in sorted({osd.media for osd in osds if osd.uuid in leaving}):
        mine = [osd for osd in osds if osd.media == media and osd.taken_in]
        rest = sum(osd.total_mib for osd in mine if osd.uuid not in leaving)
        used = sum(osd.used_mib for osd in mine)
        moved = sum(osd.used_mib for osd in mine if osd.uuid in leaving)
        if moved and used > rest * ROOM:
            return CloudError(
                ErrorKind.NO_CAPACITY,
                f"the other {media} devices of cluster '{cluster}' have {rest} MiB, and {used} MiB are used: "
                f"they would be more than {ROOM:.0%} full; add devices first",
            )
    return None


def stranded(pools: Iterable[PoolSpec], left: Sequence[Spot]) -> bool:
    """Whether what a device holds has no other place to go: some pool needs every fault domain there is."""
    return any(
        len(domains(left, spec.fault_domain, spec.media.value if spec.media else None)) < width(spec.redundancy)
        for spec in pools
    )
