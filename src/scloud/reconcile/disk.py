"""One disk on its node: desired state and what is -> the one thing to do next. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scloud.model.desired import DesiredDisk
from scloud.model.observed import Observed
from scloud.model.snapshots import DiskLimits
from scloud.reconcile.memory import NO_LIMITS


@dataclass(frozen=True, slots=True)
class DiskHere:
    """The disk as the storage has it, MiB. `limits` are those the storage was last told, None if that is not known, as
    `used_mib` is. `abandoned` if somebody who is gone has it locked."""

    size_mib: int
    used_mib: int | None
    incarnation: int
    snapshots: tuple[tuple[str, int], ...] = ()
    rolled_back: int = 0
    origin: str | None = None
    limits: DiskLimits | None = NO_LIMITS
    abandoned: bool = False


@dataclass(frozen=True, slots=True)
class DiskUse:
    """How the disk stands with VMs on this node.

    `open_by` is the running VM that has it; `wanted_by` the running VM that is to have it; `told_mib` is the size that
    VM's guest knows of, and `told_limits` what it may do.
    """

    open_by: str | None = None
    wanted_by: str | None = None
    told_mib: int | None = None
    told_limits: DiskLimits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class CreateDisk:
    """Make it, or make it anew with another incarnation; from `origin`'s (disk, snapshot) bytes if that is given."""

    size_mib: int
    image: str | None
    image_sha256: str | None
    incarnation: int
    origin: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class ResizeDisk:
    size_mib: int


@dataclass(frozen=True, slots=True)
class DeleteDisk:
    pass


@dataclass(frozen=True, slots=True)
class ClearDisk:
    """Remove what it was before it was made anew."""


@dataclass(frozen=True, slots=True)
class MendDisk:
    """Break the locks of those who are gone, and have what it occupies be known again."""


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    snapshot: str


@dataclass(frozen=True, slots=True)
class DeleteSnapshot:
    snapshot: str


@dataclass(frozen=True, slots=True)
class RollBack:
    snapshot: str
    number: int


@dataclass(frozen=True, slots=True)
class Flatten:
    """Make it depend on no image or snapshot."""


@dataclass(frozen=True, slots=True)
class LimitDisk:
    """For whoever opens it from now on."""

    limits: DiskLimits


DiskAction = (
    CreateDisk
    | ResizeDisk
    | DeleteDisk
    | ClearDisk
    | MendDisk
    | TakeSnapshot
    | DeleteSnapshot
    | RollBack
    | Flatten
    | LimitDisk
)
HARMLESS = (ResizeDisk, TakeSnapshot, Flatten, LimitDisk)
"""What may be done to a disk of which it is not known yet whether a domain has it open."""


@dataclass(frozen=True, slots=True)
class DiskPlan:
    observed: Observed
    action: DiskAction | None = None


def disk_plan(desired: DesiredDisk, here: DiskHere | None, use: DiskUse, remains: bool = False) -> DiskPlan:
    """A disk that a running domain has open is never deleted, made anew or rolled back, only waited for.

    `remains` says that there is more of it than `here`: what somebody was removing who died.
    """
    if desired.absent:
        return _absent(desired, here, use, remains)
    if here is None or here.incarnation != desired.incarnation:
        return _make(desired, here, use)
    if remains:
        reason = "what it was before is being deleted"
        return DiskPlan(_observed(desired, here, "ready", settled=False, reason=reason), ClearDisk())
    if here.limits != desired.limits:
        observed = _observed(desired, here, "ready", settled=False, reason="being given its limits")
        return DiskPlan(observed, LimitDisk(desired.limits))
    if (plan := _snapshots(desired, here)) is not None:
        return plan
    if rolling_back(desired, here) and desired.rollback_to is not None:
        if use.open_by is not None:
            reason = f"waiting for {use.open_by} to let go of it, to be rolled back to {desired.rollback_to}"
            return DiskPlan(_observed(desired, here, "ready", settled=False, reason=reason))
        reason = f"being rolled back to {desired.rollback_to}"
        observed = _observed(desired, here, "working", settled=False, reason=reason)
        return DiskPlan(observed, RollBack(desired.rollback_to, desired.rollbacks))
    if here.size_mib < desired.size_mib:
        observed = _observed(desired, here, "ready", settled=False, reason=f"growing to {desired.size_mib} MiB")
        return DiskPlan(observed, ResizeDisk(desired.size_mib))
    if here.size_mib > desired.size_mib:
        reason = f"has {here.size_mib} MiB and cannot shrink to {desired.size_mib}; ask for {here.size_mib} or more"
        return DiskPlan(_observed(desired, here, "error", settled=True, reason=reason))
    if desired.flattened and here.origin is not None:
        reason = f"the bytes it shares with {here.origin} are being copied into it"
        return DiskPlan(_observed(desired, here, "ready", settled=False, reason=reason), Flatten())
    reason = _pending(desired, use, here)
    idle = use.open_by is None and use.wanted_by is None
    mend = MendDisk() if idle and (here.abandoned or here.used_mib is None) else None
    return DiskPlan(_observed(desired, here, "ready", settled=not reason, reason=reason), mend)


def rolling_back(desired: DesiredDisk, here: DiskHere) -> bool:
    """Whether its bytes are not those that a guest is to see next."""
    return desired.rollbacks > here.rolled_back and desired.rollback_to is not None


def _make(desired: DesiredDisk, here: DiskHere | None, use: DiskUse) -> DiskPlan:
    if use.open_by is not None:
        reason = f"waiting for {use.open_by} to be off, to be made anew"
        return DiskPlan(_observed(desired, here, "working", settled=False, reason=reason))
    image, sha256 = (desired.image, desired.image_sha256) if desired.origin is None else (None, None)
    action = CreateDisk(desired.size_mib, image, sha256, desired.incarnation, desired.origin)
    source = desired.image if desired.origin is None else f"snapshot {desired.origin[1]}"
    reason = "being made" if source is None else f"being made from {source}"
    return DiskPlan(_observed(desired, here, "working", settled=False, reason=reason), action)


def _snapshots(desired: DesiredDisk, here: DiskHere) -> DiskPlan | None:
    """New ones first: what is kept is kept before anything is thrown away or rolled back."""
    kept = {snapshot for snapshot, _ in here.snapshots}
    for snapshot in desired.snapshots:
        if not snapshot.absent and snapshot.id not in kept:
            reason = f"snapshot {snapshot.id} is being taken"
            return DiskPlan(_observed(desired, here, "ready", settled=False, reason=reason), TakeSnapshot(snapshot.id))
    for snapshot in desired.snapshots:
        if snapshot.absent and snapshot.id in kept:
            reason = f"snapshot {snapshot.id} is being deleted"
            observed = _observed(desired, here, "ready", settled=False, reason=reason)
            return DiskPlan(observed, DeleteSnapshot(snapshot.id))
    return None


def _absent(desired: DesiredDisk, here: DiskHere | None, use: DiskUse, remains: bool) -> DiskPlan:
    if here is None and not remains:
        return DiskPlan(_observed(desired, here, "absent", settled=True))
    if use.open_by is not None:
        reason = f"waiting for {use.open_by} to let go of it, to be deleted"
        return DiskPlan(_observed(desired, here, "working", settled=False, reason=reason))
    return DiskPlan(_observed(desired, here, "working", settled=False, reason="being deleted"), DeleteDisk())


def _pending(desired: DesiredDisk, use: DiskUse, here: DiskHere) -> str:
    """What a running VM has still to do with a disk that is itself as it should be."""
    if use.open_by is not None and use.open_by != use.wanted_by:
        return f"being detached from {use.open_by}"
    if use.wanted_by is not None and use.open_by is None:
        return f"being attached to {use.wanted_by}"
    if use.open_by is not None and use.told_mib != here.size_mib:
        return f"telling {use.open_by} of its size"
    if use.open_by is not None and use.told_limits != desired.limits:
        return f"telling {use.open_by} of its limits"
    return ""


def _observed(
    desired: DesiredDisk,
    here: DiskHere | None,
    state: Literal["ready", "absent", "error", "working"],
    *,
    settled: bool,
    reason: str = "",
) -> Observed:
    return Observed(
        key=f"disk/{desired.id}",
        generation=desired.generation,
        state=state,
        settled=settled,
        reason=reason,
        used_mib=here.used_mib if here else None,
        snapshots=here.snapshots if here else None,
    )
