"""Snapshots of disks: their spec and status, limits and schedules of disks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from scloud.model.base import Value
from scloud.model.statuses import Status

Rate = Annotated[int, Field(strict=True, ge=0, le=10_000_000)]


class DiskLimits(Value):
    """What a disk may do a second; 0 is without limit. Bandwidth in KiB a second, reads and writes together."""

    iops: Rate = 0
    kib_per_s: Rate = 0


class SnapshotSchedule(Value):
    """A snapshot every so many seconds, of which the newest `keep` are kept; others made by hand are left alone."""

    every_s: Annotated[int, Field(strict=True, ge=60, le=366 * 86400)]
    keep: Annotated[int, Field(strict=True, ge=1, le=366)]


class SnapshotSpec(Value):
    """`scheduled` ones are the schedule's to delete."""

    disk: str
    scheduled: bool = False


class SnapshotStatus(Status):
    """`size_mib` is the disk's size when it was taken."""

    size_mib: int = 0
    observed_generation: int = 0
