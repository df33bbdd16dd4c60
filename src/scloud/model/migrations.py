"""A VM's way from one node to another: what is asked for, how far it is, how it ended."""

from __future__ import annotations

from typing import Literal

from scloud.model.base import Value

OnStuck = Literal["auto-converge", "post-copy", "give-up"]
"""`auto-converge` slows the guest's processors down; `post-copy` switches first and fetches the rest afterwards."""

Then = Literal["stop", "delete"]


class MoveProgress(Value):
    """What the engine says of a migration under way. `iteration` counts the rounds over the guest's memory."""

    iteration: int = 0
    total_mib: int = 0
    remaining_mib: int = 0
    rate_mib_s: int = 0
    dirty_mib_s: int = 0
    downtime_ms: int | None = None
    """As the engine expects it now; of one that has ended, as it was."""


class MoveSeen(Value):
    """One node's account of migration `number`.

    At the target: `ready` (it can come to `address`), `arriving` (memory comes in, the guest does not run), `complete`
    (all of it is there, and it waits to be let run), `arrived` (it runs, or has run). At the source: `copying`, `left`
    (the engine says that it is at the target), `stays` (it did not leave, and why), `held` (it is paused here, and
    nobody knows whether it is at the target), `gone` (it is not here, and nobody knows why).
    """

    number: int
    state: Literal["ready", "arriving", "complete", "arrived", "copying", "left", "stays", "held", "gone"]
    address: str = ""
    reason: str = ""
    progress: MoveProgress | None = None
    asked: int = 0
    """Of the target: it was looked at after this was asked."""


class DiskCopy(Value):
    """A disk in its node's own storage, which is copied to the target's while the guest writes on."""

    disk: str
    size_mib: int
    incarnation: int = 0


class Migration(Value):
    """In a VM's status while it migrates: the VM is `source`'s until the switch is certain. Ids of nodes."""

    number: int
    source: str
    target: str
    target_name: str = ""
    phase: Literal["preparing", "copying"] = "preparing"
    address: str = ""
    bandwidth_mib_s: int = 0
    downtime_ms: int = 300
    stuck: OnStuck = "auto-converge"
    copies: tuple[DiskCopy, ...] = ()
    cancel: bool = False
    """Asked to end; or its time is over, and then `reason` says so."""
    reason: str = ""
    then: Then | None = None
    """What was asked for meanwhile, and is done wherever it turns out to be."""
    keep_disks_until: float | None = None
    """Of its deletion: its system disk waits in the trash so long, seconds since 1970."""
    began_at: float = 0.0
    asked: int = 0
    """How often the target was asked to look again, because the source cannot know how it ended."""
    source_seen: MoveSeen | None = None
    target_seen: MoveSeen | None = None
