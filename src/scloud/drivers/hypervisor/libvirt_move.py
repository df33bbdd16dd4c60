"""Live migration in libvirt's words: peer to peer, over UNIX sockets. All of it runs in threads.

The source's libvirtd speaks to the target's through `route.control`, and QEMU to QEMU through `route.memory` and, for
disks that are copied, NBD through `route.disks`: none has an open port. https://libvirt.org/migration.html#migration-over-unix-sockets
"""

from __future__ import annotations

from typing import Any

import libvirt

from scloud.drivers.hypervisor.domain_xml import moved_xml, view_of
from scloud.drivers.hypervisor.protocol import DomainSpec, MoveOptions, MoveRoute
from scloud.model.migrations import MoveProgress

MOVE_TIMEOUT_S = 7 * 86400.0
"""The caller ends a migration by cancelling it, not by giving up on the call."""
PAUSED_BY_MOVE = frozenset({libvirt.VIR_DOMAIN_PAUSED_MIGRATION, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP})
_HALVED = frozenset(
    {
        # At the source the guest has been let run at the target, whatever came of that.
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY),
        (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED),
        # At the target it stands still at the next page that has not come.
        (libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED),
    }
)
_MIB = 1024 * 1024


def migrate(domain: Any, spec: DomainSpec, route: MoveRoute, options: MoveOptions) -> None:
    """Returns when it is at the target and gone here."""
    here = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE)
    xml = moved_xml(here, spec)
    flags = (
        libvirt.VIR_MIGRATE_LIVE
        | libvirt.VIR_MIGRATE_PEER2PEER
        | libvirt.VIR_MIGRATE_PERSIST_DEST
        | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    )
    # libvirt lets the source run again when the target's last answer is lost. So the target does not run by itself:
    # who has seen that the source is gone lets it. Post-copy runs there first, by its nature; libvirt refuses both.
    if options.stuck != "post-copy":
        flags |= libvirt.VIR_MIGRATE_PAUSED
    if options.stuck == "auto-converge":
        flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
    elif options.stuck == "post-copy":
        flags |= libvirt.VIR_MIGRATE_POSTCOPY
    parameters: dict[str, Any] = {
        libvirt.VIR_MIGRATE_PARAM_URI: f"unix://{route.memory}",
        libvirt.VIR_MIGRATE_PARAM_DEST_XML: xml,
        libvirt.VIR_MIGRATE_PARAM_PERSIST_XML: xml,
    }
    view = view_of(here)
    if options.copies and view is not None:
        flags |= libvirt.VIR_MIGRATE_NON_SHARED_DISK
        parameters[libvirt.VIR_MIGRATE_PARAM_DISKS_URI] = f"unix://{route.disks}"
        copied = [target for disk, target in view.disks.items() if disk in options.copies]
        parameters[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = copied
    if options.bandwidth_mib_s:
        parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = options.bandwidth_mib_s
    domain.migrateSetMaxDowntime(options.downtime_ms)
    domain.migrateToURI3(f"qemu+unix:///system?socket={route.control}", parameters, flags)


def halved(state: int, reason: int) -> bool:
    """Whether part of the guest's memory is at another node, and the guest may not run on here."""
    return (state, reason) in _HALVED


def progress_of(domain: Any) -> MoveProgress | None:
    """None if no migration is under way."""
    try:
        stats = domain.jobStats()
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN):
            return None
        raise
    if stats.get("type", libvirt.VIR_DOMAIN_JOB_NONE) == libvirt.VIR_DOMAIN_JOB_NONE:
        return None
    page = stats.get("memory_page_size", 4096)
    return MoveProgress(
        iteration=stats.get("memory_iteration", 0),
        total_mib=(stats.get("memory_total", 0) + stats.get("disk_total", 0)) // _MIB,
        remaining_mib=(stats.get("memory_remaining", 0) + stats.get("disk_remaining", 0)) // _MIB,
        rate_mib_s=stats.get("memory_bps", 0) // _MIB,
        dirty_mib_s=stats.get("memory_dirty_rate", 0) * page // _MIB,
        downtime_ms=stats.get("downtime"),
    )


def cancel(domain: Any) -> None:
    try:
        domain.abortJob()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
            raise  # else there is nothing to cancel


def resume(domain: Any) -> None:
    state, _ = domain.state()
    if state == libvirt.VIR_DOMAIN_PAUSED:
        domain.resume()
