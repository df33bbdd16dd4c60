"""A node's flows from nothing, and one more nic: compiled, and applied to a real Open vSwitch. Needs root.

    sudo .venv/bin/python bench/flows_compile.py [--flows 10000] [--runs 7]

The node has 20 nics of its own; the rest are on other nodes. Times are medians, with the fastest and slowest run.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import statistics
import sys
import time
from pathlib import Path

sys.path.extend(str(Path(__file__).parents[1] / "tests" / part) for part in ("contract", "unit/flows"))
from flow_world import OUT, World, rule
from switch_rig import OvsRig

from scloud.flows.compile import Compiler
from scloud.flows.view import NodeView, RemotePort

LOCAL = 20
FLOWS_PER_REMOTE = 5


def view_of(world: World, remote: int) -> NodeView:
    """One VPC, one group that all nics carry, with rules for ssh, a port range, and the group itself."""
    world.vpc("vpc-a", 16777215, "10.0.0.0/16")
    world.group(
        "sg-all",
        OUT,
        rule(2, "inbound", "tcp", (22, 22)),
        rule(3, "inbound", "tcp", (8000, 8999), cidr="10.0.0.0/8"),
        rule(4, "inbound", group="sg-all"),
    )
    for number in range(LOCAL):
        world.nic(f"nic-l{number:05}", "n1", "vpc-a", f"10.0.1.{number}", "sg-all")
    for number in range(remote):
        world.nic(f"nic-r{number:05}", "n2", "vpc-a", f"10.0.{2 + number // 250}.{number % 250}", "sg-all")
    return world.view("n1")


def one_more(world: World, view: NodeView, run: int) -> NodeView:
    world.nic("nic-new", "n2", "vpc-a", f"10.0.250.{run}", "sg-all")
    return dataclasses.replace(view, remote=(*view.remote, RemotePort(world.ports["nic-new"])))


async def measure(rig: OvsRig, view: NodeView, world: World, runs: int) -> dict[str, list[float]]:
    switch = rig.switches["n1"]
    await switch.ensure_bridge()
    times: dict[str, list[float]] = {}

    def note(what: str, begin: float) -> None:
        times.setdefault(what, []).append((time.perf_counter() - begin) * 1000)

    for run in range(runs):
        await switch.replace_flows(())
        compiler = Compiler()
        begin = time.perf_counter()
        flows = compiler.update(view).add
        note("all flows, compiled", begin)
        middle = time.perf_counter()
        await switch.replace_flows(flows)
        note("all flows, applied to an empty switch", middle)
        note("all flows, compiled and applied", begin)
        assert sum((await switch.flow_owners()).values()) == len(flows)
        more = one_more(world, view, run)
        begin = time.perf_counter()
        change = compiler.update(more)
        note("one more nic, compiled", begin)
        middle = time.perf_counter()
        await switch.change_flows(change.remove, change.add)
        note("one more nic, applied", middle)
        assert sum((await switch.flow_owners()).values()) == len(compiler.flows())
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    world = World()
    remote = max(options.flows - 300, 0) // FLOWS_PER_REMOTE
    view = view_of(world, remote)
    total = len(Compiler().update(view).add)
    rig = OvsRig()
    try:
        times = asyncio.run(measure(rig, view, world, options.runs))
    finally:
        rig.close()
    print(f"{total} flows: {LOCAL} nics here, {remote} on other nodes; {options.runs} runs; milliseconds")
    print(f"{'':40} {'median':>8} {'min':>8} {'max':>8}")
    for what, values in times.items():
        print(f"{what:40} {statistics.median(values):8.1f} {min(values):8.1f} {max(values):8.1f}")


if __name__ == "__main__":
    main()
