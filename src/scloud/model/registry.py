"""Which types a kind's spec and status have."""

from __future__ import annotations

from scloud.model.base import Value
from scloud.model.kinds import Kind
from scloud.model.snapshots import SnapshotSpec, SnapshotStatus
from scloud.model.specs import (
    AccountSpec,
    ClusterSpec,
    DiskSpec,
    ImageSpec,
    KeypairSpec,
    NicSpec,
    NodeSpec,
    PlacementGroupSpec,
    SecurityGroupSpec,
    SubnetSpec,
    VmSpec,
    VpcSpec,
)
from scloud.model.statuses import DiskStatus, ImageStatus, NicStatus, NodeStatus, Status, VmStatus
from scloud.model.storage import DiskTypeSpec, PoolSpec, PoolStatus, StorageClusterSpec, StorageClusterStatus

SPEC: dict[Kind, type[Value]] = {
    Kind.ACCOUNT: AccountSpec,
    Kind.CLUSTER: ClusterSpec,
    Kind.NODE: NodeSpec,
    Kind.KEYPAIR: KeypairSpec,
    Kind.IMAGE: ImageSpec,
    Kind.VPC: VpcSpec,
    Kind.SUBNET: SubnetSpec,
    Kind.SECURITY_GROUP: SecurityGroupSpec,
    Kind.PLACEMENT_GROUP: PlacementGroupSpec,
    Kind.NIC: NicSpec,
    Kind.DISK: DiskSpec,
    Kind.VM: VmSpec,
    Kind.STORAGE_CLUSTER: StorageClusterSpec,
    Kind.POOL: PoolSpec,
    Kind.DISK_TYPE: DiskTypeSpec,
    Kind.SNAPSHOT: SnapshotSpec,
}
_STATUS: dict[Kind, type[Status]] = {
    Kind.NODE: NodeStatus,
    Kind.IMAGE: ImageStatus,
    Kind.NIC: NicStatus,
    Kind.DISK: DiskStatus,
    Kind.VM: VmStatus,
    Kind.STORAGE_CLUSTER: StorageClusterStatus,
    Kind.POOL: PoolStatus,
    Kind.SNAPSHOT: SnapshotStatus,
}


def status_type(kind: Kind) -> type[Status]:
    """Kinds that nothing outside the database has to follow have a plain Status."""
    return _STATUS.get(kind, Status)
