"""What requests about storage clusters, pools and disk types carry."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from scloud.model.base import Value
from scloud.model.fields import Name, Ref, worded
from scloud.model.storage import DevicePath, FaultDomain, Media, RecoveryProfile

MAX_NODES = 1000
MAX_DEVICES = 10_000
Label = Annotated[
    str,
    StringConstraints(pattern=worded(r"^[a-z][a-z0-9-]{0,30}$", "1-31 of a-z, 0-9 and '-', beginning with a letter")),
]
LabelValue = Annotated[
    str, StringConstraints(pattern=worded(r"^[A-Za-z0-9._-]{1,63}$", "1-63 of letters, digits, '.', '_' and '-'"))
]
PlacementGroup = Annotated[
    str, StringConstraints(pattern=worded(r"^[0-9]{1,9}\.[0-9a-f]{1,8}$", "a placement group such as 3.1f"))
]
Text = Annotated[str, StringConstraints(max_length=65536, pattern=worded(r"^[^\x00]*$", "a text without NUL"))]


class DeviceAsk(Value):
    """A block device; with a size, a sparse file that is made there."""

    node: Ref
    path: DevicePath
    size_mib: Annotated[int, Field(strict=True, ge=1024, le=2**40)] | None = None
    media: Media = Media.SSD


class StorageClusterAsk(Value):
    """`deployed` with nodes and devices, or `adopted` with the texts of a conf and a keyring."""

    mode: Literal["deployed", "adopted"] = "deployed"
    nodes: Annotated[list[Ref], Field(max_length=MAX_NODES)] | None = Field(
        default=None, description="who may use it; all ready nodes if not given"
    )
    devices: Annotated[list[DeviceAsk], Field(max_length=MAX_DEVICES)] = []
    conf: Text | None = Field(default=None, description="ceph.conf with fsid and mon_host, of an adopted cluster")
    keyring: Text | None = Field(default=None, description="a keyring with a client that may do everything")

    @model_validator(mode="after")
    def _consistent(self) -> StorageClusterAsk:
        adopted = self.mode == "adopted"
        if adopted and (self.conf is None or self.keyring is None):
            raise ValueError("an adopted cluster needs conf and keyring")
        if adopted and self.devices:
            raise ValueError("an adopted cluster has devices of its own")
        if not adopted and (self.conf is not None or self.keyring is not None):
            raise ValueError("conf and keyring go with mode adopted")
        return self


class StorageClusterCreate(Value):
    name: Name
    spec: StorageClusterAsk


class StorageClusterPatchSpec(Value):
    recovery_profile: RecoveryProfile | None = None
    scrub_begin_hour: Annotated[int, Field(strict=True, ge=0, le=23)] | None = None
    scrub_end_hour: Annotated[int, Field(strict=True, ge=0, le=24)] | None = None
    deep_scrub_days: Annotated[int, Field(strict=True, ge=1, le=365)] | None = None
    warn_percent: Annotated[int, Field(strict=True, ge=10, le=95)] | None = None


class StorageClusterPatch(Value):
    name: Name | None = None
    spec: StorageClusterPatchSpec | None = None


class DeviceRef(Value):
    """Which device: the OSD's number (`osd.3` or `3`), its uuid, or NODE:PATH."""

    device: Annotated[
        str,
        StringConstraints(min_length=1, max_length=320, pattern=worded(r"^[^\x00-\x20]+$", "a text without spaces")),
    ]


class DeviceReplace(DeviceRef):
    path: DevicePath | None = Field(default=None, description="where the new one is; the same path if not given")


class NodeAsk(Value):
    node: Ref


class MaintenanceAsk(Value):
    node: Ref
    on: Annotated[bool, Field(strict=True)]


class RepairAsk(Value):
    placement_groups: Annotated[list[PlacementGroup], Field(max_length=1000)] = Field(
        default=[], description="all inconsistent ones if empty"
    )


class ScrubAsk(Value):
    pools: Annotated[list[Ref], Field(max_length=1000)] = Field(default=[], description="all pools if empty")


class PoolAsk(Value):
    backend: Literal["ceph"] = "ceph"
    cluster: Ref
    redundancy: Annotated[
        str, StringConstraints(pattern=worded(r"^(replica:[1-9]|ec:([2-9]|1[0-6])\+[1-4])$", "replica:N or ec:K+M"))
    ] = "replica:3"
    fault_domain: FaultDomain = FaultDomain.HOST
    media: Media | None = None


class PoolCreate(Value):
    name: Name
    spec: PoolAsk


class DiskTypeAsk(Value):
    pool: Ref | None = Field(default=None, description="none is the nodes' local storage")


class DiskTypeCreate(Value):
    name: Name
    spec: DiskTypeAsk = DiskTypeAsk()


class NodePatchSpec(Value):
    labels: Annotated[dict[Label, LabelValue], Field(max_length=32)]


class NodePatch(Value):
    spec: NodePatchSpec
