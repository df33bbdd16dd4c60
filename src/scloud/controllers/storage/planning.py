"""The commands that bring one cluster from what it is to what is wanted of it."""

from __future__ import annotations

from scloud.controllers.storage.load import Load
from scloud.controllers.storage.look import Look
from scloud.controllers.storage.members import lasting_monitors
from scloud.reconcile.ceph import auth, devices, pools, tuning
from scloud.reconcile.ceph.commands import Command, mgr
from scloud.reconcile.ceph.pools import Wanted


def wanted_pools(load: Load) -> list[Wanted]:
    return [Wanted(pool.row.id, pool.spec, pool.leaving) for pool in load.pools if pool.spec.rados_name]


def taken(load: Load, look: Look) -> dict[str, set[str]]:
    """Keys of an adopted cluster that are named as those of our nodes are, and reach pools of somebody else: by entity,
    these pools. They are another cloud's: neither changed nor taken away."""
    if load.deployed:
        return {}
    ids = {pool.row.id for pool in load.pools}
    names = {name for pool in load.pools for name in pool.names}
    strange = {
        seen.name
        for seen in look.view.pools.values()
        if (seen.owner not in ids if seen.owner else seen.name not in names)
    }
    mine = {entity.name for entity in load.clients().values()} | set(load.former_clients().values())
    found = {name: auth.reached(look.slow.auth[name][1]) & strange for name in mine if name in look.slow.auth}
    return {name: pools for name, pools in found.items() if pools}


def plan(load: Load, look: Look) -> list[Command]:
    """Nothing if all is as it should be."""
    view, slow, spec = look.view, look.slow, load.spec
    others = taken(load, look)
    entities = [
        auth.Entity(entity.name, slow.auth[entity.name][0], entity.caps)
        if entity.name.startswith("client.scloud-") and entity.name in slow.auth
        else entity
        for entity in load.entities()
        if entity.name not in others
    ]
    gone = set(load.former_clients().values()) - {entity.name for entity in entities} - others.keys()
    if load.deployed:
        wanted = {entity.name for entity in entities}
        gone |= {name for name in slow.auth if name.startswith("mgr.") and name not in wanted}
    # Settings first: managers and OSDs begin when they are let in, and are to find them.
    steps = tuning.plan_settings(spec, slow.config) if load.deployed else []
    steps += auth.plan(entities, gone, slow.auth)
    if load.deployed:
        steps += devices.plan_monitors(load.names(tuple(lasting_monitors(spec, load.sites))), view)
        steps += devices.plan_osds(spec.devices, load.in_place(view), view)
        steps += devices.plan_tree(load.sites, view)
        steps += tuning.plan_noout({site.name: id in spec.maintenance for id, site in load.sites.items()}, view)
    if view.osds:
        for pool in wanted_pools(load):
            steps += pools.plan(pool, view, slow)
    return steps


def requests(load: Load, look: Look) -> list[Command]:
    """What was asked for once: repairs of what is still inconsistent, scrubs."""
    if not look.view.manager:
        return []
    known = look.inconsistent or ()
    steps = [mgr(f"repair {group}", "pg repair", pgid=group) for group in load.spec.repairs if group in known]
    steps += [
        mgr(f"deep-scrub {name}", "osd pool deep-scrub", who=[name])
        for name in load.spec.scrubs
        if name in look.view.pools
    ]
    return steps
