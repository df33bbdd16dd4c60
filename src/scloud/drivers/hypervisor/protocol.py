"""What the agent asks of a hypervisor. All calls are idempotent and bounded in time by the caller.

Failures are `CloudError(ENGINE)` with the engine's own words in the message; asking about a domain that does not
exist is `CloudError(NOT_FOUND)`, except `destroy` and `undefine`, which then have nothing to do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from scloud.drivers.storage.place import Place
from scloud.model.base import Value
from scloud.model.migrations import MoveProgress, OnStuck
from scloud.model.snapshots import DiskLimits


class DiskSource(Value):
    """Where a disk's bytes are. The hypervisor uses it as `raw`: no format is ever guessed."""

    disk: str
    place: Place
    read_only: bool = False
    limits: DiskLimits = DiskLimits()


class NicDevice(Value):
    """A tap that already exists, made and owned by the network driver."""

    nic: str
    tap: str
    mac: str
    mtu: int
    offload: bool
    """False on the userspace datapath: checksum and segmentation offload are switched off."""


class DomainSpec(Value):
    """`max_cpus` and `max_memory_mib` bound what can be plugged in while it runs."""

    vm: str
    name: str
    cpus: int
    max_cpus: int
    memory_mib: int
    max_memory_mib: int
    disks: tuple[DiskSource, ...]
    """In boot order; the first is the system disk. Each disk's serial in the guest is its id's last 20 characters."""
    nics: tuple[NicDevice, ...]
    console_log: Path
    console_socket: Path
    """A UNIX socket on which QEMU listens with the guest's serial port, one client at a time."""
    gpus: tuple[str, ...] = ()
    """PCI addresses of host devices to pass through, such as 0000:3b:00.0."""


class DomainFacts(Value):
    """One of our domains as it is. `off_reason` says why it is off, where the engine knows."""

    vm: str
    running: bool
    paused: bool = False
    moving: bool = False
    """Paused by a migration under way: at the target not all has come, at the source it does not run any more."""
    complete: bool = False
    """It has come by a migration, all of it, and waits to be let run."""
    halved: bool = False
    """By post-copy it was to run at another node, or came from there so, and part of its memory is on the other side.
    What is here must never run on by itself."""
    off_reason: Literal["guest", "requested", "crashed", "unknown"] = "unknown"
    cpus: int
    memory_mib: int
    disks: tuple[str, ...]
    nics: tuple[str, ...]
    pid: int | None = None


Gone: TypeAlias = Callable[[], Awaitable[None]]


class MoveRoute(Value):
    """UNIX sockets on the node that a VM leaves: behind `control` is the target's hypervisor, behind `memory` and
    `disks` whoever listens on the same path at the target."""

    control: Path
    memory: Path
    disks: Path


class MoveOptions(Value):
    """`bandwidth_mib_s` 0 is no limit; `downtime_ms` is what the engine may pause the guest for. `copies` are the disks
    whose bytes go with it; what there is at the target has their size."""

    copies: frozenset[str] = frozenset()
    bandwidth_mib_s: int = 0
    downtime_ms: int = 300
    stuck: OnStuck = "auto-converge"


class DomainEvent(Value):
    """`stopped` carries why; `reconnected` means the engine itself was away and everything must be looked at anew."""

    kind: Literal["started", "stopped", "rebooted", "reconnected"]
    vm: str | None = None
    off_reason: Literal["guest", "requested", "crashed", "unknown"] = "unknown"


class DomainFigures(Value):
    """Cumulative CPU seconds since the domain started; memory in MiB."""

    vm: str
    cpu_seconds: float
    cpus: int
    memory_mib: int
    memory_used_mib: int | None
    resident_mib: int | None


class DiskFigures(Value):
    """Cumulative since the domain started; times in nanoseconds are the sums over all requests."""

    disk: str
    reads: int
    writes: int
    read_bytes: int
    written_bytes: int
    read_ns: int
    write_ns: int
    flush_ns: int


class Hypervisor(Protocol):
    """Domains are found by the id stamped into their metadata, never by name."""

    async def domains(self) -> list[DomainFacts]: ...

    async def show(self, vm: str) -> DomainFacts | None: ...

    async def start(self, spec: DomainSpec) -> None:
        """Define anew from the spec and start. A running domain is left as it is."""
        ...

    async def shutdown(self, vm: str) -> None:
        """Ask the guest over ACPI; returns at once."""
        ...

    async def destroy(self, vm: str, *, at_once: bool = False) -> None:
        """Switch off. QEMU has some seconds to write what it holds; `at_once`, it has none: for a VM whose disks it
        must not touch any more, or does not reach."""
        ...

    async def reboot(self, vm: str) -> None:
        """Reset as by the button; the guest's disks stay attached."""
        ...

    async def undefine(self, vm: str) -> None:
        """Forget a domain that is off."""
        ...

    def set_secret(self, secret: str, usage: str, value: str) -> None:
        """From now on disks whose place names this secret (a UUID) can be opened: `value` is a cephx key in base 64.

        Kept in memory alone. `usage` says in words whose it is; it must be unique.
        """
        ...

    async def attach_disk(self, vm: str, disk: DiskSource) -> None: ...

    async def detach_disk(self, vm: str, disk: str) -> None:
        """Returns when the guest has let go; `CloudError(TIMED_OUT)` if it does not within 20 s."""
        ...

    async def grow_disk(self, vm: str, disk: str, size_mib: int) -> None:
        """Tell a running guest that its disk has grown."""
        ...

    async def limit_disk(self, vm: str, disk: str, limits: DiskLimits) -> None:
        """What a running guest may do with its disk from now on."""
        ...

    async def disk_figures(self, vm: str) -> list[DiskFigures]:
        """Of each disk of a running domain."""
        ...

    async def attach_nic(self, vm: str, nic: NicDevice) -> None: ...

    async def detach_nic(self, vm: str, nic: str) -> None: ...

    async def set_cpus(self, vm: str, cpus: int) -> bool:
        """Live; False if this guest takes it only at its next start."""
        ...

    async def set_memory(self, vm: str, memory_mib: int) -> bool:
        """Live; False if this guest takes it only at its next start."""
        ...

    async def prepare_move(self, spec: DomainSpec) -> None:
        """Whatever a domain with this spec needs beside its disks and taps, to come here from another node."""
        ...

    async def move(self, vm: str, spec: DomainSpec, route: MoveRoute, options: MoveOptions, gone: Gone) -> None:
        """Bring a running domain to another node, live. `spec` says where its disks, console and taps are there.

        `gone` is awaited once all of it is there, `complete`, and it is certain never to run here again: there it runs
        once it is let (`resume`), so that it never runs twice; with `stuck="post-copy"` alone it runs there by itself.
        Returns when nothing of it is left here, which may be seconds after `gone`: its process closes its disks first.
        `CloudError` if it broke off: what is here then says whether the guest runs on (it does in nearly every case),
        or is held because nobody knows whether it is there.
        """
        ...

    async def move_progress(self, vm: str) -> MoveProgress | None:
        """Of the migration under way; None if there is none."""
        ...

    async def cancel_move(self, vm: str) -> None:
        """Ask the migration under way to end; the guest stays. Nothing happens if there is none."""
        ...

    async def switch_to_postcopy(self, vm: str) -> None:
        """Of a migration that was begun with `stuck="post-copy"`: let the guest run at the target from now on."""
        ...

    async def resume(self, vm: str) -> None:
        """Let a paused guest run."""
        ...

    async def figures(self) -> list[DomainFigures]: ...

    def events(self) -> AsyncIterator[DomainEvent]:
        """Every change as it happens, until the consumer stops."""
        ...

    async def close(self) -> None: ...
