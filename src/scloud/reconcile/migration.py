"""A migration, as both nodes describe it -> who has the VM. Pure.

The source has it until the switch is certain. Its own account is enough where it knows how it ended; where it cannot
(its agent or its libvirtd ended in the middle), the target is asked to look once more, and that answer decides: a guest
that has run at the target is never let run again from the memory that stayed at the source. The target does not run by
itself: it is let run by the source, once it is gone there, or by this verdict.
"""

from __future__ import annotations

from dataclasses import dataclass

from scloud.model.migrations import Migration

CANCELLED = "cancelled"
HERE = ("complete", "arrived")
"""What a target says that has all of it."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is certain yet."""


@dataclass(frozen=True, slots=True)
class Ask:
    """The target is to look again."""


@dataclass(frozen=True, slots=True)
class Copy:
    """The target is ready: the source may begin."""

    address: str


@dataclass(frozen=True, slots=True)
class Moved:
    """The target has it."""


@dataclass(frozen=True, slots=True)
class Stays:
    """The source has it, and what has come to the target is to go."""

    reason: str
    cancelled: bool = False


Verdict = Wait | Ask | Copy | Moved | Stays


def judge(at: Migration, network_ready: bool = False) -> Verdict:
    """What follows from what is known. `network_ready`: every node's flows point to both."""
    source = at.source_seen if at.source_seen is not None and at.source_seen.number == at.number else None
    target = at.target_seen if at.target_seen is not None and at.target_seen.number == at.number else None
    if at.phase == "preparing":  # the source knows of nothing yet
        if at.cancel:
            return Stays(at.reason or CANCELLED, cancelled=True)
        ready = target is not None and target.state == "ready" and network_ready
        return Copy(target.address) if target is not None and ready else Wait()
    if source is None:
        return Wait()
    match source.state:
        case "left":
            return Moved()
        case "stays":
            if at.cancel:
                return Stays(at.reason or CANCELLED, cancelled=True)
            return Stays(source.reason or "the engine gave no reason")
        case "held" | "gone":
            if at.asked == 0:
                return Ask()
            if target is None or target.asked < at.asked:
                return Wait()
            if target.state in HERE:
                return Moved()
            return Stays(source.reason or "it broke off")
        case _:
            return Wait()


def without_source(at: Migration) -> Verdict:
    """The source is certainly dead (fenced, or removed as lost): only the target's account counts, looked at after."""
    if at.asked == 0:
        return Ask()
    target = at.target_seen
    if target is None or target.number != at.number or target.asked < at.asked:
        return Wait()
    return Moved() if target.state in HERE else Stays("its node was lost before the guest had moved")


def without_target(at: Migration, *, removed: bool = False) -> Verdict:
    """The target is certainly dead, or `removed` from the cloud for ever.

    What the source does not know to be its own may have run there, and have written to its disks: in pools they are the
    target's, and recovered as such. Disks in the nodes' own storage are there twice, and only the target can say
    whether its copies are whole: they wait for it to return. If it never will, the source's are all there is.
    """
    source = at.source_seen if at.source_seen is not None and at.source_seen.number == at.number else None
    lost = Stays(f"node {at.target_name} was lost")
    if at.phase == "preparing":
        return lost
    if source is None or source.state == "copying":
        return Wait()
    if source.state == "left":
        return Moved()
    if source.state in ("held", "gone"):
        if not at.copies:
            return Moved()
        return lost if removed else Wait()
    return lost


def without_both(at: Migration, *, removed: bool = False) -> Verdict:
    """Source and target are certainly dead. Disks in pools are where they are; of those in the nodes' own storage
    whichever returns first says which count."""
    if at.copies and not removed:
        return without_source(at)
    return Stays("both of its nodes were lost")
