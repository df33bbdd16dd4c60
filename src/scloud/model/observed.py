"""What a node tells the manager."""

from __future__ import annotations

from typing import Literal

from scloud.model.base import Value
from scloud.model.gpus import Gpu
from scloud.model.migrations import MoveSeen
from scloud.model.statuses import Accelerator, Capacity


class NodeFacts(Value):
    """Sent once per connection. `tunnel_ip` is where other nodes send this node's VXLAN, `storage_ip` where its storage
    daemons listen."""

    hostname: str
    architecture: str
    capacity: Capacity
    tunnel_ip: str
    accelerator: Accelerator
    agent_version: str
    datapath: str
    boot_id: str
    storage_ip: str = ""
    gpus: tuple[Gpu, ...] = ()


class NodeLoad(Value):
    """Sent with the heartbeat. Fractions are 0..1."""

    cpu: float = 0.0
    memory: float = 0.0
    disk: float = 0.0
    network: float = 0.0
    """Of the busier direction of the busiest link, since the last heartbeat; 0 where no link tells its speed."""
    network_mbps: float = 0.0
    """Megabits a second of all links, in the busier direction."""
    storage: float = 0.0
    """The time since the last heartbeat in which the disks' device had requests under way."""
    storage_ms: float = 0.0
    """How long one of those requests took on average (0 if there was none), or a small one to the slowest storage
    cluster in which the node keeps a lease, whichever is longer."""
    memory_free_mib: int = 0
    disk_free_mib: int = 0


class Observed(Value):
    """The state of one desired object, for the generation it was compared with.

    `settled` is false while the agent is still working on it; `reason` names what is wrong or being waited for, and
    what to do about it when `state` is `error`.
    """

    key: str
    generation: int
    state: Literal["running", "stopped", "ready", "absent", "error", "working"]
    settled: bool
    reason: str = ""
    cpus: int | None = None
    memory_mib: int | None = None
    used_mib: int | None = None
    restarts: int = 0
    guest_stopped: bool = False
    """The guest powered itself off (or obeyed an ACPI request): its owner decides whether it starts again."""
    snapshots: tuple[tuple[str, int], ...] | None = None
    """Of a disk: (id, MiB) of each snapshot there is."""
    osds: dict[str, int] | None = None
    """Of a store: the number of each OSD that has one, by its device's uuid."""
    move: MoveSeen | None = None
    """Of a VM that migrates from or to this node."""
    dropped: tuple[str, ...] = ()
    """Of a VM that is absent: the `leftovers` of which nothing is here any more."""


class VmFigures(Value):
    """Counters and gauges of one VM as libvirt and the switch see it."""

    vm: str
    cpu_seconds: float
    cpu_fraction: float | None = None
    """Of all its virtual CPUs, since the last sample."""
    memory_mib: int = 0
    memory_used_mib: int | None = None
    """As the guest's balloon driver tells; None where it has none."""
    resident_mib: int | None = None
    sampled_at: float = 0.0


class PoolLeft(Value):
    """What a shared pool has beside whole disks, their snapshots and the bases of images. `pool` is its id."""

    pool: str = ""
    partials: tuple[tuple[str, str], ...] = ()
    """(node, name) of images that a node had not finished when it was last heard of, or is at."""
    half_removed: tuple[str, ...] = ()
    """`disk/ID` of what somebody is removing, or was when he died: a disk, or what it was before it was made anew."""
    trash: tuple[str, ...] = ()
    """Names of what somebody has put into the trash of Ceph itself."""
    locks: tuple[tuple[str, str], ...] = ()
    """(`disk/ID`, address) of locks whose holder is gone, of disks that nobody has open."""
    fenced: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(node, addresses) of nodes that are cut off."""


class Inventory(Value):
    """Everything stamped with one of our ids that exists on the node, for `scloud audit`. Values are `kind/id` keys."""

    domains: tuple[str, ...] = ()
    running: tuple[str, ...] = ()
    disks: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    flow_owners: tuple[str, ...] = ()
    daemons: tuple[str, ...] = ()
    """Storage daemons, as CLUSTER/TYPE.NAME."""
    pool_disks: tuple[str, ...] = ()
    """`disk/ID` and `snapshot/ID` of shared pools that this node can see, `image/ID` of bases, and `stranger/POOL/NAME`
    of what is nothing of ours."""
    pool_left: tuple[PoolLeft, ...] = ()
