"""Growing, shrinking and mending a storage cluster: devices, nodes, maintenance, repairs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from scloud.api.context import accepted, begin, begin_and_end
from scloud.api.intents.common import resolve, resolve_node
from scloud.api.intents.storage import cluster_of, join, make_devices, need_deployed, ready_site
from scloud.api.storage_schemas import DeviceAsk, DeviceReplace, RepairAsk, ScrubAsk
from scloud.controllers.storage import members, rows
from scloud.model.errors import CloudError, ErrorKind, invalid
from scloud.model.kinds import Kind
from scloud.model.storage import Device, PoolSpec, StorageClusterSpec, StorageClusterStatus, copies_of
from scloud.reconcile.ceph import layout
from scloud.reconcile.ceph.removal import no_room, refusal
from scloud.store import secrets
from scloud.store.database import Tx
from scloud.store.operations import Operation
from scloud.store.resources import SYSTEM, Resource, save

Answer = dict[str, Any]


def add_device(tx: Tx, ref: str, ask: DeviceAsk) -> Answer:
    row, spec = cluster_of(tx, ref)
    need_deployed(row, spec)
    ready_site(tx, "node", ask.node)
    op = begin(tx, "storage-cluster.device-add", row)
    made = make_devices(tx, [ask], rows.sites_of(tx, spec.nodes), spec.devices, field="", operation=op.id)
    if any(device.node in spec.leaving for device in made):
        raise CloudError(ErrorKind.CONFLICT, f"node '{ask.node}' is being taken out of cluster '{row.name}'")
    for device in made:
        secrets.put(tx, row.id, rows.osd_secret(device.uuid), secrets.cephx_key(tx))
    return accepted(op, save(tx, row, spec=spec.model_copy(update={"devices": (*spec.devices, *made)})))


def device_named(tx: Tx, row: Resource, spec: StorageClusterSpec, text: str) -> Device:
    """By the OSD's number, its uuid, or NODE:PATH."""
    numbers = {osd.uuid: osd.osd for osd in row.status_as(StorageClusterStatus).osds}
    sites = rows.sites_of(tx, spec.nodes)
    number = text.removeprefix("osd.")
    for device in spec.devices:
        names = {device.uuid, f"{device.node}:{device.path}"}
        if device.node in sites:
            names.add(f"{sites[device.node].name}:{device.path}")
        if device.uuid in numbers:
            names.add(str(numbers[device.uuid]))
        if text in names or number in names:
            return device
    raise invalid("device", f"names no device of cluster '{row.name}': '{text}'; see `scloud storage-cluster show`")


def _swap(devices: Iterable[Device], changed: Iterable[Device]) -> tuple[Device, ...]:
    by_uuid = {device.uuid: device for device in changed}
    return tuple(by_uuid.get(device.uuid, device) for device in devices)


def remove_device(tx: Tx, ref: str, text: str) -> Answer:
    """Drain it, then forget it."""
    row, spec = cluster_of(tx, ref)
    need_deployed(row, spec)
    device = device_named(tx, row, spec, text)
    if device.out and device.replace_path is None:
        return accepted(begin_and_end(tx, "storage-cluster.device-remove", row, "it is being removed already"), row)
    _check(tx, row, spec, [device])
    op = begin(tx, "storage-cluster.device-remove", row)
    return _leave(tx, op, row, spec, [device])


def _check(tx: Tx, row: Resource, spec: StorageClusterSpec, leaving: list[Device]) -> None:
    """CONFLICT or NO_CAPACITY, with the reason, if the pools could not do without these devices."""
    uuids = {device.uuid for device in leaving}
    rest = spec.model_copy(update={"devices": tuple(d for d in spec.devices if d.uuid not in uuids)})
    kept = rows.in_place(tx, row, spec)
    have = [device.model_copy(update={"out": False}) if device.uuid in kept else device for device in spec.devices]
    refused = refusal(
        row.name,
        _pools(tx, row),
        rows.spots_of(tx, row, spec.model_copy(update={"devices": tuple(have)})),
        rows.spots_of(tx, row, rest),
        _filled(row, spec),
        uuids,
        _going(tx, row, spec),
    )
    if refused is not None:
        raise refused


def _pools(tx: Tx, row: Resource) -> list[tuple[str, PoolSpec]]:
    return [(pool.row.name, pool.spec) for pool in rows.pools_of(tx, row.id) if not pool.leaving]


def _filled(row: Resource, spec: StorageClusterSpec) -> StorageClusterStatus:
    """What the cluster told, without the devices that nothing is on any more."""
    status = row.status_as(StorageClusterStatus)
    wiped = {device.uuid for device in spec.devices if device.drained}
    return status.model_copy(update={"osds": tuple(osd for osd in status.osds if osd.uuid not in wiped)})


def _with(row: Resource, spec: StorageClusterSpec, device: Device) -> StorageClusterStatus:
    """The same, as if the device were in: a dead one is taken out after some minutes, and its data need room still."""
    status = _filled(row, spec)
    osds = [osd.model_copy(update={"taken_in": True}) if osd.uuid == device.uuid else osd for osd in status.osds]
    return status.model_copy(update={"osds": tuple(osds)})


def _going(tx: Tx, row: Resource, spec: StorageClusterSpec) -> set[str]:
    """Devices that are being drained. One that is replaced in place keeps what it has until it is filled anew."""
    out = {device.uuid for device in spec.devices if device.out and not device.drained}
    return out - rows.in_place(tx, row, spec)


def _leave(tx: Tx, op: Operation, row: Resource, spec: StorageClusterSpec, leaving: list[Device]) -> Answer:
    members.take_over(tx, row.id, leaving, f"replaced by {op.action}")
    update = {"out": True, "replace_path": None, "crowded": False, "operation": op.id}
    changed = [device.model_copy(update=update) for device in leaving]
    return accepted(op, save(tx, row, spec=spec.model_copy(update={"devices": _swap(spec.devices, changed)})))


def keep_device(tx: Tx, ref: str, text: str) -> Answer:
    """Take back a removal that has not come to its end."""
    row, spec = cluster_of(tx, ref)
    need_deployed(row, spec)
    device = device_named(tx, row, spec, text)
    if not device.out:
        return accepted(begin_and_end(tx, "storage-cluster.device-keep", row, "it is not being removed"), row)
    if device.drained:
        raise CloudError(ErrorKind.CONFLICT, f"device {text} is empty and being wiped; add it anew when it is gone")
    op = begin(tx, "storage-cluster.device-keep", row)
    kept = device.model_copy(update={"out": False, "replace_path": None, "crowded": False, "operation": op.id})
    left = [other for other in spec.devices if other.node == device.node and other.out and other.uuid != device.uuid]
    more = "; the other devices of its node go on being removed until they are kept, too" if left else ""
    stays = f", and its node stays{more}" if device.node in spec.leaving else ""
    members.take_over(tx, row.id, [device], f"taken back: the device is kept{stays}")
    leaving = tuple(node for node in spec.leaving if node != device.node)
    update = {"devices": _swap(spec.devices, [kept]), "leaving": leaving}
    return accepted(op, save(tx, row, spec=spec.model_copy(update=update)))


def replace_device(tx: Tx, ref: str, ask: DeviceReplace) -> Answer:
    """Drain it as far as it can be read, forget it, and begin anew with an empty one in its place.

    Nothing is refused for want of fault domains: the new device is to be where the old one was, and if the data have no
    other place to go, it is filled from the other copies, which takes no room. What is drained first needs room; from
    one that is dead nothing can be, and its data wait for the new one if they have none: when it is asked for, by what
    is known of it (`Device.crowded`), and later by what the cluster finds (`devices.crowded_out`).
    """
    row, spec = cluster_of(tx, ref)
    need_deployed(row, spec)
    device = device_named(tx, row, spec, ask.device)
    if device.node in spec.leaving:
        raise CloudError(ErrorKind.CONFLICT, "its node is being taken out of the cluster; the device goes with it")
    path = ask.path or device.path
    if any(other.node == device.node and other.path == path and other.uuid != device.uuid for other in spec.devices):
        raise invalid("path", f"is another device of this cluster: {path}")
    changed = device.model_copy(update={"out": True, "replace_path": path, "crowded": False})
    after = spec.model_copy(update={"devices": _swap(spec.devices, [changed])})
    alive = device.uuid not in rows.dead(row.status_as(StorageClusterStatus))
    if device.uuid in rows.in_place(tx, row, after):
        if alive:
            _refuse_losing(tx, row, device)
    else:
        refused = no_room(row.name, _pools(tx, row), _with(row, spec, device), {device.uuid}, _going(tx, row, spec))
        if refused is not None and (alive or _single(tx, row, device)):
            raise refused
        changed = changed.model_copy(update={"crowded": refused is not None})
    op = begin(tx, "storage-cluster.device-replace", row)
    members.take_over(tx, row.id, [device], f"replaced by {op.action}")
    changed = changed.model_copy(update={"operation": op.id})
    return accepted(op, save(tx, row, spec=spec.model_copy(update={"devices": _swap(spec.devices, [changed])})))


def _refuse_losing(tx: Tx, row: Resource, device: Device) -> None:
    """CONFLICT if a device that lives and cannot be drained has the only copy of something."""
    if name := _single(tx, row, device):
        raise CloudError(
            ErrorKind.CONFLICT,
            f"pool '{name}' has one copy of everything, and what this device has of it has no other place to go: "
            "it would be lost; add a device to another host first, or move the disks to a pool of more copies "
            "(`scloud disk move`)",
        )


def _single(tx: Tx, row: Resource, device: Device) -> str:
    """The name of a pool of one copy that may have it on the device; empty if there is none."""
    for name, pool in _pools(tx, row):
        if copies_of(pool.redundancy)[1] == 0 and pool.media in (None, device.media):
            return name
    return ""


def add_node(tx: Tx, ref: str, node: str) -> Answer:
    row, spec = cluster_of(tx, ref)
    site = ready_site(tx, "node", node)
    if site.id in spec.leaving:
        raise CloudError(
            ErrorKind.CONFLICT, f"node '{site.name}' is being taken out of cluster '{row.name}'; wait for its end"
        )
    if site.id in spec.nodes:
        return accepted(begin_and_end(tx, "storage-cluster.node-add", row, "it is in the cluster already"), row)
    objection = layout.misplaced([*rows.sites_of(tx, spec.nodes).values(), site]) if spec.mode == "deployed" else ""
    if objection:
        raise CloudError(ErrorKind.CONFLICT, f"the nodes' labels do not fit: {objection}")
    join(tx, row.id, site)
    spec = spec.model_copy(update={"nodes": (*spec.nodes, site.id)})
    spec = members.staffed(tx, row.id, spec)
    row = save(tx, row, spec=spec)
    return accepted(begin(tx, "storage-cluster.node-add", row), row)


def remove_node(tx: Tx, ref: str, node: str) -> Answer:
    """Its devices are drained first, its monitor and manager move to another node."""
    row, spec = cluster_of(tx, ref)
    found = resolve_node(tx, "node", node)
    if found.id not in spec.nodes:
        raise invalid("node", f"is not in cluster '{row.name}': '{node}'")
    if found.id in spec.leaving:
        return accepted(begin_and_end(tx, "storage-cluster.node-remove", row, "it is being taken out already"), row)
    if spec.mode == "deployed" and len(set(spec.nodes) - set(spec.leaving)) == 1:
        raise CloudError(
            ErrorKind.CONFLICT, f"node '{found.name}' is the last of cluster '{row.name}'; delete the cluster instead"
        )
    members.refuse_serving(tx, row, found)
    mine = [device for device in spec.devices if device.node == found.id]
    if mine:
        _check(tx, row, spec, mine)
    op = begin(tx, "storage-cluster.node-remove", row)
    spec = spec.model_copy(update={"leaving": (*spec.leaving, found.id)})
    spec = members.staffed(tx, row.id, spec)
    answer = _leave(tx, op, row, spec, mine)
    members.serve_elsewhere(tx, row, found)
    return answer


def maintenance(tx: Tx, ref: str, node: str, on: bool) -> Answer:
    """While it is on, the node's OSDs stay where they are though they are down."""
    row, spec = cluster_of(tx, ref)
    need_deployed(row, spec)
    found = resolve_node(tx, "node", node)
    if found.id not in spec.nodes:
        raise invalid("node", f"is not in cluster '{row.name}': '{node}'")
    if on == (found.id in spec.maintenance):
        return accepted(begin_and_end(tx, "storage-cluster.maintenance", row, "it is so already"), row)
    nodes = {*spec.maintenance, found.id} if on else set(spec.maintenance) - {found.id}
    row = save(tx, row, spec=spec.model_copy(update={"maintenance": tuple(sorted(nodes))}))
    return accepted(begin(tx, "storage-cluster.maintenance", row), row)


def repair(tx: Tx, ref: str, ask: RepairAsk) -> Answer:
    row, spec = cluster_of(tx, ref)
    inconsistent = row.status_as(StorageClusterStatus).inconsistent
    wanted = ask.placement_groups or list(inconsistent)
    for number, name in enumerate(wanted):
        if name not in inconsistent:
            known = ", ".join(inconsistent) or "none is"
            raise invalid(f"placement_groups.{number}", f"must be inconsistent, which '{name}' is not ({known})")
    if not wanted:
        return accepted(begin_and_end(tx, "storage-cluster.repair", row, "no placement group is inconsistent"), row)
    row = save(tx, row, spec=spec.model_copy(update={"repairs": tuple(sorted({*spec.repairs, *wanted}))}))
    return accepted(begin(tx, "storage-cluster.repair", row), row)


def deep_scrub(tx: Tx, ref: str, ask: ScrubAsk) -> Answer:
    """Read and compare everything now, instead of when its time comes."""
    row, spec = cluster_of(tx, ref)
    pools = {pool.row.id: pool for pool in rows.pools_of(tx, row.id) if not pool.leaving}
    chosen = []
    for number, name in enumerate(ask.pools):
        found = resolve(tx, f"pools.{number}", Kind.POOL, name, SYSTEM)
        if found.id not in pools:
            raise invalid(f"pools.{number}", f"is no pool of cluster '{row.name}': '{name}'")
        chosen.append(found.id)
    names = [name for id in chosen or pools for name in pools[id].names]
    if not names:
        return accepted(begin_and_end(tx, "storage-cluster.deep-scrub", row, "the cluster has no pools"), row)
    row = save(tx, row, spec=spec.model_copy(update={"scrubs": tuple(sorted({*spec.scrubs, *names}))}))
    return accepted(begin(tx, "storage-cluster.deep-scrub", row), row)
