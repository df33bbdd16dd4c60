"""What the look at a cluster changes in what is wanted of it: devices that are empty, nodes that have let go, requests
that are fulfilled."""

from __future__ import annotations

import json
from collections.abc import Mapping

from scloud.controllers.storage import rows
from scloud.controllers.storage.load import Load
from scloud.controllers.storage.look import Look
from scloud.controllers.storage.members import lasting_monitors, with_monitors
from scloud.controllers.storage.planning import taken
from scloud.controllers.storage.render import store_id
from scloud.model.observed import Observed
from scloud.model.storage import Device, StorageClusterSpec
from scloud.reconcile.ceph import devices
from scloud.reconcile.ceph.view import View
from scloud.store import operations, secrets
from scloud.store.database import Tx
from scloud.store.resources import unrefer

Reports = Mapping[str, Observed]
"""By key, `store/CLUSTER.NODE`: what agents last said."""


def told(reports: Reports, load: Load, node: str) -> Observed | None:
    """What a node last said of its part, if it was of what is wanted now."""
    said = reports.get(f"store/{store_id(load.row.id, node)}")
    return said if said is not None and said.generation >= load.row.generation else None


def let_go(reports: Reports, load: Load, node: str) -> bool:
    """Whether nothing of the cluster is left on a node; of one that is no longer in the cloud nothing is expected."""
    if node not in load.sites:
        return True
    said = told(reports, load, node)
    return said is not None and said.settled and said.state == "absent"


def spec_after(tx: Tx, load: Load, look: Look, reports: Reports, scrubbed: frozenset[str]) -> StorageClusterSpec:
    """The spec with what has come to its end taken out of it."""
    spec = _monitors(load, look)
    left = _devices(tx, load, look, reports)
    busy = {device.node for device in left} | set(spec.monitors) | set(spec.managers)
    gone = {node for node in spec.leaving if node not in busy and let_go(reports, load, node)}
    for node in gone:
        unrefer(tx, load.row.id, node, "store")
    repairs = tuple(group for group in spec.repairs if _unrepaired(group, look))
    return spec.model_copy(
        update={
            "devices": left,
            "nodes": tuple(node for node in spec.nodes if node not in gone),
            "leaving": tuple(node for node in spec.leaving if node not in gone),
            "maintenance": tuple(node for node in spec.maintenance if node not in gone),
            "repairs": repairs,
            "scrubs": tuple(name for name in spec.scrubs if name not in scrubbed and name in look.view.pools),
        }
    )


def _monitors(load: Load, look: Look) -> StorageClusterSpec:
    """Those that have left the cluster's map can be stopped."""
    spec = load.spec
    lasting = lasting_monitors(spec, load.sites) if load.deployed else list(spec.monitors)
    if len(lasting) == len(spec.monitors) or not set(load.names(tuple(lasting))) <= set(look.view.quorum):
        return spec
    left = [
        node
        for node in spec.monitors
        if node in lasting or (node in load.sites and load.sites[node].name in look.view.monitors)
    ]
    return with_monitors(spec, left, load.sites)


def _unrepaired(group: str, look: Look) -> bool:
    """While nobody says which groups are inconsistent, none counts as repaired."""
    return look.inconsistent is None or group in look.inconsistent


def _devices(tx: Tx, load: Load, look: Look, reports: Reports) -> tuple[Device, ...]:
    kept = []
    in_place = load.in_place(look.view)
    for device in load.spec.devices:
        osd = look.view.osd(device.uuid)
        if not device.out:
            kept.append(device)
        elif not device.drained:
            # One that the cluster has never heard of has nothing on it.
            if device.uuid in in_place:
                empty = devices.expendable(device, load.spec.devices, look.view)
                why = "can be done without, and cannot be drained"
            else:
                empty = osd is None or (not osd.taken_in and osd.number in look.safe)
                why = "is empty"
            if empty:
                what = f"osd.{osd.number}" if osd is not None else device.path
                operations.record(tx, load.row, "info", f"{what} {why}; its device is wiped")
            kept.append(device.model_copy(update={"drained": True}) if empty else device)
        elif osd is not None or not _wiped(reports, load, device):
            kept.append(device)
        else:
            secrets.forget(tx, load.row.id, rows.osd_secret(device.uuid))
            if device.replace_path is not None:
                kept.append(_successor(tx, load, device))
    return tuple(kept)


def _wiped(reports: Reports, load: Load, device: Device) -> bool:
    if device.node not in load.sites:
        return True
    said = told(reports, load, device.node)
    return said is not None and said.settled and device.uuid not in (said.osds or {})


def _successor(tx: Tx, load: Load, device: Device) -> Device:
    """A new, empty OSD where the old one was."""
    uuid = secrets.uuid4(tx)
    secrets.put(tx, load.row.id, rows.osd_secret(uuid), secrets.cephx_key(tx))
    fresh = {
        "uuid": uuid,
        "path": device.replace_path,
        "out": False,
        "drained": False,
        "replace_path": None,
        "crowded": False,
    }
    return device.model_copy(update=fresh)


def grant(tx: Tx, load: Load, look: Look) -> bool:
    """Note which nodes' keys the cluster has, and what they reach; True if that changes what nodes are told."""
    changed = False
    known, names = look.slow.auth, load.pool_names
    for node, entity in load.clients().items():
        have = known.get(entity.name)
        if have is None or dict(have[1]) != dict(entity.caps):
            continue
        if have[0] != entity.key:
            # Somebody has made it before: a key that is in use stays.
            name = entity.name.removeprefix("client.")
            secrets.put(tx, load.row.id, rows.client_secret(node), f"{name}:{have[0]}")
            changed = True
        if rows.granted(load.secrets, node) != tuple(names):
            secrets.put(tx, load.row.id, rows.granted_secret(node), json.dumps(names))
            changed = True
    others = taken(load, look)
    for node, name in load.former_clients().items():
        if (name not in known or name in others) and node not in load.sites:
            secrets.forget(tx, load.row.id, rows.client_secret(node))
            secrets.forget(tx, load.row.id, rows.granted_secret(node))
    for name in load.secrets:
        kind, _, node = name.partition("/")
        if kind == "mgr" and node not in load.spec.managers:
            secrets.forget(tx, load.row.id, name)
    return changed


def waits_for(load: Load, view: View, reports: Reports) -> str:
    """What a deployed cluster is not ready for want of, in words; empty if it is."""
    lasting = tuple(lasting_monitors(load.spec, load.sites))
    missing = sorted(set(load.names(lasting)) - set(view.quorum))
    if missing:
        return f"waiting for monitors on {', '.join(missing)}"
    if not view.manager:
        return "waiting for a manager"
    absent = []
    for device in load.spec.devices:
        osd = view.osd(device.uuid)
        # One that has not said yet how large it is would be missing in the capacity.
        if not device.out and (osd is None or not osd.up or not osd.taken_in or not osd.total_kib):
            site = load.sites.get(device.node)
            absent.append(f"{site.name if site else device.node}:{device.path}")
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        return f"waiting for devices {', '.join(absent[:3])}{more}{troubles(load, reports)}"
    return ""


def troubles(load: Load, reports: Reports) -> str:
    """What agents say that keeps them."""
    said = []
    for node, site in load.sites.items():
        report = reports.get(f"store/{store_id(load.row.id, node)}")
        if report is not None and report.state in ("error", "working") and report.reason:
            said.append(f"{site.name}: {report.reason}")
    return f" ({'; '.join(said[:3])})" if said else ""


def broken(load: Load, reports: Reports) -> dict[str, str]:
    """By node: why its agent has tried several times in vain to do what is wanted now."""
    said = {node: told(reports, load, node) for node in load.sites}
    return {node: report.reason for node, report in said.items() if report is not None and report.state == "error"}
