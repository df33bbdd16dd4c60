"""From a look at a cluster to the database: one transaction, repeatable, that believes nothing but what was seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from scloud.controllers.storage import changes, ending, planning, pool_status
from scloud.controllers.storage.changes import Reports
from scloud.controllers.storage.load import Load, load
from scloud.controllers.storage.look import Look
from scloud.controllers.storage.render import store_id
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import State
from scloud.model.storage import (
    Condition,
    OsdStatus,
    StorageCapacity,
    StorageClusterSpec,
    StorageClusterStatus,
)
from scloud.reconcile.ceph import auth, figures, laggy
from scloud.reconcile.ceph.conditions import appeared, dated, from_checks, vanished, waiting
from scloud.reconcile.ceph.figures import Track, cluster_capacity, raw_factor
from scloud.reconcile.ceph.view import OsdSeen
from scloud.store import operations, samples
from scloud.store.database import Tx
from scloud.store.nodes import usages
from scloud.store.resources import find, save

DAMAGED_SHOWN = 5
REFRESH_S = 15.0
"""How old a status may get while only figures change."""


@dataclass(frozen=True)
class Round:
    """What one round brought. `generation` is what was planned for; `failures` are reasons by pool, "" the cluster."""

    generation: int
    look: Look
    commanded: int
    failures: Mapping[str, str] = field(default_factory=dict)
    scrubbed: frozenset[str] = frozenset()
    track: Track | None = None
    told: bool = False
    """Whether somebody waits to read it: then it is written down whatever it is."""


def conclude(tx: Tx, id: str, reports: Reports, seen: Round) -> None:
    found = load(tx, id)
    if found is None or found.leaving:
        return
    look = seen.look
    retold = changes.grant(tx, found, look)
    spec = changes.spec_after(tx, found, look, reports, seen.scrubbed)
    row = found.row
    if spec != found.spec:
        row = save(tx, row, spec=spec)
    retold |= pool_status.update(tx, found, look, seen.failures)
    if retold:
        tx.touch(row.key)
    taken = [auth.taken(name, pools) for name, pools in sorted(planning.taken(found, look).items())]
    waits = changes.waits_for(found, look.view, reports) if found.deployed else "; ".join(taken)
    settled = not seen.commanded and not seen.failures.get("") and seen.generation == row.generation
    if taken and found.status.observed_generation == 0:
        ending.failed(tx, row, "storage-cluster.adopt", waits, ErrorKind.CONFLICT)
    ready = not waits and all(found.secrets.get(f"granted/{node}") for node in found.admitted)
    status = _status(tx, found, spec, seen, reports, waits, ready and settled, row.generation)
    _write(tx, found, status, seen.told)
    ending.update(
        tx,
        row,
        spec,
        look.view,
        settled=settled,
        ready=ready,
        joined=all(found.secrets.get(f"granted/{node}") for node in found.admitted),
        waits=waits,
        track=seen.track,
        in_place=found.in_place(look.view),
        trouble=changes.troubles(found, reports),
        broken=changes.broken(found, reports),
    )


def _status(
    tx: Tx,
    found: Load,
    spec: StorageClusterSpec,
    seen: Round,
    reports: Reports,
    waits: str,
    ready: bool,
    generation: int,
) -> StorageClusterStatus:
    old, view = found.status, seen.look.view
    samples.add(tx, found.row.id, view.used_bytes >> 20)
    promised = usages(tx)
    provisioned = sum(
        int(promised[pool.row.id].disk_mib * raw_factor(pool.spec.redundancy))
        for pool in found.pools
        if pool.row.id in promised
    )
    capacity = cluster_capacity(view, provisioned, samples.history(tx, found.row.id))
    state = old.state
    refused = "" if found.deployed or old.observed_generation > 0 else waits
    if ready or old.observed_generation > 0:
        state = State.READY
    elif refused:
        state = State.ERROR
    elif state == State.ERROR and not waits:
        state = State.CREATING
    reason = "" if state == State.READY else (waits or seen.failures.get("", "") or "being configured")
    groups, objects, damaged = _rotten(tx, old, seen.look)
    own, checks = _own(found, seen, capacity, reports, damaged), from_checks(view.checks)
    conditions = [*own, *(item for item in checks if item.name not in {mine.name for mine in own})]
    return old.model_copy(
        update={
            "state": state,
            "reason": refused or (old.reason if state == State.ERROR else reason),
            "version": seen.look.slow.version,
            "monitors_up": view.quorum,
            "leader": view.leader,
            "conditions": dated(tx.now, conditions, old.conditions),
            "capacity": capacity,
            "osds": _osds(found, view.osds),
            "placement_groups": dict(sorted(view.pg_states.items())),
            "inconsistent": groups,
            "inconsistent_objects": objects,
            "damaged": damaged,
            "recovery": figures.recovery(view, seen.track),
            "removing": _removing(found, spec, seen),
            "observed_generation": generation if ready else old.observed_generation,
            "observed_at": tx.now,
        }
    )


def _osds(found: Load, seen: tuple[OsdSeen, ...]) -> tuple[OsdStatus, ...]:
    """While there is no manager to tell how full they are, they are as full as they were."""
    devices = {device.uuid: device for device in found.spec.devices}
    before = {osd.uuid: osd for osd in found.status.osds}
    result = []
    for osd in sorted(seen, key=lambda item: item.number):
        device = devices.get(osd.uuid)
        site = found.sites.get(device.node) if device else None
        old = before.get(osd.uuid) if not osd.total_kib else None
        result.append(
            OsdStatus(
                osd=osd.number,
                uuid=osd.uuid,
                node=site.name if site else osd.place.get("host", ""),
                path=device.path if device else "",
                media=osd.media,
                up=osd.up,
                taken_in=osd.taken_in,
                used_mib=old.used_mib if old else osd.used_kib >> 10,
                total_mib=old.total_mib if old else osd.total_kib >> 10,
                commit_ms=osd.commit_ms,
                pgs=old.pgs if old else osd.pgs,
                place=dict(osd.place),
            )
        )
    return tuple(result)


def _removing(found: Load, spec: StorageClusterSpec, seen: Round) -> dict[str, str]:
    view = seen.look.view
    in_place = found.in_place(view)
    result = {}
    for device in spec.devices:
        if not device.out:
            continue
        osd = view.osd(device.uuid)
        site = found.sites.get(device.node)
        place = f"{site.name if site else device.node}:{device.path}"
        name = f"osd.{osd.number} ({place})" if osd else place
        if device.drained:
            result[name] = "being wiped"
        else:
            result[name] = ending.WHOLE if device.uuid in in_place else figures.progress(seen.track)[1]
    for node in spec.leaving:
        if node in found.sites:
            result.setdefault(f"node {found.sites[node].name}", "is leaving")
    return result


def _rotten(
    tx: Tx, old: StorageClusterStatus, look: Look
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]], dict[str, str]]:
    """(inconsistent placement groups, their damaged objects, whose those are, by name). What nobody said this time is
    as it was: a group that is still inconsistent has what was known of it, though the log may tell no more of it."""
    groups = old.inconsistent if look.inconsistent is None else look.inconsistent
    objects, damaged = {}, {}
    for group in groups:
        said = look.objects.get(group)
        names = said or old.inconsistent_objects.get(group, ())
        if names:
            objects[group] = names
        for name in names:
            owner = look.owners.get(name)
            if owner is not None:
                damaged[name] = _whose(tx, *owner)
            elif (not said or name in look.owners) and name in old.damaged:
                damaged[name] = old.damaged[name]
    return groups, objects, damaged


def _whose(tx: Tx, owner: str, at: int) -> str:
    kind, _, id = owner.partition("/")
    row = find(tx, id, gone=True)
    whose = f"{kind} {row.name}" if row is not None else owner
    return f"{whose}, from {at} MiB on"


def _own(
    found: Load, seen: Round, capacity: StorageCapacity, reports: Reports, damaged: Mapping[str, str]
) -> list[Condition]:
    """What Ceph does not say, or not so."""
    result = []
    used = capacity.used_mib / capacity.total_mib if capacity.total_mib else 0.0
    if used >= found.spec.warn_percent / 100:
        when = figures.forecast(capacity)
        remedy = "add devices (`scloud storage-cluster device add`) or delete disks"
        message = f"{used:.0%} of all devices is used{when}: {remedy}"
        result.append(Condition(name="filling-up", level="warning", message=message))
    for name, pools in sorted(planning.taken(found, seen.look).items()):
        result.append(Condition(name=name.replace(".", "-"), level="error", message=auth.taken(name, pools)))
    if seen.look.view.waiting:
        result.append(waiting(seen.look.view.waiting, seen.look.view.pgs))
    if seen.look.laggy is None:
        result += [item for item in found.status.conditions if item.name == "paused"]
    elif seen.look.laggy:
        result.append(laggy.condition(seen.look.laggy, ours=found.deployed))
    if damaged:
        which = ", ".join(sorted(set(damaged.values()))[:DAMAGED_SHOWN])
        more = f" and {len(damaged) - DAMAGED_SHOWN} more" if len(damaged) > DAMAGED_SHOWN else ""
        message = (
            f"copies of what is written there differ or cannot be read: {which}{more}: good copies are read meanwhile; "
            f"`scloud storage-cluster repair {found.row.name}` restores the bad ones from them"
        )
        result.append(Condition(name="rot", level="error", message=message))
    for node, site in found.sites.items():
        said = reports.get(f"store/{store_id(found.row.id, node)}")
        if said is not None and said.state == "error":
            result.append(
                Condition(name=f"node-{site.name}", level="error", message=f"node {site.name}: {said.reason}")
            )
    if seen.failures.get(""):
        result.append(
            Condition(name="refused", level="error", message=f"the cluster refuses a change: {seen.failures['']}")
        )
    if found.deployed and len(found.spec.monitors) == 1 and len(found.sites) > 1:
        message = "there is one monitor, and without it everything stands still; with a third node there will be three"
        result.append(Condition(name="one-monitor", level="info", message=message))
    return [*result, *pool_status.shaky(found)]


def _write(tx: Tx, found: Load, new: StorageClusterStatus, told: bool) -> None:
    """Only what is worth it: figures that jitter wait for a while."""
    old = found.status
    if not told and _plain(new) == _plain(old) and new.observed_at - old.observed_at < REFRESH_S:
        return
    for condition in appeared(new.conditions, old.conditions):
        operations.record(tx, found.row, condition.level, condition.message)
    for condition in vanished(new.conditions, old.conditions):
        operations.record(tx, found.row, "info", f"{condition.name} is over")
    if new.state == State.READY and old.state != State.READY:
        operations.record(tx, found.row, "info", "ready")
    save(tx, found.row, status=new, observed_generation=new.observed_generation)


def _plain(status: StorageClusterStatus) -> StorageClusterStatus:
    """Without what changes all the time."""
    osds = tuple(
        osd.model_copy(update={"used_mib": osd.used_mib >> 6, "commit_ms": float(osd.commit_ms > 100)})
        for osd in status.osds
    )
    rough = status.capacity.model_copy(
        update={
            "used_mib": status.capacity.used_mib >> 8,
            "available_mib": status.capacity.available_mib >> 8,
            "refused_in_days": None,
            "full_in_days": None,
        }
    )
    return status.model_copy(update={"observed_at": 0.0, "osds": osds, "capacity": rough})


def not_answering(tx: Tx, id: str, reports: Reports, error: CloudError, asked: bool) -> None:
    """The cluster did not answer. `asked`: a node was connected and did ask it."""
    found = load(tx, id)
    if found is None or found.leaving:
        return
    old = found.status
    reason = f"{error.message}{changes.troubles(found, reports)}"
    if old.observed_generation == 0:
        _never_ready(tx, found, error, reason, asked)
        return
    message = f"the cluster does not answer, so nothing of it is known and nothing can be changed: {reason}"
    condition = Condition(name="unreachable", level="error", message=message)
    pool_status.unreachable(tx, found, reason)
    if old.state == State.UNKNOWN and old.reason == reason:
        return
    if old.state != State.UNKNOWN:
        operations.record(tx, found.row, "error", message)
    conditions = dated(tx.now, [condition], old.conditions)
    save(
        tx,
        found.row,
        status=old.model_copy(update={"state": State.UNKNOWN, "reason": reason, "conditions": conditions}),
    )


def _never_ready(tx: Tx, found: Load, error: CloudError, reason: str, asked: bool) -> None:
    """A new cluster has its time to form; one that is to be adopted answers now, or it was the wrong address or key."""
    old = found.status
    if found.deployed or not asked:
        if old.state == State.CREATING and old.reason != reason:
            save(tx, found.row, status=old.model_copy(update={"reason": reason}))
            for op in operations.open_for(tx, found.row.id):
                operations.progress(tx, op.id, 10, reason)
        return
    why = {
        ErrorKind.FORBIDDEN: "the cluster does not take the key of the keyring",
        ErrorKind.UNAVAILABLE: "no monitor of the conf answers",
        ErrorKind.TIMED_OUT: "no monitor of the conf answers",
    }.get(error.kind, "the cluster cannot be used so")
    reason = f"{why}: {error.message}; delete this one, and adopt it with the right conf and keyring"
    if old.state == State.ERROR and old.reason == reason:
        return
    save(tx, found.row, status=old.model_copy(update={"state": State.ERROR, "reason": reason}))
    operations.record(tx, found.row, "error", reason)
    ending.failed(tx, found.row, "storage-cluster.adopt", reason, error.kind)
