"""What a node remembers of a VM beside its desired state: what was carried out already, and how it has fared."""

from __future__ import annotations

from typing import Literal

from scloud.model.base import Value
from scloud.model.snapshots import DiskLimits

Phase = Literal["new", "up", "off", "guest", "dead", "failed"]


class VmMemory(Value):
    """Times are seconds of the node's monotonic clock, which starts anew with each boot of the host.

    `phase` is where the VM stands: `new` never started here, `up` started by us, `off` switched off by us, `guest`
    powered off by its guest, `dead` its QEMU died and it will be restarted, `failed` it died too often.
    """

    phase: Phase = "new"
    starts: int = 0
    reboots: int = 0
    reboot_since: float | None = None
    """When a reboot was first tried that is not known to have happened."""
    stop_since: float | None = None
    button_at: float | None = None
    """When the guest was last asked over ACPI to shut down."""
    deaths: tuple[float, ...] = ()
    restart_at: float | None = None
    restarts: int = 0
    boot_id: str = ""
    """Of the host, when the VM was last started."""
    told: dict[str, int] = {}
    """The size in MiB that the running guest was told of each of its disks."""
    limits: dict[str, DiskLimits] = {}
    """What the running guest was last allowed to do with each of its disks; those without limits are left out."""
    migration: int = 0
    """The number of the last migration away from here that was begun, or that is not to be begun any more."""
    cpus_refused: int | None = None
    memory_refused: int | None = None
    """What the running guest did not take live; it gets it at its next start."""


FRESH = VmMemory()
NO_LIMITS = DiskLimits()
