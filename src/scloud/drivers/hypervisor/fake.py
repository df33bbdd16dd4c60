"""A hypervisor in memory, for tests and the simulator.

`FakeHost` is the machine with its domains: it outlives any number of `FakeHypervisor` drivers, as guests outlive their
agent. Delays are `asyncio.sleep`, so that they cost nothing under a virtual clock; each is a point where the agent may
be killed. What a guest does by itself is the event loop's `call_later`, which no agent's death stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Literal

from scloud.drivers.hypervisor.domain_xml import DIMM_SLOTS, DIMM_STEP_MIB, check_item, check_spec
from scloud.drivers.hypervisor.protocol import (
    DiskFigures,
    DiskSource,
    DomainEvent,
    DomainFacts,
    DomainFigures,
    DomainSpec,
    Gone,
    MoveOptions,
    MoveRoute,
    NicDevice,
)
from scloud.drivers.storage.place import RbdPlace
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.migrations import MoveProgress
from scloud.model.snapshots import DiskLimits

OffReason = Literal["guest", "requested", "crashed", "unknown"]

DETACH_TIMEOUT_S = 20.0
_FIRST_PID = 1000
HOSTS: dict[str, FakeHost] = {}
"""Hosts that can be migrated to, by the path in `MoveRoute.control`."""


@dataclass
class FakeDomain:
    """One domain. `booted` is when its guest begins to listen to ACPI, on the loop's clock. `deaf` guests never do."""

    spec: DomainSpec
    running: bool = False
    paused: bool = False
    moving: bool = False
    complete: bool = False
    halved: bool = False
    off_reason: OffReason = "unknown"
    cpus: int = 0
    memory_mib: int = 0
    disks: dict[str, DiskSource] = field(default_factory=dict)
    nics: dict[str, NicDevice] = field(default_factory=dict)
    sizes_mib: dict[str, int] = field(default_factory=dict)
    figures: dict[str, DiskFigures] = field(default_factory=dict)
    """What its guest has done with its disks, where a test says so."""
    dimms: int = 0
    pid: int | None = None
    began: float = 0.0
    booted: float = 0.0
    starts: int = 0
    resets: int = 0
    deaf: bool = False


@dataclass
class FakeHost:
    """The state. A test reaches in to fail calls, crash a guest, act as one, or look at what is there.

    `failures` are raised by the next calls, in turn; with a method's name in `failing` every call of it fails. Times
    are seconds of the loop's clock: `call_s` for each call, `start_s` until QEMU runs, `boot_s` until the guest
    listens, `react_s` until it has obeyed.
    """

    call_s: float = 0.0
    start_s: float = 0.0
    boot_s: float = 0.0
    react_s: float = 0.0
    call_timeout_s: float = 30.0
    domains: dict[str, FakeDomain] = field(default_factory=dict)
    failures: list[CloudError] = field(default_factory=list)
    failing: dict[str, CloudError] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    away: bool = False
    hung: bool = False
    listeners: set[asyncio.Queue[DomainEvent]] = field(default_factory=set)
    last_pid: int = _FIRST_PID
    secrets: dict[str, str] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    copy_s: float = 0.0
    """How long a guest's memory takes to another node."""
    moves: dict[str, asyncio.Event] = field(default_factory=dict)
    """Guests on their way out, each with what is set to stop it."""

    def crash(self, vm: str) -> None:
        """QEMU dies."""
        self._off(vm, "crashed")

    def guest_poweroff(self, vm: str) -> None:
        """The guest switches itself off."""
        self._off(vm, "guest")

    def guest_reboot(self, vm: str) -> None:
        """The guest restarts itself."""
        domain = self.domains[vm]
        if domain.running:
            domain.booted = _now() + self.boot_s
            self.publish(DomainEvent(kind="rebooted", vm=vm))

    def power_failure(self) -> None:
        """The whole machine goes down and comes back: definitions stay, nothing runs, and nobody knows why."""
        for domain in self.domains.values():
            if domain.running:
                self._stop(domain, "unknown")
        self.publish(DomainEvent(kind="reconnected"))

    def engine_dies(self) -> None:
        """libvirtd is gone; the guests run on."""
        self.away = True

    def engine_returns(self) -> None:
        """libvirtd is back, or answers again."""
        self.away = self.hung = False
        self._wake()
        self.publish(DomainEvent(kind="reconnected"))

    def publish(self, event: DomainEvent) -> None:
        """Tell whoever listens. While libvirtd is away nobody hears."""
        if not (self.away or self.hung):
            for queue in self.listeners:
                queue.put_nowait(event)

    def _off(self, vm: str, reason: OffReason) -> None:
        domain = self.domains[vm]
        if domain.running:
            self._stop(domain, reason)
            self.publish(DomainEvent(kind="stopped", vm=vm, off_reason=reason))

    def _stop(self, domain: FakeDomain, reason: OffReason) -> None:
        domain.running = False
        domain.off_reason = reason
        domain.pid = None
        # What was plugged in is forgotten: the definition is that of the start.
        domain.cpus, domain.memory_mib = domain.spec.cpus, domain.spec.memory_mib
        domain.disks = {disk.disk: disk for disk in domain.spec.disks}
        domain.nics = {nic.nic: nic for nic in domain.spec.nics}
        domain.dimms = 0
        self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


def _now() -> float:
    return asyncio.get_running_loop().time()


class FakeHypervisor:
    """A driver on a `FakeHost`; make another on the same host to play an agent that was restarted."""

    def __init__(self, host: FakeHost | None = None) -> None:
        self.host = host or FakeHost()

    async def domains(self) -> list[DomainFacts]:
        await self._call("domains", "")
        return [_facts(domain) for domain in self.host.domains.values()]

    async def show(self, vm: str) -> DomainFacts | None:
        await self._call("show", vm)
        domain = self.host.domains.get(vm)
        return _facts(domain) if domain is not None else None

    async def start(self, spec: DomainSpec) -> None:
        check_spec(spec)
        await self._call("start", spec.vm)
        before = self.host.domains.get(spec.vm)
        if before is not None and before.running:
            return
        await asyncio.sleep(self.host.start_s)
        now = self.host.domains.get(spec.vm)
        if now is not None and now.running:
            return
        self._check_locks(spec)
        self._check_secrets(*spec.disks)
        self.host.last_pid += 1
        self.host.domains[spec.vm] = FakeDomain(
            spec=spec,
            running=True,
            cpus=spec.cpus,
            memory_mib=spec.memory_mib,
            disks={disk.disk: disk for disk in spec.disks},
            nics={nic.nic: nic for nic in spec.nics},
            pid=self.host.last_pid,
            began=_now(),
            booted=_now() + self.host.boot_s,
            starts=(before.starts if before is not None else 0) + 1,
            deaf=before.deaf if before is not None else False,
        )
        self.host.publish(DomainEvent(kind="started", vm=spec.vm))

    async def shutdown(self, vm: str) -> None:
        await self._call("shutdown", vm)
        domain = self._existing(vm)
        if not domain.running or domain.deaf or _now() < domain.booted:
            return
        pid = domain.pid

        def obey() -> None:
            if self.host.domains.get(vm) is domain and domain.pid == pid:
                self.host.guest_poweroff(vm)

        if self.host.react_s:
            asyncio.get_running_loop().call_later(self.host.react_s, obey)
        else:
            obey()

    async def destroy(self, vm: str, *, at_once: bool = False) -> None:
        await self._call("destroy", vm)
        if vm in self.host.domains:
            self.host._off(vm, "requested")

    async def reboot(self, vm: str) -> None:
        await self._call("reboot", vm)
        self._running(vm, f"reboot {vm}").resets += 1
        self.host.guest_reboot(vm)

    async def undefine(self, vm: str) -> None:
        await self._call("undefine", vm)
        domain = self.host.domains.get(vm)
        if domain is None:
            return
        if domain.running:
            raise CloudError(ErrorKind.CONFLICT, f"{vm} is running: switch it off before it is forgotten")
        del self.host.domains[vm]

    def set_secret(self, secret: str, usage: str, value: str) -> None:
        self.host.secrets[secret] = value

    async def attach_disk(self, vm: str, disk: DiskSource) -> None:
        check_item("disk", disk.disk)
        await self._call("attach_disk", vm)
        self._check_secrets(disk)
        self._running(vm, f"attach disk {disk.disk} to {vm}").disks.setdefault(disk.disk, disk)

    async def detach_disk(self, vm: str, disk: str) -> None:
        await self._call("detach_disk", vm)
        doing = f"detach disk {disk} from {vm}"
        if disk in self._running(vm, doing).disks:
            await self._let_go(vm, doing)
            self._running(vm, doing).disks.pop(disk, None)

    async def grow_disk(self, vm: str, disk: str, size_mib: int) -> None:
        await self._call("grow_disk", vm)
        domain = self._running(vm, f"grow disk {disk} of {vm}")
        if disk not in domain.disks:
            raise CloudError(ErrorKind.NOT_FOUND, f"disk {disk} is not attached to {vm}")
        domain.sizes_mib[disk] = size_mib

    async def limit_disk(self, vm: str, disk: str, limits: DiskLimits) -> None:
        await self._call("limit_disk", vm)
        domain = self._running(vm, f"limit disk {disk} of {vm}")
        if disk not in domain.disks:
            raise CloudError(ErrorKind.NOT_FOUND, f"disk {disk} is not attached to {vm}")
        domain.disks[disk] = domain.disks[disk].model_copy(update={"limits": limits})

    async def disk_figures(self, vm: str) -> list[DiskFigures]:
        await self._call("disk_figures", vm)
        domain = self._running(vm, f"read the figures of {vm}'s disks")
        return [domain.figures.get(disk, _NOTHING.model_copy(update={"disk": disk})) for disk in domain.disks]

    async def attach_nic(self, vm: str, nic: NicDevice) -> None:
        check_item("nic", nic.nic)
        await self._call("attach_nic", vm)
        self._running(vm, f"attach nic {nic.nic} to {vm}").nics.setdefault(nic.nic, nic)

    async def detach_nic(self, vm: str, nic: str) -> None:
        await self._call("detach_nic", vm)
        doing = f"detach nic {nic} from {vm}"
        if nic in self._running(vm, doing).nics:
            await self._let_go(vm, doing)
            self._running(vm, doing).nics.pop(nic, None)

    async def set_cpus(self, vm: str, cpus: int) -> bool:
        await self._call("set_cpus", vm)
        domain = self._running(vm, f"give {vm} {cpus} CPUs")
        if not domain.cpus <= cpus <= domain.spec.max_cpus:
            return False
        domain.cpus = cpus
        return True

    async def set_memory(self, vm: str, memory_mib: int) -> bool:
        await self._call("set_memory", vm)
        domain = self._running(vm, f"give {vm} {memory_mib} MiB")
        more = memory_mib - domain.memory_mib
        if more == 0:
            return True
        if more < 0 or more % DIMM_STEP_MIB or memory_mib > domain.spec.max_memory_mib or domain.dimms >= DIMM_SLOTS:
            return False
        domain.memory_mib = memory_mib
        domain.dimms += 1
        return True

    async def prepare_move(self, spec: DomainSpec) -> None:
        await self._call("prepare_move", spec.vm)
        if spec.vm in self.host.domains:
            raise CloudError(ErrorKind.CONFLICT, f"{spec.vm} is here already")
        self._check_secrets(*spec.disks)

    async def move(self, vm: str, spec: DomainSpec, route: MoveRoute, options: MoveOptions, gone: Gone) -> None:
        await self._call("move", vm)
        source, target = self.host, HOSTS[str(route.control)]
        domain = self._running(vm, f"move {vm}")
        arriving = replace(domain, spec=spec, paused=True, moving=True, pid=None)
        arriving.disks = {disk.disk: disk for disk in spec.disks}
        arriving.nics = {nic.nic: nic for nic in spec.nics}
        target.domains[vm] = arriving
        source.moves[vm] = cancelled = asyncio.Event()
        try:
            async with asyncio.timeout(source.copy_s):
                await cancelled.wait()
            raise CloudError(ErrorKind.ENGINE, f"move {vm}: operation aborted: migration out job: canceled by client")
        except TimeoutError:
            pass
        except BaseException:
            target.domains.pop(vm, None)
            raise
        finally:
            source.moves.pop(vm, None)
        if source.domains.get(vm) is not domain or not domain.running or target.domains.get(vm) is not arriving:
            if target.domains.get(vm) is arriving:
                del target.domains[vm]
            raise CloudError(ErrorKind.ENGINE, f"move {vm}: operation failed: domain is no longer running")
        target.last_pid += 1
        arriving.pid, arriving.moving = target.last_pid, False
        arriving.complete = arriving.paused = options.stuck != "post-copy"
        del source.domains[vm]
        source.publish(DomainEvent(kind="stopped", vm=vm))
        target.publish(DomainEvent(kind="started", vm=vm))
        await gone()

    async def move_progress(self, vm: str) -> MoveProgress | None:
        await self._call("move_progress", vm)
        domain = self._existing(vm)
        moving = vm in self.host.moves
        return MoveProgress(iteration=1, total_mib=domain.memory_mib, remaining_mib=0) if moving else None

    async def cancel_move(self, vm: str) -> None:
        await self._call("cancel_move", vm)
        if (cancelled := self.host.moves.get(vm)) is not None:
            cancelled.set()

    async def switch_to_postcopy(self, vm: str) -> None:
        await self._call("switch_to_postcopy", vm)

    async def resume(self, vm: str) -> None:
        await self._call("resume", vm)
        domain = self._existing(vm)
        domain.paused = domain.moving = domain.complete = False

    async def figures(self) -> list[DomainFigures]:
        await self._call("figures", "")
        return [
            DomainFigures(
                vm=vm,
                cpu_seconds=_now() - domain.began,
                cpus=domain.cpus,
                memory_mib=domain.memory_mib,
                memory_used_mib=domain.memory_mib // 4,
                resident_mib=domain.memory_mib // 2,
            )
            for vm, domain in self.host.domains.items()
            if domain.running
        ]

    async def events(self) -> AsyncIterator[DomainEvent]:
        queue: asyncio.Queue[DomainEvent] = asyncio.Queue()
        self.host.listeners.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self.host.listeners.discard(queue)

    async def close(self) -> None:
        """Nothing is held: the host goes on."""

    async def _call(self, method: str, vm: str) -> None:
        host = self.host
        host.calls.append((method, vm))
        try:
            async with asyncio.timeout(host.call_timeout_s):
                while host.hung or host.away:
                    await host.changed.wait()
                await asyncio.sleep(host.call_s)
        except TimeoutError:
            kind = ErrorKind.TIMED_OUT if host.hung else ErrorKind.UNAVAILABLE
            raise CloudError(kind, f"{method} {vm}: no answer in {host.call_timeout_s:g} s") from None
        if host.failures:
            raise host.failures.pop(0)
        if method in host.failing:
            raise host.failing[method]

    def _existing(self, vm: str) -> FakeDomain:
        domain = self.host.domains.get(vm)
        if domain is None:
            raise CloudError(ErrorKind.NOT_FOUND, f"there is no domain of {vm} on this node")
        return domain

    def _running(self, vm: str, doing: str) -> FakeDomain:
        domain = self._existing(vm)
        if not domain.running:
            raise CloudError(ErrorKind.CONFLICT, f"{doing}: it is not running")
        return domain

    async def _let_go(self, vm: str, doing: str) -> None:
        """The guest lets a device go once it has booted; one that is deaf never does."""
        domain = self._running(vm, doing)
        wait = max(0.0, domain.booted - _now()) + self.host.react_s
        if domain.deaf or wait > DETACH_TIMEOUT_S:
            await asyncio.sleep(DETACH_TIMEOUT_S)
            raise CloudError(
                ErrorKind.TIMED_OUT, f"{doing}: the guest did not let go of it within {DETACH_TIMEOUT_S:g} s"
            )
        await asyncio.sleep(wait)

    def _check_locks(self, spec: DomainSpec) -> None:
        """QEMU locks what it writes to: no two guests of a host share a disk."""
        taken = {
            disk.place: other.spec.vm
            for other in self.host.domains.values()
            if other.running
            for disk in other.disks.values()
            if not disk.read_only
        }
        for disk in spec.disks:
            if disk.place in taken:
                raise CloudError(
                    ErrorKind.ENGINE, f"start {spec.vm}: disk {disk.disk} is locked by {taken[disk.place]}, which runs"
                )

    def _check_secrets(self, *disks: DiskSource) -> None:
        for disk in disks:
            if isinstance(disk.place, RbdPlace) and disk.place.secret not in self.host.secrets:
                raise CloudError(ErrorKind.ENGINE, f"disk {disk.disk}: there is no secret {disk.place.secret}")


_NOTHING = DiskFigures(disk="", reads=0, writes=0, read_bytes=0, written_bytes=0, read_ns=0, write_ns=0, flush_ns=0)


def _facts(domain: FakeDomain) -> DomainFacts:
    return DomainFacts(
        vm=domain.spec.vm,
        running=domain.running,
        paused=domain.paused,
        moving=domain.moving,
        complete=domain.complete,
        halved=domain.running and domain.halved,
        off_reason="unknown" if domain.running else domain.off_reason,
        cpus=domain.cpus,
        memory_mib=domain.memory_mib,
        disks=tuple(domain.disks),
        nics=tuple(domain.nics),
        pid=domain.pid,
    )
