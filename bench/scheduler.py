"""The scheduler alone: thousands of nodes with a cloud's VMs on them, every filter and every weigher at work.

    .venv/bin/python bench/scheduler.py [--nodes 10000] [--vms 100000] [--decisions 20000] [--clock wall]

Three parts, each for growing clouds up to `--nodes` (with `--vms` in proportion):

- *one by one*: a decision and its promise, each timed by itself. Requests differ in size, architecture, account,
  placement group (over nodes or racks, hard or soft), GPUs and in which nodes reach their pools; loads change once a
  second's worth of decisions, as heartbeats change them.
- *batches*: the same requests as fast as they go, 100 to a batch: decisions a second.
- *explained*: the same decision by `plan.place`, with every node's reasons, as a dry run does it.

`--clock cpu` counts this process's CPU time instead: on a busy machine, the wall clock's p99 is that of the others.

Every 500th decision of the first part is compared with that of `plan.place`; a difference ends the run with an error.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from scloud.scheduler.fleet import Column, Fleet
from scloud.scheduler.load import Load
from scloud.scheduler.plan import place
from scloud.scheduler.snapshot import NodeSnapshot, Request

SIZES = [(1, 256, 0), (1, 1024, 10240), (2, 2048, 20480), (2, 4096, 0), (4, 8192, 40960), (8, 16384, 0), (16, 32768, 0)]
ACCOUNTS = 200
GROUPS = 100
LOADS_EVERY = 1000
"""Decisions between two changes of all loads: a busy cloud's second."""
CHECK_EVERY = 500
BATCH = 100
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class World:
    """A cloud with its VMs, and what it is asked."""

    nodes: list[NodeSnapshot]
    accounts: list[dict[str, int]]
    groups: list[dict[str, int]]
    pools: list[frozenset[str]]
    rng: random.Random

    def request(self) -> tuple[Request, int]:
        """One more VM, and whose."""
        cpus, memory, disk = self.rng.choice(SIZES)
        account = self.rng.randrange(ACCOUNTS)
        request = Request(
            cpus, memory, disk, "x86_64" if self.rng.random() < 0.9 else "aarch64", account_vms=self.accounts[account]
        )
        if self.rng.random() < 0.5:
            over: Literal["node", "rack"] = "rack" if self.rng.random() < 0.5 else "node"
            hard = over == "node" and self.rng.random() < 0.5
            request = replace(request, group_vms=self.rng.choice(self.groups), group_hard=hard, group_over=over)
        if self.rng.random() < 0.5:
            request = replace(request, reachable_from=self.rng.choice(self.pools))
        if self.rng.random() < 0.1:
            request = replace(request, gpus=self.rng.choice((1, 2)), gpu_model=self.rng.choice((None, "t4")))
        return request, account

    def loads(self) -> dict[str, Load]:
        rng = self.rng
        return {
            node.id: Load(rng.random(), rng.random(), rng.random(), rng.random(), rng.random(), 20 * rng.random())
            for node in self.nodes
        }


def build(nodes: int, vms: int) -> World:
    """`vms` on `nodes`, at random; ten nodes to a rack, one node in ten of another architecture."""
    rng = random.Random(nodes)
    ids = [f"nod-{number:06}" for number in range(nodes)]
    used = {id: [0, 0, 0] for id in ids}
    accounts: list[dict[str, int]] = [{} for _ in range(ACCOUNTS)]
    for number in range(vms):
        node = rng.choice(ids)
        for place_, amount in enumerate(rng.choice(SIZES[:5])):
            used[node][place_] += amount
        mine = accounts[number % ACCOUNTS]
        mine[node] = mine.get(node, 0) + 1
    snapshots = [
        NodeSnapshot(
            id=id,
            name=f"n{number}",
            ready=rng.random() < 0.98,
            cordoned=rng.random() < 0.02,
            architecture="aarch64" if number % 10 == 9 else "x86_64",
            cpus=512,
            memory_mib=1024 * 1024,
            disk_mib=16 * 1024 * 1024,
            cpus_used=used[id][0],
            memory_used_mib=used[id][1],
            disk_used_mib=used[id][2],
            rack=f"r{number // 10}",
            gpus={"t4": 4} if number % 20 == 0 else {},
        )
        for number, id in enumerate(ids)
    ]
    groups = [dict.fromkeys(rng.sample(ids, min(20, nodes // 2)), 1) for _ in range(GROUPS)]
    pools = [frozenset(rng.sample(ids, max(1, nodes * 3 // 4))) for _ in range(4)]
    return World(snapshots, accounts, groups, pools, rng)


def decide(fleet: Fleet, request: Request, account_vms: Column) -> str | None:
    """As the manager does it: choose, promise, remember where the account's VMs are."""
    node = fleet.choose(request, account_vms)
    if node is not None:
        fleet.promise(node, request.cpus, request.memory_mib, request.disk_mib)
        fleet.add(account_vms, node, 1)
    return node


def one_by_one(world: World, decisions: int, clock: Clock) -> list[float]:
    """Seconds of each."""
    fleet = Fleet(world.nodes)
    counts = [fleet.counts(account) for account in world.accounts]
    times = []
    for number in range(decisions):
        if number % LOADS_EVERY == 0:
            fleet.set_loads(world.loads())
        request, account = world.request()
        wanted = None
        if number % CHECK_EVERY == 0:
            now = {node.id: int(n) for node, n in zip(world.nodes, counts[account], strict=True) if n}
            wanted = place(fleet.snapshots(), replace(request, account_vms=now)).node
        begin = clock()
        node = decide(fleet, request, counts[account])
        times.append(clock() - begin)
        if number % CHECK_EVERY == 0 and node != wanted:
            raise SystemExit(f"decision {number}: {node} by columns, {wanted} by plan.place")
    return times


def batches(world: World, decisions: int, clock: Clock) -> float:
    """Decisions a second, the changes of load among them included."""
    fleet = Fleet(world.nodes)
    counts = [fleet.counts(account) for account in world.accounts]
    asked = [[world.request() for _ in range(BATCH)] for _ in range(max(1, decisions // BATCH))]
    loads = [world.loads() for _ in range(2)]
    begin = clock()
    for number, batch in enumerate(asked):
        if number % (LOADS_EVERY // BATCH) == 0:
            fleet.set_loads(loads[number // (LOADS_EVERY // BATCH) % 2])
        for request, account in batch:
            decide(fleet, request, counts[account])
    return len(asked) * BATCH / (clock() - begin)


def explained(world: World, clock: Clock, runs: int = 5) -> float:
    """Median seconds of a dry run's plan."""
    times = []
    for _ in range(runs):
        request, _account = world.request()
        begin = clock()
        place(world.nodes, request)
        times.append(clock() - begin)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--vms", type=int, default=100_000)
    parser.add_argument("--decisions", type=int, default=20_000)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    print(f"{'nodes':>7} {'VMs':>8} {'median':>9} {'p99':>9} {'slowest':>9} {'in batches':>12} {'explained':>10}")
    sizes = sorted({min(size, options.nodes) for size in (100, 300, 1000, 3000, options.nodes)})
    for nodes in sizes:
        world = build(nodes, options.vms * nodes // options.nodes)
        gc.collect()
        times = sorted(one_by_one(world, options.decisions, clock))
        p99 = times[int(0.99 * len(times))]
        rate = batches(world, options.decisions, clock)
        print(
            f"{nodes:>7} {options.vms * nodes // options.nodes:>8} {statistics.median(times) * 1e3:>6.3f} ms "
            f"{p99 * 1e3:>6.3f} ms {times[-1] * 1e3:>6.2f} ms {rate:>10,.0f}/s {explained(world, clock) * 1e3:>7.1f} ms"
        )


if __name__ == "__main__":
    main()
