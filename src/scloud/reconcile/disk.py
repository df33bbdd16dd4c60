"""One disk on its node: desired state and what is -> the one thing to do next. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scloud.model.desired import DesiredDisk
from scloud.model.observed import Observed


@dataclass(frozen=True, slots=True)
class DiskHere:
    """The disk as the storage has it, MiB."""

    size_mib: int
    used_mib: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class DiskUse:
    """How the disk stands with VMs on this node.

    `open_by` is the running VM that has it; `wanted_by` the running VM that is to have it; `told_mib` is the size that
    VM's guest knows of.
    """

    open_by: str | None = None
    wanted_by: str | None = None
    told_mib: int | None = None


@dataclass(frozen=True, slots=True)
class CreateDisk:
    """Make it, or make it anew with another incarnation."""

    size_mib: int
    image: str | None
    image_sha256: str | None
    incarnation: int


@dataclass(frozen=True, slots=True)
class ResizeDisk:
    size_mib: int


@dataclass(frozen=True, slots=True)
class DeleteDisk:
    pass


@dataclass(frozen=True, slots=True)
class DiskPlan:
    observed: Observed
    action: CreateDisk | ResizeDisk | DeleteDisk | None = None


def disk_plan(desired: DesiredDisk, here: DiskHere | None, use: DiskUse) -> DiskPlan:
    """A disk that a running domain has open is never deleted or made anew, only waited for."""
    if desired.absent:
        return _absent(desired, here, use)
    if here is None or here.incarnation != desired.incarnation:
        if use.open_by is not None:
            reason = f"waiting for {use.open_by} to be off, to be made anew"
            return DiskPlan(_observed(desired, here, "working", settled=False, reason=reason))
        action = CreateDisk(desired.size_mib, desired.image, desired.image_sha256, desired.incarnation)
        reason = "being made" if desired.image is None else f"being made from {desired.image}"
        return DiskPlan(_observed(desired, here, "working", settled=False, reason=reason), action)
    if here.size_mib < desired.size_mib:
        observed = _observed(desired, here, "ready", settled=False, reason=f"growing to {desired.size_mib} MiB")
        return DiskPlan(observed, ResizeDisk(desired.size_mib))
    if here.size_mib > desired.size_mib:
        reason = f"has {here.size_mib} MiB and cannot shrink to {desired.size_mib}; ask for {here.size_mib} or more"
        return DiskPlan(_observed(desired, here, "error", settled=True, reason=reason))
    reason = _pending(use, here)
    return DiskPlan(_observed(desired, here, "ready", settled=not reason, reason=reason))


def _absent(desired: DesiredDisk, here: DiskHere | None, use: DiskUse) -> DiskPlan:
    if here is None:
        return DiskPlan(_observed(desired, here, "absent", settled=True))
    if use.open_by is not None:
        reason = f"waiting for {use.open_by} to let go of it, to be deleted"
        return DiskPlan(_observed(desired, here, "working", settled=False, reason=reason))
    return DiskPlan(_observed(desired, here, "working", settled=False, reason="being deleted"), DeleteDisk())


def _pending(use: DiskUse, here: DiskHere) -> str:
    """What a running VM has still to do with a disk that is itself as it should be."""
    if use.open_by is not None and use.open_by != use.wanted_by:
        return f"being detached from {use.open_by}"
    if use.wanted_by is not None and use.open_by is None:
        return f"being attached to {use.wanted_by}"
    if use.open_by is not None and use.told_mib != here.size_mib:
        return f"telling {use.open_by} of its size"
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
    )
