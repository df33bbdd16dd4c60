"""One seed from beginning to end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import traceback
from dataclasses import dataclass, field
from typing import Any

from scloud.store.database import Store

from .chaos import Chaos
from .checks import Checks
from .loop import Stuck
from .maintenance import stop_by_itself
from .mutations import apply
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
        await _lost_nodes(world, checks)
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
        step = min(step * 1.3, 20.0)
        chaos.raise_the_dead()
        checks.always()
        _raise_problems(world)
        if world.violations:
            return
    await checks.final()
    if rng.random() < 0.2:
        await _without_manager(world, checks)


async def _lost_nodes(world: World, checks: Checks) -> None:
    """Nodes with guests go away for long enough to be taken for dead: without power, or running on behind cut wires.
    Now and then the manager dies in the middle of what it does about it."""
    rng, loop = world.rng, asyncio.get_running_loop()
    for _ in range(rng.choice([1, 1, 2])):
        node = max(world.nodes, key=lambda node: (sum(d.running for d in node.hardware.host.domains.values()), node.id))
        if node.off or node.wire.dropping:
            node = rng.choice(world.nodes)
        cut = rng.random() < 0.5
        world.note(f"{node.name} is {'cut off' if cut else 'without power'} for long")
        world.count("lost_nodes")
        if cut:
            node.cut_off()
        else:
            node.reboot()
            node.off = True
        end = loop.time() + rng.choice([8.0, 15.0, 30.0, 60.0])
        while loop.time() < end and not world.violations:
            await asyncio.sleep(0.5 + rng.random())
            if rng.random() < 0.05 and world.manager.life is not None:
                world.manager.life.kill()
            if world.manager.life is None:
                world.manager.start()
            checks.always()
        world.note(f"{node.name} is back")
        node.off = False
        node.mend()
        if node.life is None:
            node.start()
        end = loop.time() + rng.choice([0.5, 3.0, 10.0])
        while loop.time() < end and not world.violations:
            await asyncio.sleep(0.5)
            checks.always()


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
