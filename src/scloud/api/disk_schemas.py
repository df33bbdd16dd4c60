"""What requests about disks and snapshots carry, and what their answers look like."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from scloud.api.schemas import Answer
from scloud.model.base import Value
from scloud.model.fields import DiskMib, Name, Ref, worded
from scloud.model.snapshots import DiskLimits, Rate, SnapshotSchedule


class DiskAsk(Value):
    size_mib: DiskMib | None = Field(default=None, description="needed unless it is made from a snapshot or an image")
    type: Ref | None = Field(default=None, description="the disk type; without one it is on its VM's own node")
    snapshot: Ref | None = Field(default=None, description="begin with this snapshot's bytes, in its pool")
    image: Ref | None = Field(default=None, description="begin with this image's bytes")


class DiskCreate(Value):
    name: Name
    spec: DiskAsk


class DiskResize(Value):
    size_mib: DiskMib


class LimitAsk(Value):
    """What is not given stays as it is; 0 is without limit."""

    iops: Rate | None = Field(default=None, description="reads and writes a second")
    kib_per_s: Rate | None = Field(default=None, description="KiB a second, reads and writes together")

    def on(self, old: DiskLimits) -> DiskLimits:
        return DiskLimits(
            iops=old.iops if self.iops is None else self.iops,
            kib_per_s=old.kib_per_s if self.kib_per_s is None else self.kib_per_s,
        )


class ScheduleAsk(Value):
    """Null ends the schedule; the snapshots that it made stay."""

    schedule: SnapshotSchedule | None


class RollbackAsk(Value):
    snapshot: Ref


class RestoreAsk(Value):
    name: Name | None = Field(default=None, description="another name than its former one")


class MoveAsk(Value):
    type: Ref


class SnapshotAsk(Value):
    disk: Ref


class SnapshotCreate(Value):
    name: Name
    spec: SnapshotAsk


class ImageAsk(Value):
    """The image's name, and whom `vm ssh` logs in as; the disk's own image says that if nobody else does."""

    name: Name
    login_user: (
        Annotated[
            str,
            StringConstraints(
                pattern=worded(
                    r"^[a-z_][a-z0-9_-]{0,31}$",
                    "a user's name: 1-32 of a-z, 0-9, '_' and '-', beginning with a letter or '_'",
                )
            ),
        ]
        | None
    ) = None


class DiskFigures(Answer):
    """Rates are measured over a second; zero, with `open` false, while no running VM has the disk."""

    disk: str
    size_mib: int
    used_mib: int | None
    open: bool
    iops_read: float
    iops_write: float
    kib_read_per_s: float
    kib_write_per_s: float
    latency_read_ms: float | None
    latency_write_ms: float | None
