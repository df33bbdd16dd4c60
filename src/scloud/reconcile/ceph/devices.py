"""Devices, hosts and monitors of a deployed cluster: what is to be taken in, out, moved, forgotten. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from scloud.model.storage import Device
from scloud.reconcile.ceph.commands import Command, mgr, mon
from scloud.reconcile.ceph.layout import Site
from scloud.reconcile.ceph.view import View


def plan_osds(devices: Iterable[Device], in_place: Collection[str], view: View) -> list[Command]:
    """`in_place` are uuids of devices that cannot be drained: they stay in until they are wiped."""
    steps = []
    for device in devices:
        osd = view.osd(device.uuid)
        if osd is None:
            continue
        if device.out and osd.taken_in and (device.drained or device.uuid not in in_place):
            steps.append(mon(f"drain osd.{osd.number}", "osd out", ids=[str(osd.number)]))
        elif not device.out and not osd.taken_in and osd.up:
            steps.append(mon(f"take in osd.{osd.number}", "osd in", ids=[str(osd.number)]))
        elif device.drained and not osd.up and view.manager:
            # Whether anything needs it has been looked at before it was wiped.
            steps.append(
                mgr(f"forget osd.{osd.number}", "osd purge", id=osd.number, force=True, yes_i_really_mean_it=True)
            )
    return steps


def plan_tree(sites: Mapping[str, Site], view: View) -> list[Command]:
    """Hosts go where their labels say; what is left without OSDs and is no node's goes.

    Ceph makes the buckets that a move names and that are not there, each below the next; one that is there it leaves
    where it is, even if that is below no root, where nothing can be placed. So those are moved first, from above.
    """
    steps = []
    names = {site.name for site in sites.values()}
    wanted: dict[str, dict[str, str]] = {}
    for site in sites.values():
        above: dict[str, str] = {}
        for level, name in site.crush.items():
            if level != "root":
                wanted[name] = dict(above)
            above[level] = name
    for name, place in sorted(wanted.items(), key=lambda item: len(item[1])):
        at = view.buckets.get(name)
        if at is not None and at != place:
            args = [f"{level}={other}" for level, other in place.items()]
            what = f"{name} has moved" if name in names else f"{name} goes where its nodes' labels say"
            steps.append(mon(what, "osd crush move", name=name, args=args))
    for name in view.empty_buckets:
        if name not in names and name not in wanted:
            steps.append(mon(f"nothing is in {name}", "osd crush rm", name=name))
    return steps


def plan_monitors(wanted: Collection[str], view: View) -> list[Command]:
    """Monitors that are not to be there any more leave one by one, once all that are to be there have joined."""
    if not wanted or not set(wanted) <= set(view.quorum):
        return []
    extra = sorted(set(view.monitors) - set(wanted))
    return [mon(f"monitor {extra[0]} leaves", "mon remove", name=extra[0])] if extra else []


def draining(devices: Iterable[Device], view: View) -> list[int]:
    """OSDs that take no more data and of which is to be asked whether anything still needs them."""
    found = []
    for device in devices:
        osd = view.osd(device.uuid)
        if device.out and not device.drained and osd is not None and not osd.taken_in:
            found.append(osd.number)
    return found


def crowded_out(devices: Iterable[Device], dead: Collection[str], toofull: bool) -> set[str]:
    """Uuids of dead devices to be replaced while what they had finds no room on the others; `toofull`: so the cluster
    says. One that lives again is drained."""
    waiting = [device for device in devices if device.out and device.replace_path is not None]
    return {device.uuid for device in waiting if device.uuid in dead and (device.crowded or toofull)}


def expendable(device: Device, devices: Iterable[Device], view: View) -> bool:
    """Whether a device that cannot be drained may be wiped: every other copy is whole, or it is dead already and all
    placement groups do without it."""
    for other in devices:
        osd = view.osd(other.uuid)
        if other.uuid != device.uuid and not other.out and (osd is None or not osd.up):
            return False
    if view.unfound or not view.manager:
        return False
    mine = view.osd(device.uuid)
    if mine is not None and mine.up:
        return view.settled
    # A group whose last OSD has died is called what it was, and stale.
    return all({"active", "stale"} & set(state.split("+")) == {"active"} for state in view.pg_states)
