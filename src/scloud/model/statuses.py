"""What is so: the status of each kind of resource. Written by the manager's controllers only."""

from __future__ import annotations

from typing import Literal

from scloud.model.base import Value
from scloud.model.gpus import Gpu
from scloud.model.kinds import State
from scloud.model.migrations import Migration


class Status(Value):
    """`reason` says, whenever the state is not what was asked for, why, and what to do."""

    state: State
    reason: str = ""


class Capacity(Value):
    cpus: int = 0
    memory_mib: int = 0
    disk_mib: int = 0


class Accelerator(Value):
    """How guests run here, found by booting one: `kvm` or `tcg`, with the reason in words."""

    kind: Literal["kvm", "tcg", "fake"]
    reason: str
    boot_seconds: float | None = None


class NodeStatus(Status):
    address: str = ""
    tunnel_ip: str = ""
    storage_ip: str = ""
    """Where the node's storage daemons listen: never on the switch's bridge."""
    architecture: str = ""
    capacity: Capacity = Capacity()
    accelerator: Accelerator | None = None
    agent_version: str = ""
    datapath: str = ""
    gpus: tuple[Gpu, ...] = ()
    last_seen: float | None = None


class VmStatus(Status):
    node: str | None = None
    addresses: tuple[str, ...] = ()
    cpus: int | None = None
    memory_mib: int | None = None
    """What the running guest has; differs from the spec until a change takes effect."""
    restarts: int = 0
    observed_generation: int = 0
    gpus: tuple[Gpu, ...] = ()
    """Of its node, its alone until it leaves the node."""
    migrations: int = 0
    """How many were begun."""
    migration: Migration | None = None
    leaving: tuple[str, ...] = ()
    """Nodes (ids) that the VM has left, or did not come to, and that have not confirmed yet that nothing of it is
    there."""
    leftovers: dict[str, tuple[str, ...]] = {}
    """By such a node: disks (ids) whose bytes in its own storage are to be deleted, since they are elsewhere."""


class DiskStatus(Status):
    node: str | None = None
    used_mib: int | None = None
    device: str | None = None
    observed_generation: int = 0
    told: bool = False
    """Of a shared pool: some node was told to make it, so there may be bytes."""
    held: bool = False
    """Of a shared pool: a VM on its node may have it open, so no other node may be told of it."""
    former: tuple[str, ...] = ()
    """Of a shared pool: nodes that were told of it before. One that was cut off may have made it anew meanwhile, so
    each of them confirms the disk's end."""
    importing: bool = False
    """Bytes are being streamed into it, or that broke off: it cannot be attached until an import has ended."""
    imported: str | None = None
    """The snapshot whose bytes it has from an import, as long as nobody can have written to it since."""
    moved_from: tuple[str, int, int] | None = None
    """While another disk's bytes are copied into it, to take its place: that disk, its generation, its VM's."""
    next_snapshot_at: float | None = None
    """When its schedule is due, seconds since 1970."""
    lost: bool = False
    """Its bytes went with a node that was removed as lost: nothing may begin with an empty one in its place."""


class NicStatus(Status):
    node: str | None = None
    observed_generation: int = 0
    former: tuple[str, ...] = ()
    """Nodes that its VM was leaving when it was detached: each of them may have a tap of it, and confirms its end."""


class ImageStatus(Status):
    size_mib: int = 0
    """Virtual size: the smallest disk it fits on."""
    sha256: str = ""
    """Of the raw bytes as stored."""
    file_mib: int = 0
