"""The real hypervisor: QEMU through libvirt.

Each domain's name and UUID come from its VM's id, and its metadata carries the id as a stamp; a domain without the
stamp is never touched. Definitions are persistent so that libvirt remembers why a domain is off; each start defines
anew.
"""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import threading
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import libvirt

from scloud.drivers.hypervisor.connection import Connection
from scloud.drivers.hypervisor.domain_xml import (
    DIMM_SLOTS,
    DIMM_STEP_MIB,
    Accelerated,
    DiskMode,
    DomainView,
    alias_of,
    check_item,
    dimm_element,
    disk_element,
    domain_uuid,
    domain_xml,
    iotune_of,
    item_of,
    next_target,
    nic_element,
    view_of,
)
from scloud.drivers.hypervisor.farewell import Farewell
from scloud.drivers.hypervisor.libvirt_move import (
    MOVE_TIMEOUT_S,
    PAUSED_BY_MOVE,
    cancel,
    halved,
    migrate,
    progress_of,
    resume,
)
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
from scloud.drivers.hypervisor.secrets import Secrets
from scloud.drivers.storage.place import RbdPlace
from scloud.drivers.supervisor.identity import Identity
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.migrations import MoveProgress
from scloud.model.snapshots import DiskLimits

Result = TypeVar("Result")
OffReason = Literal["guest", "requested", "crashed", "unknown"]

START_TIMEOUT_S = 60.0
KILL_S = 0.3
"""libvirt asks QEMU to end and waits 10 s for it; one whose storage is gone never does. Killed this much later, libvirt
still knows that it was asked for."""
DETACH_TIMEOUT_S = 20.0
DETACH_AGAIN_S = 4.0
"""A guest that is still booting does not hear the request to let a device go: it is asked again this often."""
REBOOT_ONCE_S = 1.0
_MIB = 1024 * 1024

_OFF_BY_STATE: dict[int, OffReason] = {
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: "guest",
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: "requested",
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: "crashed",
}
_OFF_BY_EVENT: dict[int, OffReason] = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: "guest",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: "requested",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: "crashed",
}
_PAUSED = frozenset({libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PMSUSPENDED})
_STATS = (
    libvirt.VIR_DOMAIN_STATS_CPU_TOTAL | libvirt.VIR_DOMAIN_STATS_BALLOON | libvirt.VIR_DOMAIN_STATS_VCPU
    | libvirt.VIR_DOMAIN_STATS_STATE
)  # fmt: skip


class _Removals:
    """Who waits for which device of which VM to be gone."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, str], list[asyncio.Event]] = {}

    def expect(self, vm: str, item: str) -> asyncio.Event:
        event = asyncio.Event()
        self._waiting.setdefault((vm, item), []).append(event)
        return event

    def forget(self, vm: str, item: str, event: asyncio.Event) -> None:
        self._waiting[(vm, item)].remove(event)
        if not self._waiting[(vm, item)]:
            del self._waiting[(vm, item)]

    def happened(self, vm: str, item: str) -> None:
        for event in self._waiting.get((vm, item), []):
            event.set()


class LibvirtHypervisor:
    """`accelerator` is what `accelerator.measure` found. One per process and event loop; `close` when done."""

    def __init__(
        self,
        accelerator: Accelerated,
        *,
        uri: str = "qemu:///system",
        state_dir: Path = Path("/run/libvirt/qemu"),
        log_dir: Path = Path("/var/log/libvirt/qemu"),
        call_timeout_s: float = 30.0,
    ) -> None:
        self._accelerator: Accelerated = accelerator
        self._state_dir = state_dir
        self._log_dir = log_dir
        self._listeners: set[asyncio.Queue[DomainEvent]] = set()
        self._removals = _Removals()
        self._secrets = Secrets()
        self._rebooted_at: dict[str, float] = {}
        self._loop = asyncio.get_running_loop()
        self._connection = Connection(
            uri, opened=self._register, returned=self._on_returned, call_timeout_s=call_timeout_s
        )

    async def domains(self) -> list[DomainFacts]:
        def ask(connection: Any) -> list[DomainFacts]:
            found = (self._facts(domain) for domain in connection.listAllDomains())
            return [facts for facts in found if facts is not None]

        return await self._connection.call("list domains", ask)

    async def show(self, vm: str) -> DomainFacts | None:
        def ask(connection: Any) -> DomainFacts | None:
            domain = _lookup(connection, vm)
            return self._facts(domain) if domain is not None else None

        return await self._connection.call(f"show {vm}", ask)

    async def start(self, spec: DomainSpec) -> None:
        def begin(connection: Any) -> None:
            domain = _lookup(connection, spec.vm)
            if domain is not None and domain.isActive():
                return
            spec.console_log.parent.mkdir(parents=True, exist_ok=True)
            spec.console_socket.parent.mkdir(parents=True, exist_ok=True)
            modes = [_disk_mode(disk) for disk in spec.disks]
            self._secrets.need(connection, spec.disks)
            xml = domain_xml(spec, modes, self._accelerator)
            domain = connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
            domain.create()

        await self._connection.call(f"start {spec.vm}", begin, START_TIMEOUT_S)

    async def shutdown(self, vm: str) -> None:
        def ask(domain: Any) -> None:
            if domain.isActive():
                domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)

        await self._with(f"shut down {vm}", vm, ask)

    async def destroy(self, vm: str, *, at_once: bool = False) -> None:
        def end(connection: Any) -> None:
            domain = _lookup(connection, vm)
            if domain is not None and domain.isActive():
                killing = threading.Timer(KILL_S, self._kill, (self._process(domain.name()),)) if at_once else None
                if killing is not None:
                    killing.start()
                try:
                    domain.destroy()
                except libvirt.libvirtError as error:
                    if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
                        raise  # else it went off by itself in between
                finally:
                    if killing is not None:
                        killing.cancel()

        await self._connection.call(f"switch off {vm}", end)

    async def reboot(self, vm: str) -> None:
        await self._with_running(f"reboot {vm}", vm, lambda domain, _: domain.reset(0))

    async def undefine(self, vm: str) -> None:
        def forget(connection: Any) -> None:
            domain = _lookup(connection, vm)
            if domain is None:
                return
            if domain.isActive():
                raise CloudError(ErrorKind.CONFLICT, f"{vm} is running: switch it off before it is forgotten")
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)

        await self._connection.call(f"undefine {vm}", forget)

    def set_secret(self, secret: str, usage: str, value: str) -> None:
        self._secrets.set(secret, usage, value)

    async def attach_disk(self, vm: str, disk: DiskSource) -> None:
        check_item("disk", disk.disk)

        def attach(domain: Any, view: DomainView) -> None:
            if disk.disk not in view.disks:
                self._secrets.need(domain.connect(), [disk])
                element = disk_element(disk, _disk_mode(disk), next_target(view.targets))
                domain.attachDeviceFlags(ET.tostring(element, encoding="unicode"), libvirt.VIR_DOMAIN_AFFECT_LIVE)

        await self._with_running(f"attach disk {disk.disk} to {vm}", vm, attach)

    async def detach_disk(self, vm: str, disk: str) -> None:
        await self._detach(vm, disk, f"detach disk {disk} from {vm}", lambda view: disk in view.disks)

    async def grow_disk(self, vm: str, disk: str, size_mib: int) -> None:
        def grow(domain: Any, view: DomainView) -> None:
            target = view.disks.get(disk)
            if target is None:
                raise CloudError(ErrorKind.NOT_FOUND, f"disk {disk} is not attached to {vm}")
            flags = libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES
            domain.blockResize(target, size_mib * _MIB, flags)

        await self._with_running(f"grow disk {disk} of {vm}", vm, grow)

    async def limit_disk(self, vm: str, disk: str, limits: DiskLimits) -> None:
        def limit(domain: Any, view: DomainView) -> None:
            target = view.disks.get(disk)
            if target is None:
                raise CloudError(ErrorKind.NOT_FOUND, f"disk {disk} is not attached to {vm}")
            domain.setBlockIoTune(target, iotune_of(limits), libvirt.VIR_DOMAIN_AFFECT_LIVE)

        await self._with_running(f"limit disk {disk} of {vm}", vm, limit)

    async def disk_figures(self, vm: str) -> list[DiskFigures]:
        def ask(domain: Any, view: DomainView) -> list[DiskFigures]:
            return [_disk_figures(disk, domain.blockStatsFlags(target, 0)) for disk, target in view.disks.items()]

        return await self._with_running(f"read the figures of {vm}'s disks", vm, ask)

    async def attach_nic(self, vm: str, nic: NicDevice) -> None:
        check_item("nic", nic.nic)

        def attach(domain: Any, view: DomainView) -> None:
            if nic.nic not in view.nics:
                element = ET.tostring(nic_element(nic), encoding="unicode")
                domain.attachDeviceFlags(element, libvirt.VIR_DOMAIN_AFFECT_LIVE)

        await self._with_running(f"attach nic {nic.nic} to {vm}", vm, attach)

    async def detach_nic(self, vm: str, nic: str) -> None:
        await self._detach(vm, nic, f"detach nic {nic} from {vm}", lambda view: nic in view.nics)

    async def set_cpus(self, vm: str, cpus: int) -> bool:
        def change(domain: Any, view: DomainView) -> bool:
            if cpus == view.cpus:
                return True
            if not view.cpus < cpus <= view.max_cpus:
                return False
            domain.setVcpusFlags(cpus, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            return True

        return await self._with_running(f"give {vm} {cpus} CPUs", vm, change)

    async def set_memory(self, vm: str, memory_mib: int) -> bool:
        def change(domain: Any, view: DomainView) -> bool:
            more = memory_mib - view.memory_mib
            if more == 0:
                return True
            if more < 0 or more % DIMM_STEP_MIB or memory_mib > view.max_memory_mib or view.dimms >= DIMM_SLOTS:
                return False
            element = ET.tostring(dimm_element(more), encoding="unicode")
            domain.attachDeviceFlags(element, libvirt.VIR_DOMAIN_AFFECT_LIVE)
            return True

        return await self._with_running(f"give {vm} {memory_mib} MiB", vm, change)

    async def prepare_move(self, spec: DomainSpec) -> None:
        def prepare(connection: Any) -> None:
            if _lookup(connection, spec.vm) is not None:
                raise CloudError(ErrorKind.CONFLICT, f"{spec.vm} is here already")
            spec.console_log.parent.mkdir(parents=True, exist_ok=True)
            spec.console_socket.parent.mkdir(parents=True, exist_ok=True)
            self._secrets.need(connection, spec.disks)

        await self._connection.call(f"prepare for {spec.vm}", prepare)

    async def move(self, vm: str, spec: DomainSpec, route: MoveRoute, options: MoveOptions, gone: Gone) -> None:
        name = await self._with_running(f"move {vm}", vm, lambda domain, view: str(domain.name()))
        begun = False

        def go(domain: Any, view: DomainView) -> None:
            nonlocal begun
            if begun:  # the daemon was away in the middle: how it ended is for the caller to find out
                raise CloudError(ErrorKind.UNAVAILABLE, f"move {vm}: libvirtd went away in the middle")
            begun = True
            migrate(domain, spec, route, options)

        moving = asyncio.create_task(
            self._with_running(f"move {vm}", vm, go, MOVE_TIMEOUT_S), name=f"libvirt moves {vm}"
        )
        given_up = asyncio.create_task(Farewell(self._log_dir / f"{name}.log").said(), name=f"farewell of {vm}")
        try:
            await asyncio.wait({moving, given_up}, return_when=asyncio.FIRST_COMPLETED)
            if early := not moving.done():
                await given_up
                await gone()
            await moving
            if not early:
                await gone()
        finally:
            for task in (moving, given_up):
                task.cancel()
            await asyncio.gather(moving, given_up, return_exceptions=True)

    async def move_progress(self, vm: str) -> MoveProgress | None:
        return await self._with(f"ask how far {vm} has moved", vm, progress_of)

    async def cancel_move(self, vm: str) -> None:
        await self._with(f"stop moving {vm}", vm, cancel)

    async def switch_to_postcopy(self, vm: str) -> None:
        await self._with(f"switch {vm} to post-copy", vm, lambda domain: domain.migrateStartPostCopy(0))

    async def resume(self, vm: str) -> None:
        await self._with(f"resume {vm}", vm, resume)

    async def figures(self) -> list[DomainFigures]:
        def ask(connection: Any) -> list[DomainFigures]:
            flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
            rows = connection.getAllDomainStats(_STATS, flags)
            return [_figures(domain.name(), stats) for domain, stats in rows if _is_ours(domain)]

        return await self._connection.call("read figures", ask)

    async def events(self) -> AsyncIterator[DomainEvent]:
        queue: asyncio.Queue[DomainEvent] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            self._connection.need()
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)

    async def close(self) -> None:
        await self._connection.close()

    async def _with(
        self, doing: str, vm: str, function: Callable[[Any], Result], timeout_s: float | None = None
    ) -> Result:
        def ask(connection: Any) -> Result:
            domain = _lookup(connection, vm)
            if domain is None:
                raise CloudError(ErrorKind.NOT_FOUND, f"there is no domain of {vm} on this node")
            return function(domain)

        return await self._connection.call(doing, ask, timeout_s)

    async def _with_running(
        self, doing: str, vm: str, function: Callable[[Any, DomainView], Result], timeout_s: float | None = None
    ) -> Result:
        def ask(domain: Any) -> Result:
            if not domain.isActive():
                raise CloudError(ErrorKind.CONFLICT, f"{doing}: it is not running")
            view = view_of(domain.XMLDesc())
            if view is None:
                raise CloudError(ErrorKind.NOT_FOUND, f"the domain of {vm} has lost its stamp")
            return function(domain, view)

        return await self._with(doing, vm, ask, timeout_s)

    async def _detach(self, vm: str, item: str, doing: str, present: Callable[[DomainView], bool]) -> None:
        check_item("device", item)

        def ask(domain: Any, view: DomainView) -> bool:
            if not present(view):
                return False
            try:
                domain.detachDeviceAlias(alias_of(item), libvirt.VIR_DOMAIN_AFFECT_LIVE)
            except libvirt.libvirtError as error:
                if error.get_error_code() == libvirt.VIR_ERR_DEVICE_MISSING:
                    return False
                if "in the process of unplug" not in (error.get_error_message() or ""):
                    raise
            return True

        gone = self._removals.expect(vm, item)
        try:
            async with asyncio.timeout(DETACH_TIMEOUT_S):
                while await self._with_running(doing, vm, ask):
                    try:
                        async with asyncio.timeout(DETACH_AGAIN_S):
                            await gone.wait()
                            return
                    except TimeoutError:
                        continue
        except TimeoutError:
            raise CloudError(
                ErrorKind.TIMED_OUT, f"{doing}: the guest did not let go of it within {DETACH_TIMEOUT_S:g} s"
            ) from None
        finally:
            self._removals.forget(vm, item, gone)

    def _facts(self, domain: Any) -> DomainFacts | None:
        try:
            view = view_of(domain.XMLDesc())
            state, reason = domain.state()
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None  # undefined since it was listed
            raise
        if view is None:
            return None
        off = state in (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_CRASHED)
        return DomainFacts(
            vm=view.vm,
            running=not off,
            paused=state in _PAUSED,
            complete=state == libvirt.VIR_DOMAIN_PAUSED and reason == libvirt.VIR_DOMAIN_PAUSED_USER,
            moving=state == libvirt.VIR_DOMAIN_PAUSED and reason in PAUSED_BY_MOVE,
            halved=halved(state, reason),
            off_reason=_OFF_BY_STATE.get(reason, "unknown") if off else "unknown",
            cpus=view.cpus,
            memory_mib=view.memory_mib,
            disks=tuple(view.disks),
            nics=view.nics,
            pid=None if off else self._pid(domain.name()),
        )

    def _pid(self, name: str) -> int | None:
        try:
            return int((self._state_dir / f"{name}.pid").read_text())
        except (OSError, ValueError):
            return None

    def _process(self, name: str) -> Identity | None:
        pid = self._pid(name)
        return None if pid is None else Identity.of(pid)

    @staticmethod
    def _kill(process: Identity | None) -> None:
        if process is not None:
            with process.opened() as fd, suppress(ProcessLookupError):
                if fd is not None:
                    signal.pidfd_send_signal(fd, signal.SIGKILL)

    def _register(self, connection: Any) -> None:
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._on_lifecycle, None)
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._on_reboot, None)
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, self._on_removed, None)

    # The three below run in libvirt's event thread, where libvirt must not be asked anything.

    def _on_lifecycle(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: Any) -> None:
        if not _is_ours(domain):
            return
        if event == libvirt.VIR_DOMAIN_EVENT_STARTED:
            self._from_thread(self._publish, DomainEvent(kind="started", vm=domain.name()))
        elif event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            reason = _OFF_BY_EVENT.get(detail, "unknown")
            self._from_thread(self._publish, DomainEvent(kind="stopped", vm=domain.name(), off_reason=reason))

    def _on_reboot(self, _connection: Any, domain: Any, _opaque: Any) -> None:
        if _is_ours(domain):
            self._from_thread(self._publish_reboot, domain.name())

    def _on_removed(self, _connection: Any, domain: Any, alias: str, _opaque: Any) -> None:
        item = item_of(alias)
        if item is not None and _is_ours(domain):
            self._from_thread(self._removals.happened, domain.name(), item)

    def _from_thread(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            pass  # the event loop has ended: nobody is left to tell

    def _on_returned(self) -> None:
        self._publish(DomainEvent(kind="reconnected"))

    def _publish_reboot(self, vm: str) -> None:
        """SeaBIOS answers a reset by resetting once more: both are one reboot."""
        now = self._loop.time()
        if now - self._rebooted_at.get(vm, -REBOOT_ONCE_S) >= REBOOT_ONCE_S:
            self._publish(DomainEvent(kind="rebooted", vm=vm))
        self._rebooted_at[vm] = now

    def _publish(self, event: DomainEvent) -> None:
        if event.kind == "stopped" and event.vm is not None:
            self._rebooted_at.pop(event.vm, None)
        for queue in self._listeners:
            queue.put_nowait(event)


def _is_ours(domain: Any) -> bool:
    """Told from name and UUID, which libvirt's library knows without asking the daemon."""
    return bool(domain.UUIDString() == domain_uuid(domain.name()))


def _lookup(connection: Any, vm: str) -> Any:
    """The VM's domain, or None. One with our UUID but another's stamp is an error, not ours."""
    try:
        domain = connection.lookupByUUIDString(domain_uuid(vm))
        view = view_of(domain.XMLDesc())
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise
    if view is None or view.vm != vm:
        raise CloudError(ErrorKind.CONFLICT, f"the domain {domain.name()} has the UUID of {vm} but not its stamp")
    return domain


def _disk_mode(disk: DiskSource) -> DiskMode:
    """Look at the source: tmpfs, for one, knows no O_DIRECT. `CloudError(ENGINE)` if it cannot be opened."""
    if isinstance(disk.place, RbdPlace):
        return DiskMode(block=False, direct=False)
    path = disk.place.path
    try:
        block = stat.S_ISBLK(path.stat().st_mode)
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
            direct = True
        except OSError:
            os.close(os.open(path, os.O_RDONLY))
            direct = False
    except OSError as error:
        raise CloudError(ErrorKind.ENGINE, f"disk {disk.disk} at {path}: {error.strerror}") from error
    return DiskMode(block=block, direct=direct)


def _disk_figures(disk: str, stats: dict[str, int]) -> DiskFigures:
    return DiskFigures(
        disk=disk,
        reads=stats.get("rd_operations", 0),
        writes=stats.get("wr_operations", 0),
        read_bytes=stats.get("rd_bytes", 0),
        written_bytes=stats.get("wr_bytes", 0),
        read_ns=stats.get("rd_total_times", 0),
        write_ns=stats.get("wr_total_times", 0),
        flush_ns=stats.get("flush_total_times", 0),
    )


def _figures(vm: str, stats: dict[str, int]) -> DomainFigures:
    def mib(name: str) -> int | None:
        return stats[name] // 1024 if name in stats else None

    available, usable = mib("balloon.available"), mib("balloon.usable")
    return DomainFigures(
        vm=vm,
        cpu_seconds=stats.get("cpu.time", 0) / 1e9,
        cpus=stats.get("vcpu.current", 0),
        memory_mib=mib("balloon.maximum") or 0,  # "current" does not count DIMMs that were plugged in
        memory_used_mib=available - usable if available is not None and usable is not None else None,
        resident_mib=mib("balloon.rss"),
    )
