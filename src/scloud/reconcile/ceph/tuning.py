"""Settings of a deployed cluster: what gives way to what, when it scrubs, which hosts may be away. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from scloud.model.storage import Device, RecoveryProfile, StorageClusterSpec
from scloud.reconcile.ceph.commands import Command, mon
from scloud.reconcile.ceph.view import View

DAY = 86400
# (backfills at a time, recoveries at a time, pause in seconds between, priority against clients' 63), each OSD's.
_PACE: dict[RecoveryProfile, tuple[str, str, str, str]] = {
    RecoveryProfile.CLIENT: ("1", "1", "0.02", "1"),
    RecoveryProfile.BALANCED: ("2", "3", "0.0", "3"),
    RecoveryProfile.RECOVERY: ("8", "10", "0.0", "40"),
}


# How long others wait for a daemon that is gone without a word. Clients' writes wait with them.
_PATIENCE: dict[tuple[str, str], str] = {
    # Seconds in which changes of the maps are gathered. A dead primary takes two in a row: that it is dead, and that
    # its successor is at work.
    ("mon", "paxos_propose_interval"): "0.25",
    # Seconds. No map changes until monitors have missed one of theirs for twice as long, and elected anew.
    ("mon", "mon_lease"): "2",
    # Seconds. Whoever spoke to a monitor that is gone learns of no new map until it has noticed: else 30.
    ("global", "mon_client_ping_interval"): "2",
    ("global", "mon_client_ping_timeout"): "6",
}


def reporters(devices: Iterable[Device]) -> tuple[str, int]:
    """Who has to say of an OSD that hangs or is cut off that it is gone: so many different `host`s, or `osd`s.

    Two hosts, so that one with a broken network calls nobody dead. With fewer than three hosts there are no two others:
    then two OSDs, or the one that is left when all of the host that has the most are gone. Whom nobody may call dead,
    clients wait for.
    """
    counts = Counter(device.node for device in devices if not device.out)
    if len(counts) > 2:
        return "host", 2
    left = min(counts.values()) if len(counts) == 2 else counts.total() - 1
    return "osd", max(1, min(2, left))


def settings(spec: StorageClusterSpec) -> dict[tuple[str, str], str]:
    """(section, name) to value."""
    backfills, active, pause, priority = _PACE[spec.recovery_profile]
    deep = spec.deep_scrub_days * DAY
    level, enough = reporters(spec.devices)
    return {
        **_PATIENCE,
        ("osd", "osd_max_backfills"): backfills,
        ("osd", "osd_recovery_max_active"): active,
        ("osd", "osd_recovery_sleep_hdd"): pause,
        ("osd", "osd_recovery_sleep_ssd"): pause,
        ("osd", "osd_recovery_sleep_hybrid"): pause,
        ("osd", "osd_recovery_op_priority"): priority,
        ("osd", "osd_scrub_begin_hour"): str(spec.scrub_begin_hour),
        ("osd", "osd_scrub_end_hour"): str(spec.scrub_end_hour % 24),
        ("osd", "osd_deep_scrub_interval"): str(float(deep)),
        ("osd", "osd_scrub_max_interval"): str(float(max(deep, 2 * DAY))),
        ("mon", "mon_osd_reporter_subtree_level"): level,
        ("mon", "mon_osd_min_down_reporters"): str(enough),
        ("mon", "mon_warn_on_pool_no_redundancy"): "false",
        ("global", "osd_pool_default_pg_autoscale_mode"): "off",
        # Else the manager makes a pool of three copies for SMART data, never healthy on fewer than three hosts.
        ("mgr", "mgr/devicehealth/enable_monitoring"): "false",
    }


def _same(have: str, want: str) -> bool:
    """Monitors write numbers in their own way."""
    try:
        return abs(float(have) - float(want)) < 1e-6
    except ValueError:
        return have == want


def _unknown(name: str) -> dict[str, Any]:
    """Monitors know the options of the manager's modules only once there is a manager."""
    return {"force": True} if name.startswith("mgr/") else {}


def plan_settings(spec: StorageClusterSpec, present: Mapping[tuple[str, str], str]) -> list[Command]:
    return [
        mon(
            f"set {name} to {value}",
            "config set",
            beside="settings",
            who=section,
            name=name,
            value=value,
            **_unknown(name),
        )
        for (section, name), value in settings(spec).items()
        if not _same(present.get((section, name), ""), value)
    ]


def plan_noout(hosts: Mapping[str, bool], view: View) -> list[Command]:
    """`hosts`: whether each host's OSDs are to stay in while they are down. A host without OSDs has no flag."""
    steps = []
    for host, on in sorted(hosts.items()):
        if on and host not in view.noout and host in view.hosts:
            steps.append(mon(f"maintenance of {host} begins", "osd set-group", flags="noout", who=[host]))
        elif not on and host in view.noout:
            steps.append(mon(f"maintenance of {host} ends", "osd unset-group", flags="noout", who=[host]))
    return steps
