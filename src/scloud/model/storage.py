"""Storage clusters, their pools, and the disk types that name pools: what is asked for, and what is so."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from scloud.model.base import Value
from scloud.model.fields import worded
from scloud.model.statuses import Status

Id = Annotated[str, StringConstraints(max_length=32)]
DevicePath = Annotated[
    str,
    StringConstraints(
        max_length=255, pattern=worded(r"^/[A-Za-z0-9._/:@+-]+$", "an absolute path of letters, digits and ._/:@+-")
    ),
]
_REDUNDANCY = re.compile(r"(?:replica:([1-9])|ec:([2-9]|1[0-6])\+([1-4]))\Z")


class Media(StrEnum):
    HDD = "hdd"
    SSD = "ssd"


class FaultDomain(StrEnum):
    """Copies (or chunks) of an object are kept on as many different ones of these."""

    HOST = "host"
    RACK = "rack"
    DATACENTER = "datacenter"


class RecoveryProfile(StrEnum):
    """What gives way to what: clients' I/O to recovery, or recovery to clients' I/O."""

    CLIENT = "client"
    BALANCED = "balanced"
    RECOVERY = "recovery"


class Device(Value):
    """What one OSD lives on: a block device, or, with a size given, a sparse file that the agent makes.

    `uuid` is the OSD's for ever; its number is the cluster's to give. `out`: being drained, to be removed when empty.
    """

    node: Id
    path: DevicePath
    size_mib: Annotated[int, Field(ge=1024, le=2**40)] | None = None
    media: Media = Media.SSD
    uuid: str = ""
    out: bool = False
    drained: bool = False
    """Nothing needs it any more: its daemon is stopped and its bytes are wiped, then it is forgotten."""
    replace_path: DevicePath | None = None
    """Where a new, empty OSD begins once this one is gone; None if it only goes."""
    crowded: bool = False
    """It was dead when it was to be replaced, and the others have no room for its data: they wait for the new one."""
    operation: str = ""
    """The operation that waits for it to be there, or gone."""


class StorageClusterSpec(Value):
    """`monitors` and `managers` are nodes. An adopted cluster has neither devices nor daemons of ours."""

    mode: Literal["deployed", "adopted"] = "deployed"
    nodes: tuple[Id, ...] = ()
    monitors: tuple[Id, ...] = ()
    managers: tuple[Id, ...] = ()
    devices: tuple[Device, ...] = ()
    fsid: str = ""
    mon_host: str = ""
    """As in ceph.conf: every monitor's address, messenger v2."""
    first_port: int = 0
    """A deployed cluster's ports are this one (monitors) and the 200 after it, so that several share a node."""
    recovery_profile: RecoveryProfile = RecoveryProfile.CLIENT
    maintenance: tuple[Id, ...] = ()
    """Nodes whose OSDs are to stay `in` while they are down (noout)."""
    leaving: tuple[Id, ...] = ()
    """Nodes that are taken out once their devices are gone."""
    repairs: tuple[str, ...] = ()
    """Inconsistent placement groups to be repaired."""
    scrubs: tuple[str, ...] = ()
    """Names of pools inside the cluster to be deep-scrubbed now."""
    scrub_begin_hour: Annotated[int, Field(ge=0, le=23)] = 0
    scrub_end_hour: Annotated[int, Field(ge=0, le=24)] = 0
    deep_scrub_days: Annotated[int, Field(ge=1, le=365)] = 7
    warn_percent: Annotated[int, Field(ge=10, le=95)] = 80


class Condition(Value):
    """A named thing that is not as it should be, in words: what, since when, and what to do."""

    name: str
    level: Literal["info", "warning", "error"]
    message: str
    since: float = 0.0


class StorageCapacity(Value):
    """MiB. `provisioned_mib` is what disks may grow to, counted as raw bytes of their redundancy for a cluster."""

    total_mib: int = 0
    used_mib: int = 0
    available_mib: int = 0
    provisioned_mib: int = 0
    refused_in_days: float | None = None
    """Until new disks and growth are refused, at the rate of the last days; None if it does not fill."""
    full_in_days: float | None = None
    """Until all writes wait, at the same rate."""


class OsdStatus(Value):
    """One OSD as the cluster tells of it; `commit_ms` is the latency of commits in milliseconds."""

    osd: int
    uuid: str = ""
    node: str
    path: str = ""
    media: str = ""
    up: bool
    taken_in: bool = True
    """Whether data is to be on it (`in` and `out` in Ceph's words)."""
    used_mib: int = 0
    total_mib: int = 0
    commit_ms: float = 0.0
    pgs: int = 0
    place: dict[str, str] = {}
    """Where it is in the CRUSH tree: datacenter, rack and host, as far as they are there."""


class Recovery(Value):
    """Objects that are not where or not as often as they should be; rate in objects a second."""

    degraded: int = 0
    misplaced: int = 0
    unfound: int = 0
    objects_per_s: float = 0.0
    seconds_left: float | None = None


class StorageClusterStatus(Status):
    version: str = ""
    monitors_up: tuple[str, ...] = ()
    leader: str = ""
    conditions: tuple[Condition, ...] = ()
    capacity: StorageCapacity = StorageCapacity()
    osds: tuple[OsdStatus, ...] = ()
    placement_groups: dict[str, int] = {}
    """How many are in each state, such as `active+clean`."""
    inconsistent: tuple[str, ...] = ()
    inconsistent_objects: dict[str, tuple[str, ...]] = {}
    """What the cluster's log tells of them, by placement group."""
    damaged: dict[str, str] = {}
    """Whose bytes those objects hold, in words such as `disk data, from 8 MiB on`, by object."""
    recovery: Recovery = Recovery()
    removing: dict[str, str] = {}
    """What is being removed, and how far that is."""
    observed_generation: int = 0
    observed_at: float = 0.0


class PoolSpec(Value):
    """`rados_name` is the pool inside its cluster; an erasure-coded pool has its data in a second one."""

    backend: Literal["ceph"] = "ceph"
    cluster: Id
    redundancy: Annotated[
        str, StringConstraints(pattern=worded(r"^(replica:[1-9]|ec:([2-9]|1[0-6])\+[1-4])$", "replica:N or ec:K+M"))
    ] = "replica:3"
    fault_domain: FaultDomain = FaultDomain.HOST
    media: Media | None = None
    """Only devices of this kind; None takes all."""
    rados_name: str = ""
    data_name: str | None = None


def copies_of(redundancy: str) -> tuple[int, int]:
    """(data chunks, additional chunks): `replica:3` is (1, 2), `ec:4+2` is (4, 2). ValueError for anything else."""
    match = _REDUNDANCY.match(redundancy)
    if match is None:
        raise ValueError(f"'{redundancy}' is neither replica:N nor ec:K+M")
    if match[1] is not None:
        return 1, int(match[1]) - 1
    return int(match[2]), int(match[3])


class PoolStatus(Status):
    capacity: StorageCapacity = StorageCapacity()
    """As a user sees it: bytes of disks, redundancy taken off."""
    conditions: tuple[Condition, ...] = ()
    accepts_new: bool = False
    """False while near full: disks that are there go on being written, new ones are refused."""
    iops_read: float = 0.0
    iops_write: float = 0.0
    kib_read_per_s: float = 0.0
    kib_write_per_s: float = 0.0
    observed_generation: int = 0


class DiskTypeSpec(Value):
    """Every account sees disk types, by name; only administrators see the pool behind."""

    pool: Id | None = None
    """None is the node's own local storage."""
