"""What requests carry and answers look like, for validation and for the published OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StringConstraints

from scloud.api.problems import MEDIA_TYPE, Problem
from scloud.model.base import Value
from scloud.model.fields import (
    ID_CHARACTERS,
    REF_PATTERN,
    Cpus,
    DiskMib,
    Ipv4,
    MemoryMib,
    Name,
    Ref,
    SubnetCidr,
    Vni,
    worded,
)
from scloud.model.ha import HaProfile, HaSettings, Incident
from scloud.model.migrations import OnStuck
from scloud.model.relocations import Every, Window
from scloud.model.specs import BmcSpec, ImageSpec, PublicKey, UserData


class Answer(BaseModel):
    """Answers may gain fields."""

    model_config = ConfigDict(extra="allow")


class ResourceOut(Answer):
    id: str
    kind: str
    name: str
    account: str | None
    generation: int
    spec: dict[str, Any]
    status: dict[str, Any]
    created_at: float
    updated_at: float


class ResourceRef(Answer):
    kind: str
    id: str
    name: str


class OperationError(Answer):
    code: str
    message: str


class OperationOut(Answer):
    id: str
    kind: Literal["operation"]
    action: str
    account: str | None
    resource: ResourceRef
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    progress: int
    message: str
    error: OperationError | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    deadline_at: float


class Accepted(Answer):
    operation: OperationOut
    resource: ResourceOut


class AcceptedMany(Answer):
    operations: list[OperationOut]
    resources: list[ResourceOut]


class CandidateOut(Answer):
    node: str
    fits: bool
    reasons: list[str]
    score: float
    parts: dict[str, float]


class PlanOut(Answer):
    """Where a VM would go, and why not elsewhere. The lowest score is taken; `parts` are what it is the sum of."""

    node: str | None
    candidates: list[CandidateOut]


class JoinOut(Answer):
    token: str
    command: str


class NodeAccepted(Accepted):
    join: JoinOut


class ResourcePage(Answer):
    items: list[ResourceOut]
    next: str | None


class OperationPage(Answer):
    items: list[OperationOut]
    next: str | None


class EventOut(Answer):
    id: str
    at: float
    level: Literal["info", "warning", "error"]
    account: str | None
    resource: ResourceRef
    message: str


class EventPage(Answer):
    items: list[EventOut]
    next: str | None


_ERRORS = {
    400: "the request is not HTTP or JSON as it should be",
    401: "no valid token",
    403: "not allowed",
    404: "no such thing in this account",
    409: "in conflict with what there is",
    413: "too large",
    422: "a field breaks a rule",
    502: "an engine failed",
    503: "something needed is not reachable",
    504: "something needed did not answer in time",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"description": text, "model": Problem, "content": {MEDIA_TYPE: {}}} for code, text in _ERRORS.items()
}

BYTES: dict[str, Any] = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
TEXT: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}
RefPath = Annotated[str, Path(min_length=1, max_length=63, pattern=REF_PATTERN, description="the id or name")]
Limit = Annotated[int, Query(ge=1, le=1000, description="items to a page")]
Cursor = Annotated[str | None, Query(max_length=32, pattern=ID_CHARACTERS, description="`next` of the page before")]
AllAccounts = Annotated[bool, Query(description="an administrator's: every account's")]
NameFilter = Annotated[str | None, Query(max_length=63, pattern=ID_CHARACTERS, description="only this name")]
RefFilter = Annotated[str | None, Query(max_length=63, pattern=REF_PATTERN, description="an id or a name")]


# --- requests


class NicAsk(Value):
    """A nic for a VM: a new one in a subnet, or one that exists (`nic`)."""

    subnet: Ref | None = None
    ip: Ipv4 | None = None
    security_groups: Annotated[list[Ref], Field(max_length=16)] | None = None
    nic: Ref | None = None


class VmAsk(Value):
    image: Ref
    cpus: Cpus = 1
    memory_mib: MemoryMib = 256
    disk_mib: DiskMib | None = Field(default=None, description="system disk; the image's size if not given")
    disk_type: Ref | None = Field(default=None, description="of the system disk; without one it is on the VM's node")
    nics: Annotated[list[NicAsk], Field(max_length=8)] = []
    disks: Annotated[list[Ref], Field(max_length=16)] = []
    keypairs: Annotated[list[Ref], Field(max_length=16)] = []
    user_data: UserData = ""
    node: Ref | None = None
    placement_group: Ref | None = None
    gpus: Annotated[int, Field(strict=True, ge=0, le=4, description="of its node's, passed through; see docs")] = 0
    gpu_model: (
        Annotated[str, StringConstraints(pattern=worded(r"^[a-z0-9:-]{1,32}$", "a model such as t4 or 10de:1eb8"))]
        | None
    ) = None
    power: Literal["on", "off"] = "on"
    restart_limit: Annotated[int, Field(strict=True, ge=0, le=100)] = 5
    ha: StrictBool = True
    ha_priority: Annotated[int, Field(strict=True, ge=0, le=100)] = 50


class VmPatchSpec(Value):
    ha: StrictBool | None = None
    ha_priority: Annotated[int, Field(strict=True, ge=0, le=100)] | None = None


class VmPatch(Value):
    name: Name | None = None
    spec: VmPatchSpec | None = None


class VmCreate(Value):
    name: Name
    count: Annotated[int, Field(strict=True, ge=1, le=100)] = 1
    spec: VmAsk


class Rename(Value):
    name: Name


class StopAsk(Value):
    force: StrictBool = False


class RebuildAsk(Value):
    image: Ref | None = None


class MigrateAsk(Value):
    """`node`: where to; the scheduler chooses if it is not given. `cancel` ends the migration under way instead."""

    node: Ref | None = None
    cancel: bool = False
    stuck: OnStuck | None = None
    bandwidth_mib_s: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    downtime_ms: Annotated[int, Field(ge=10, le=30_000)] = 300


class ResizeAsk(Value):
    cpus: Cpus | None = None
    memory_mib: MemoryMib | None = None


class AttachAsk(Value):
    vm: Ref


class NicCreateAsk(Value):
    subnet: Ref
    ip: Ipv4 | None = None
    security_groups: Annotated[list[Ref], Field(max_length=16)] | None = None
    vm: Ref | None = None


class NicCreate(Value):
    name: Name
    spec: NicCreateAsk


class NicPatchSpec(Value):
    security_groups: Annotated[list[Ref], Field(max_length=16)]


class NicPatch(Value):
    name: Name | None = None
    spec: NicPatchSpec | None = None


class ImageCreate(Value):
    name: Name
    spec: ImageSpec


class KeypairAsk(Value):
    public_key: PublicKey


class KeypairCreate(Value):
    name: Name
    spec: KeypairAsk


class VpcAsk(Value):
    vni: Vni | None = None


class VpcCreate(Value):
    name: Name
    spec: VpcAsk = VpcAsk()


class SubnetAsk(Value):
    vpc: Ref
    cidr: SubnetCidr


class SubnetCreate(Value):
    name: Name
    spec: SubnetAsk


class EmptySpec(Value):
    pass


class GroupCreate(Value):
    name: Name
    spec: EmptySpec = EmptySpec()


class PlacementGroupAsk(Value):
    policy: Literal["hard", "soft"] = Field(
        default="soft", description="hard: never two members in one place; soft: as evenly as it goes"
    )
    over: Literal["node", "rack"] = Field(default="node", description="the places; a node's rack is its label `rack`")


class PlacementGroupCreate(Value):
    name: Name
    spec: PlacementGroupAsk = PlacementGroupAsk()


class NodeAsk(Value):
    cluster: Ref = "default"


class NodeCreate(Value):
    name: Name
    spec: NodeAsk = NodeAsk()


class ClusterAsk(Value):
    architecture: Literal["x86_64", "aarch64"] = "x86_64"
    cpu_overcommit: Annotated[float, Field(strict=True, ge=1.0, le=16.0)] = 4.0


class ClusterCreate(Value):
    name: Name
    spec: ClusterAsk = ClusterAsk()


class HaPatch(Value):
    """What is not given stays; `profile` sets all numbers first. See `HaSettings` for what each of them means."""

    profile: HaProfile | None = None
    enabled: StrictBool | None = None
    check_s: Annotated[float, Field(strict=True, ge=0.2, le=60.0)] | None = None
    misses: Annotated[int, Field(strict=True, ge=2, le=3600)] | None = None
    probes: Annotated[int, Field(strict=True, ge=1, le=100)] | None = None
    probe_interval_s: Annotated[float, Field(strict=True, ge=0.1, le=10.0)] | None = None
    max_share: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] | None = None
    lease_s: Annotated[float, Field(strict=True, ge=2.0, le=600.0)] | None = None


class RelocationPatch(Value):
    """What is not given stays. See `RelocationSettings` for what each of them means."""

    per_node: Annotated[int, Field(strict=True, ge=1, le=32)] | None = None
    at_once: Annotated[int, Field(strict=True, ge=1, le=256)] | None = None
    rebalance_every_s: Every | None = None
    rebalance_window: Window | None = None
    rebalance_moves: Annotated[int, Field(strict=True, ge=1, le=100)] | None = None


class ClusterPatchSpec(Value):
    cpu_overcommit: Annotated[float, Field(strict=True, ge=1.0, le=16.0)] | None = None
    ha: HaPatch | None = None
    relocation: RelocationPatch | None = None


class ClusterPatch(Value):
    name: Name | None = None
    spec: ClusterPatchSpec | None = None


class AccountAsk(Value):
    admin: StrictBool = False


class AccountCreate(Value):
    name: Name
    spec: AccountAsk = AccountAsk()


class TokenCreate(Value):
    name: Annotated[
        str,
        StringConstraints(
            min_length=1,
            max_length=63,
            pattern=worded(r"^[A-Za-z0-9._ -]+$", "of letters, digits, spaces, '.', '_' and '-' only"),
        ),
    ] = "token"
    account: Ref | None = None
    ttl_s: Annotated[float, Field(strict=True, gt=0, le=10 * 365 * 86400)] | None = None


class TraceAsk(Value):
    """`from` and `to` are VMs or nics; `to` may be an IPv4 address."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    source: Annotated[str, StringConstraints(min_length=1, max_length=63)] = Field(alias="from")
    to: Annotated[str, StringConstraints(min_length=1, max_length=63)]
    protocol: Literal["tcp", "udp", "icmp"]
    port: Annotated[int, Field(strict=True, ge=1, le=65535)] | None = None


class BmcAsk(Value):
    """Without a body's `bmc` the node has none any more. The password is shown by no answer."""

    bmc: BmcSpec | None = None
    password: Annotated[str, StringConstraints(max_length=256)] = ""


class HaCluster(Answer):
    cluster: str
    settings: HaSettings
    detection_s: float


class HaCondition(Answer):
    """Why nothing is done although a node is missing."""

    node: str
    message: str


class HaOut(Answer):
    clusters: list[HaCluster]
    conditions: list[HaCondition]
    incidents: list[Incident]


class IncidentPage(Answer):
    items: list[Incident]
    next: str | None
