"""Every kind of resource: its name in the API, its id prefix, who owns it."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    ACCOUNT = "account"
    CLUSTER = "cluster"
    NODE = "node"
    KEYPAIR = "keypair"
    IMAGE = "image"
    VPC = "vpc"
    SUBNET = "subnet"
    SECURITY_GROUP = "security-group"
    PLACEMENT_GROUP = "placement-group"
    NIC = "nic"
    DISK = "disk"
    VM = "vm"
    STORAGE_CLUSTER = "storage-cluster"
    POOL = "pool"
    DISK_TYPE = "disk-type"
    SNAPSHOT = "snapshot"


PREFIX: dict[Kind, str] = {
    Kind.ACCOUNT: "acc",
    Kind.CLUSTER: "clu",
    Kind.NODE: "nod",
    Kind.KEYPAIR: "key",
    Kind.IMAGE: "img",
    Kind.VPC: "vpc",
    Kind.SUBNET: "sub",
    Kind.SECURITY_GROUP: "sg",
    Kind.PLACEMENT_GROUP: "pg",
    Kind.NIC: "nic",
    Kind.DISK: "dsk",
    Kind.VM: "vm",
    Kind.STORAGE_CLUSTER: "stc",
    Kind.POOL: "pol",
    Kind.DISK_TYPE: "dty",
    Kind.SNAPSHOT: "snp",
}
OPERATION_PREFIX = "op"
INCIDENT_PREFIX = "inc"
EVENT_PREFIX = "ev"
TOKEN_PREFIX = "tok"

ADMIN_KINDS = frozenset({Kind.ACCOUNT, Kind.CLUSTER, Kind.NODE, Kind.STORAGE_CLUSTER, Kind.POOL})
"""Kinds that only an administrator sees."""


class State(StrEnum):
    """The states a resource's `status.state` can have. Those in TRANSITIONAL have a deadline and an owner."""

    PENDING = "pending"
    CREATING = "creating"
    READY = "ready"
    RUNNING = "running"
    STARTING = "starting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    UPDATING = "updating"
    DELETING = "deleting"
    ERROR = "error"
    UNKNOWN = "unknown"
    # disks only: deleted, and kept for a while so that it can be had back
    TRASHED = "trashed"
    # nodes only
    JOINING = "joining"
    DOWN = "down"


TRANSITIONAL = frozenset(
    {State.PENDING, State.CREATING, State.STARTING, State.STOPPING, State.UPDATING, State.DELETING}
)
