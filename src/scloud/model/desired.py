"""What the manager tells a node: small keyed objects. A node's desired state is a set of them.

The agent keeps the last set on its own disk and needs no manager to hold it. An object missing from the set is left
alone and reported as an orphan; what is to go is said by `power="absent"` or `absent=True`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from scloud.model.base import Value
from scloud.model.migrations import DiskCopy, OnStuck
from scloud.model.snapshots import DiskLimits
from scloud.model.specs import StoredRule


class DesiredSubnet(Value):
    id: str
    name: str
    cidr: str
    gateway: str
    service_ip: str


class DesiredVpc(Value):
    kind: Literal["vpc"] = "vpc"
    id: str
    generation: int
    name: str
    vni: int
    subnets: tuple[DesiredSubnet, ...] = ()


class DesiredGroup(Value):
    kind: Literal["group"] = "group"
    id: str
    generation: int
    rules: tuple[StoredRule, ...] = ()


class DesiredPort(Value):
    """A nic of a VPC present on the node. Local if `node_id` is the node's own, else reached at `tunnel_ip`."""

    kind: Literal["port"] = "port"
    id: str
    generation: int
    vpc: str
    subnet: str
    vm: str | None
    hostname: str
    mac: str
    ip: str
    groups: tuple[str, ...] = ()
    node_id: str | None
    tunnel_ip: str | None
    second: tuple[str, str] | None = None
    """(node id, tunnel IP) of another node that gets a copy of all that is for it, while its VM migrates there."""
    absent: bool = False

    def on(self, node: str) -> bool:
        """Whether a node has a tap of it."""
        return node == self.node_id or (self.second is not None and node == self.second[0])


class DesiredSnapshot(Value):
    id: str
    absent: bool = False


class DesiredDisk(Value):
    """`incarnation` counts rebuilds: another number means the bytes are to be made anew from `image`."""

    kind: Literal["disk"] = "disk"
    id: str
    generation: int
    size_mib: int
    image: str | None
    image_sha256: str | None
    incarnation: int = 0
    absent: bool = False
    pool: str | None = None
    """The pool's id; None is the node's local storage."""
    origin: tuple[str, str] | None = None
    """(disk, snapshot) of the same pool whose bytes it begins with, instead of an image's."""
    snapshots: tuple[DesiredSnapshot, ...] = ()
    rollbacks: int = 0
    """A number higher than the one last carried out asks for one more, to `rollback_to`."""
    rollback_to: str | None = None
    limits: DiskLimits = DiskLimits()
    flattened: bool = False


class StorePool(Value):
    """A pool this node may use. `data_name` is where an erasure-coded pool has its data."""

    id: str
    name: str
    data_name: str | None = None


class MonDaemon(Value):
    """`name` is the monitor's id in the cluster, `address` IP:PORT."""

    type: Literal["mon"] = "mon"
    name: str
    address: str


class MgrDaemon(Value):
    type: Literal["mgr"] = "mgr"
    name: str
    key: str


class OsdDaemon(Value):
    """`uuid` is the device's for ever; the OSD's number is asked of the cluster with it. `key` is its cephx secret.

    With `size_mib` the path is a sparse file, made if it is not there. `crush` is its place, such as
    {"root": "default", "rack": "r1", "host": "n1"}. `absent`: stopped, its bytes wiped.
    """

    type: Literal["osd"] = "osd"
    uuid: str
    key: str
    path: str
    size_mib: int | None = None
    media: str
    crush: dict[str, str]
    absent: bool = False


class DesiredStore(Value):
    """A node's part in one storage cluster: how to reach it, what of it may be used, and the daemons to run here.

    The id is CLUSTER.NODE. `initial_monitors` are (name, IP:PORT) of all that form the first quorum; `mon_key` is the
    secret of `mon.`, given to nodes with a monitor only; `bootstrap_key` that of client.bootstrap-osd.
    """

    kind: Literal["store"] = "store"
    id: str
    generation: int
    cluster: str
    fsid: str
    mon_host: str
    client: str
    """cephx name of this node without `client.`; `client_key` is empty until the cluster has it."""
    client_key: str = ""
    pools: tuple[StorePool, ...] = ()
    first_port: int = 0
    initial_monitors: tuple[tuple[str, str], ...] = ()
    mon_key: str = ""
    admin_key: str = ""
    """Only for the first start of a monitor: it puts client.admin into the new cluster."""
    bootstrap_key: str = ""
    lease_s: float = 0.0
    """Seconds without the cluster and the manager after which VMs with disks in it are switched off; 0 is never."""
    daemons: tuple[Annotated[MonDaemon | MgrDaemon | OsdDaemon, Field(discriminator="type")], ...] = ()
    absent: bool = False


class VmDisk(Value):
    id: str
    system: bool


class MoveOut(Value):
    """At the node that a VM runs on: bring it to `target`, whose agent takes it at `address` (IP:PORT).

    `number` counts the VM's migrations; each is tried once. `copies` are the disks whose bytes go with it.
    `bandwidth_mib_s` 0 is no limit. `stuck` is what is done
    about a guest that writes faster than is copied. `cancel`: end it, the guest stays.
    """

    number: int
    target: str
    address: str
    copies: tuple[str, ...] = ()
    bandwidth_mib_s: int = 0
    downtime_ms: int = 300
    stuck: OnStuck = "auto-converge"
    cancel: bool = False


class MoveIn(Value):
    """At the node that a VM is to come to: from `source`. `pools` are those of the VM's disks, by disk; the others are
    `copies`, made here empty and filled by the source."""

    number: int
    source: str
    pools: dict[str, str]
    copies: tuple[DiskCopy, ...] = ()
    asked: int = 0
    """Higher than before: look again at what has come, and say so with this number."""


class DesiredVm(Value):
    """`starts` and `reboots` count requests: a number higher than the one last carried out asks for one more."""

    kind: Literal["vm"] = "vm"
    id: str
    generation: int
    name: str
    account: str
    cpus: int
    memory_mib: int
    power: Literal["on", "off", "absent"]
    starts: int
    reboots: int
    force_stop: bool = False
    stop_grace_s: float = 60.0
    """How long the guest may take to shut down by itself before it is switched off."""
    restart_limit: int
    disks: tuple[VmDisk, ...]
    nics: tuple[str, ...]
    keys: tuple[str, ...] = ()
    user_data: str = ""
    gpus: tuple[str, ...] = ()
    """PCI addresses of all functions that are passed through."""
    move_out: MoveOut | None = None
    move_in: MoveIn | None = None
    """Until this is gone, it is not started or stopped here, only waited for."""
    leftovers: tuple[str, ...] = ()
    """Of one that is to be absent: disks in this node's own storage that went with it, or were to come with it."""


DesiredObject = Annotated[
    DesiredVpc | DesiredGroup | DesiredPort | DesiredDisk | DesiredVm | DesiredStore, Field(discriminator="kind")
]


def key_of(item: DesiredVpc | DesiredGroup | DesiredPort | DesiredDisk | DesiredVm | DesiredStore) -> str:
    """`kind/id`, the name of the object in messages, journals and reports."""
    return f"{item.kind}/{item.id}"
