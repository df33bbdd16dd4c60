"""The control plane alone: a real manager (SQLite, synchronous=FULL), simulated nodes over the real TLS link.

    .venv/bin/python bench/control_plane.py [--nodes 500] [--vms 5000] [--runs 3]

Prints VMs a second from POST to `running`, one VM alone, a 100-row list with details during the burst, small GETs a
second, and the manager's memory. The simulated nodes (the real agent on fake drivers), the manager and this client
share the machine. VMs are spread over VPCs of 10, as small tenants have.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time

from scloud.sim.cloud import VPC_SIZE, Cloud, cpu_seconds, percentile, resident_mib, vm

WORKERS = 16


async def burst(cloud: Cloud, vms: int) -> tuple[float, list[float]]:
    """(VMs a second from the first POST to the last `running`, seconds of each list during it)."""
    numbers = iter(range(vms))
    lists: list[float] = []
    done = False

    async def post() -> list[str]:
        connection, operations = cloud.connection(), []
        for number in numbers:
            answer = await connection.json("POST", "/vms", vm(f"vm-{number}", number // VPC_SIZE))
            operations.append(answer["operation"]["id"])
        for operation in operations:
            await cloud.ended(operation, connection)
        return operations

    async def watch() -> None:
        connection = cloud.connection()
        while not done:
            begun = time.perf_counter()
            await connection.json("GET", "/vms?limit=100")
            lists.append(time.perf_counter() - begun)
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    begun = time.perf_counter()
    await asyncio.gather(*(post() for _ in range(WORKERS)))
    seconds = time.perf_counter() - begun
    done = True
    await watching
    return vms / seconds, lists


async def alone(cloud: Cloud, run: int, times: int = 20) -> list[float]:
    """Seconds from POST to `running`, one VM after another, nothing else going on."""
    result = []
    await cloud.vpc(100_000 + run)
    for number in range(times):
        begun = time.perf_counter()
        answer = await cloud.api.json("POST", "/vms", vm(f"alone-{run}-{number}", 100_000 + run))
        await cloud.ended(answer["operation"]["id"])
        result.append(time.perf_counter() - begun)
    return result


async def gets(cloud: Cloud, seconds: float = 4.0) -> float:
    """GETs of one VM a second, 16 at a time."""
    until = time.perf_counter() + seconds

    async def ask() -> int:
        connection, count = cloud.connection(), 0
        while time.perf_counter() < until:
            await connection.request("GET", "/vms/vm-7")
            count += 1
        return count

    return sum(await asyncio.gather(*(ask() for _ in range(16)))) / seconds


async def measure(nodes: int, vms: int, run: int, thin: bool) -> dict[str, float]:
    async with Cloud(nodes, thin=thin) as cloud:
        await cloud.join()
        await cloud.image()
        for number in range(-(-vms // VPC_SIZE)):
            await cloud.vpc(number)
        single = await alone(cloud, run)
        before = [cpu_seconds(pid) for pid in (cloud.manager.pid, cloud.simulated.pid, os.getpid())]
        rate, lists = await burst(cloud, vms)
        after = [cpu_seconds(pid) for pid in (cloud.manager.pid, cloud.simulated.pid, os.getpid())]
        cpu = [1e3 * (late - early) / vms for early, late in zip(before, after, strict=True)]
        return {
            "VMs a second, POST to running": rate,
            "CPU ms a VM, manager": cpu[0],
            "CPU ms a VM, simulated nodes": cpu[1],
            "CPU ms a VM, this client": cpu[2],
            "one VM alone, ms": 1e3 * statistics.median(single),
            "list of 100 in the burst, median ms": 1e3 * statistics.median(lists),
            "list of 100 in the burst, p99 ms": 1e3 * percentile(lists, 0.99),
            "GETs a second": await gets(cloud),
            f"manager memory at {vms + len(single)} VMs, MiB": resident_mib(cloud.manager.pid),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--vms", type=int, default=5000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--thin", action="store_true", help="nodes that are nothing but the link")
    options = parser.parse_args()
    runs = [asyncio.run(measure(options.nodes, options.vms, run, options.thin)) for run in range(options.runs)]
    print(f"{options.nodes} nodes, {options.vms} VMs, {options.runs} runs: median (min - max)")
    for name in runs[0]:
        values = [run[name] for run in runs]
        print(f"{name:44} {statistics.median(values):9.1f}  ({min(values):.1f} - {max(values):.1f})")


if __name__ == "__main__":
    main()
