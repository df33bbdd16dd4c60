"""`scloud sim`: how big a cloud this manager carries on this machine."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

import typer

from scloud.cli.options import OutputOption
from scloud.cli.session import Output


def sim(
    nodes: Annotated[int, typer.Option("--nodes", min=1, max=20000, help="Simulated nodes.")] = 100,
    vms: Annotated[int, typer.Option("--vms", min=1, max=500_000, help="VMs to make on them.")] = 1000,
    churn: Annotated[float, typer.Option("--churn", min=0, metavar="SECONDS", help="How long VMs come and go.")] = 20.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the churn.")] = 1,
    output: OutputOption = Output.TABLE,
) -> None:
    """Run a real manager with simulated nodes: they join, VMs come and go, links break, the manager is killed.

    Nodes speak the real link (mutual TLS), but run nothing. Everything is in a folder of its own, and gone at the end.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table

    from scloud.sim.scale import Scale, Watcher

    columns = (TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        phase = [progress.add_task("the manager starts", total=None)]

        def begin(title: str, total: int) -> None:
            done = progress.tasks[phase[0]]
            progress.update(phase[0], completed=done.total or 1, total=done.total or 1)
            phase[0] = progress.add_task(title, total=total)

        watcher = Watcher(begin, lambda count: progress.update(phase[0], completed=count))
        figures = asyncio.run(Scale(nodes, vms, churn, seed, watcher).run())
    if output is not Output.TABLE:
        print(json.dumps(figures.as_dict(), indent=2))
    else:
        table = Table("What", "Figure", box=None, header_style="dim")
        table.columns[1].justify = "right"
        for what, figure in (
            (f"{nodes} nodes have joined", f"{figures.join_s:.1f} s"),
            ("manager, nothing but heartbeats", f"{figures.idle_cpu:.0%} of a processor, {figures.idle_mib:.0f} MiB"),
            (f"{vms} VMs, from POST to running", f"{figures.vms_a_second:.0f} a second"),
            ("manager's processor time", f"{figures.manager_ms_a_vm:.1f} ms a VM"),
            ("list of 100 VMs meanwhile", "{:.0f} ms, p99 {:.0f} ms".format(*figures.list_ms)),
            ("manager with all VMs, heartbeats", f"{figures.loaded_cpu:.0%}, {figures.loaded_mib:.0f} MiB"),
            *((f"in {churn:.0f} s of churn: {kind}", str(count)) for kind, count in sorted(figures.churn.items())),
            ("list of 100 VMs meanwhile", "{:.0f} ms, p99 {:.0f} ms".format(*figures.churn_list_ms)),
            ("manager killed: has every node again", f"{figures.restart_s:.1f} s"),
            ("... and says what runs", f"{figures.agreed_s:.1f} s later"),
            ("operations that failed", str(len(figures.failed))),
            ("said to run, and does not", str(figures.lost)),
            ("runs, and is not said to", str(figures.stray)),
        ):
            table.add_row(what, figure)
        Console().print(table)
        for reason in sorted(set(figures.failed))[:5]:
            print(f"failed: {reason}")
    raise typer.Exit(1 if figures.lost or figures.stray or figures.failed else 0)
