"""One seed from beginning to end."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import sys
import traceback
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from scloud.api.intents.vms import start
from scloud.model.kinds import Kind
from scloud.model.statuses import VmStatus
from scloud.model.storage import StorageClusterSpec
from scloud.store import operations
from scloud.store.database import Store
from scloud.store.resources import all_of, find

from .chaos import Chaos
from .checks import Checks
from .loop import Stuck
from .maintenance import declare_lost, stop_by_itself
from .mutations import apply
from .processes import AgentProcess
from .workload import Tenant
from .world import World

CONVERGED_S = 420.0
"""Virtual seconds after the last fault within which everything must be as it should be."""
STILL_S = 6.0
"""And so it must stay."""
ALONE_S = 120.0
"""Within which guests are back after a power failure, manager or not."""


@dataclass
class Result:
    seed: int
    violations: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    cpu_s: float = 0.0


class _Logs(logging.Handler):
    """Whatever the product logs as an error is a defect; the rest goes into the record."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.INFO if world.verbose else logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.name.removeprefix('scloud.')}: {record.getMessage()}"
        if record.levelno >= logging.ERROR:
            self._world.violation(text, record.exc_info[1] if record.exc_info else None)
        else:
            self._world.note(text)


GONE_S = 120.0
"""What a node that is out of the cloud runs has ended so long after it is back."""


async def _story(world: World, checks: Checks) -> None:
    rng = world.rng
    loses_nodes = world.seed % 3 == 1
    world.build(rng.choice([2, 3, 3] if loses_nodes else [1, 2, 2, 3]))
    world.manager.start()
    for node in world.nodes:
        node.start()
    chaos, tenant = Chaos(world), Tenant(world)
    loop = asyncio.get_running_loop()
    trouble = [loop.create_task(chaos.run()), loop.create_task(tenant.run())]
    end = loop.time() + rng.choice([5.0, 10.0, 20.0])
    while loop.time() < end and not world.violations:
        await asyncio.sleep(1.0 + 2.0 * rng.random())
        checks.always()
        _raise_problems(world)
    for task in trouble:
        task.cancel()
    if loses_nodes and not world.violations:
        chaos.heal()
        chaos.raise_the_dead()
        world.calm = False
        await asyncio.sleep(rng.choice([1.0, 6.0, 12.0]))
        await _lost_nodes(world, checks, tenant)
        await _see_off(world, tenant)
    if world.violations:
        return
    if rng.random() < 0.07:
        await _long_outage(world, checks)
    chaos.heal()
    chaos.raise_the_dead()
    await asyncio.sleep(2.0)
    chaos.raise_the_dead()
    await tenant.until_up()
    tenant.ask(stop_by_itself)
    end = loop.time() + CONVERGED_S
    step = 1.0
    still = False
    while (left := checks.pending()) or not still:
        if loop.time() > end:
            checks.explain(left)
            world.violation("not converged, or not for long: " + "; ".join(left))
            return
        # What is at rest may have waited for a reason that has gone since, such as room on a node.
        still = not left
        await asyncio.sleep(step if left else STILL_S)
        await _see_off(world, tenant)
        step = min(step * 1.3, 20.0)
        chaos.raise_the_dead()
        checks.always()
        _raise_problems(world)
        if world.violations:
            return
    await checks.final()
    if rng.random() < 0.2:
        await _without_manager(world, checks)


async def _lost_nodes(world: World, checks: Checks, tenant: Tenant) -> None:
    """Nodes with guests go away for long enough to be taken for dead: without power, or running on behind cut wires.
    Now and then an operator takes one out of the cloud, or the manager dies in the middle of what it does about it."""
    rng, loop = world.rng, asyncio.get_running_loop()
    for _ in range(rng.choice([1, 1, 2])):
        node = max(world.nodes, key=lambda node: (sum(d.running for d in node.hardware.host.domains.values()), node.id))
        if node.off or node.wire.dropping:
            node = rng.choice(world.nodes)
        how = rng.choice(["cut off", "cut off", "cut off from the manager", "without power", "without power"])
        world.note(f"{node.name} is {how} for long")
        world.count("lost_nodes")
        if how == "cut off":
            node.cut_off()
        elif how == "cut off from the manager":
            node.wire.part()
        else:
            node.reboot()
            node.off = True
        end = loop.time() + rng.choice([8.0, 15.0, 30.0, 60.0])
        given_up = loop.time() + 12.0 * rng.random() if rng.random() < 0.4 and _spared(world, node) else math.inf
        while loop.time() < end and not world.violations:
            await asyncio.sleep(0.5 + rng.random())
            if rng.random() < 0.05 and world.manager.life is not None:
                world.manager.life.kill()
            if world.manager.life is None:
                world.manager.start()
            if loop.time() > given_up and _declared_lost(world, tenant, node):
                await _removed(world, tenant, node)
                break
            checks.always()
        if node not in world.nodes:
            continue
        world.note(f"{node.name} is back")
        node.off = False
        node.mend()
        if node.life is None:
            node.start()
        end = loop.time() + rng.choice([0.5, 3.0, 10.0])
        while loop.time() < end and not world.violations:
            await asyncio.sleep(0.5)
            checks.always()


async def _see_off(world: World, tenant: Tenant) -> None:
    """A node whose removal became certain when it was back already: it is out of the cloud, and switched off."""
    for node in [*world.nodes]:
        if world.base.read_now(partial(find, id=node.id)) is None:
            world.note(f"{node.name} is out of the cloud, though it is back")
            await _removed(world, tenant, node)


def _spared(world: World, node: AgentProcess) -> bool:
    """Whether others reach the pool without it."""
    (cluster,) = world.base.read_now(lambda tx: all_of(tx, Kind.STORAGE_CLUSTER))
    return bool(set(cluster.spec_as(StorageClusterSpec).nodes) - {node.id})


def _declared_lost(world: World, tenant: Tenant, node: AgentProcess) -> bool:
    """An operator gives the node up, again and again until it is out of the cloud. True if it is."""
    manager = world.manager
    asked = {op.action for op in world.base.read_now(lambda tx: operations.open_for(tx, node.id))}
    silent = manager.up and manager.manager is not None and node.id not in manager.manager.sessions
    if silent and "node.delete" not in asked:
        tenant.ask(partial(declare_lost, node=node.id))
    if world.base.read_now(lambda tx: find(tx, node.id)) is not None:
        return False
    world.note(f"{node.name} is out of the cloud")
    world.count("removed_by_force")
    return True


async def _removed(world: World, tenant: Tenant, node: AgentProcess) -> None:
    """It may run on behind its cut wires while its VMs with disks in the pool are started elsewhere; now and then it
    comes back, and its VMs have to end there. Then its plug is pulled."""
    for _ in range(5):
        for vm in world.base.read_now(lambda tx: all_of(tx, Kind.VM)):
            if world.manager.up and "start it, and it runs on another node" in vm.status_as(VmStatus).reason:
                tenant.ask(partial(start, account=world.account, ref=vm.id))
        await asyncio.sleep(1.0)
    if world.rng.random() < 0.5:
        await _come_back(world, node)
    node.reboot()
    node.off = True
    world.nodes.remove(node)


async def _come_back(world: World, node: AgentProcess) -> None:
    """It hears that it is out of the cloud as soon as it reaches a manager."""
    world.note(f"{node.name} is back, though it is out of the cloud")
    node.off = False
    node.mend()
    if node.life is None:
        node.start()
    await asyncio.sleep(STILL_S)  # those with disks of its own it begins again by itself
    end = asyncio.get_running_loop().time() + GONE_S
    while left := sorted(vm for vm, domain in node.hardware.host.domains.items() if domain.running):
        if not world.manager.up and world.manager.life is None:
            world.manager.start()
        if asyncio.get_running_loop().time() > end:
            world.violation(f"{node.name} is out of the cloud, and still runs {', '.join(left)}")
            return
        await asyncio.sleep(1.0)


async def _long_outage(world: World, checks: Checks) -> None:
    """A host is away for longer than deadlines: what was asked of it ends all the same."""
    node = world.rng.choice(world.nodes)
    node.reboot()
    node.off = True
    world.count("long_outage")
    tenant = Tenant(world)
    for _ in range(6):
        if world.manager.up:
            tenant.ask(tenant.any_verb())
    end = asyncio.get_running_loop().time() + world.rng.choice([70.0, 70.0, 70.0, 130.0, 330.0])
    while asyncio.get_running_loop().time() < end and not world.violations:
        await asyncio.sleep(7.0)
        if world.manager.life is None:
            world.manager.start()
        checks.always()


async def _without_manager(world: World, checks: Checks) -> None:
    """The manager is gone for good and every host has lost power: what ran runs again by itself."""
    running = checks.running()
    assert world.manager.life is not None
    world.manager.life.kill()
    for node in world.nodes:
        node.reboot()
    await asyncio.sleep(1.0)
    for node in world.nodes:
        node.start()
    end = asyncio.get_running_loop().time() + ALONE_S
    while missing := [vm for vm in running if not checks.runs(*vm)]:
        if asyncio.get_running_loop().time() > end:
            world.violation(f"without a manager these do not come back: {missing}")
            return
        await asyncio.sleep(2.0)
    await asyncio.sleep(5.0)
    checks.networks()
    _raise_problems(world)


def _raise_problems(world: World) -> None:
    for problem in world.loop.problems:
        world.violation(f"the loop heard: {problem.get('message')}", problem.get("exception"))
    world.loop.problems.clear()


def run_seed(seed: int, *, mutation: str = "", verbose: bool = False, base: Store | None = None) -> Result:
    """In a process that has nothing else to do, and ends soon after: what died in it is never collected."""
    gc.disable()
    began = os.times()
    world = World(seed, verbose=verbose, base=base)
    logger = logging.getLogger("scloud")
    logger.setLevel(logging.INFO if verbose else logging.ERROR)
    logger.propagate = False
    logger.handlers[:] = [_Logs(world)]
    apply(mutation)
    checks = Checks(world)
    asyncio.set_event_loop(world.loop)
    try:
        world.loop.run_until_complete(_story(world, checks))
    except Stuck as error:
        world.violation(str(error))
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        world.violation("the simulation itself failed", error)
    _raise_problems(world)
    for name, number in zip(("incidents", "moved"), checks.incidents(), strict=True):
        world.statistics[name] = number
    for what, cause in world.loop.unheard():
        world.violation(f"a task failed unheard: {what}", cause)
    spent = os.times()
    cpu = spent.user + spent.system - began.user - began.system
    return Result(seed, world.violations, list(world.trace), world.summary(), cpu)
