"""`scloud cluster`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from scloud.cli.follow import settle
from scloud.cli.human import size
from scloud.cli.looks import CLUSTER
from scloud.cli.options import How, NameArgument, OutputOption, TimeoutOption, WaitOption
from scloud.cli.output import Column, Resource, emit, say, show, table
from scloud.cli.session import Output, connect, path
from scloud.cli.standard import add_list, add_show, noun

app = noun("Clusters: nodes of one architecture.")
add_list(app, CLUSTER, tenant=False)
add_show(app, CLUSTER)


@app.command("set")
def set_values(
    name: NameArgument,
    cpu_overcommit: Annotated[
        float,
        typer.Option("--cpu-overcommit", min=1.0, max=16.0, help="Virtual CPUs promised for each physical one."),
    ],
    output: OutputOption = Output.TABLE,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
) -> None:
    """Change how much a cluster's nodes may promise."""
    with connect() as client:
        answer = client.patch(path("clusters", name), {"spec": {"cpu_overcommit": cpu_overcommit}})
        settle(client, answer, How(output, wait, timeout), "changed", "changed")


@app.command("rebalance")
def rebalance(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")] = "default",
    limit: Annotated[int, typer.Option("--limit", min=1, max=100, help="Moves at most.")] = 20,
    output: OutputOption = Output.TABLE,
) -> None:
    """Propose moves of VMs that would even out the load, the best first. Nothing is moved."""
    with connect() as client:
        found = client.get(path("clusters", name, "rebalance"), limit=limit)
    if output is not Output.TABLE:
        emit(found, output)
        return
    if found["moves"]:
        moves = (
            Column("VM", lambda it: it["name"]),
            Column("FROM", lambda it: it["source"]),
            Column("TO", lambda it: it["target"]),
            Column("GAIN", lambda it: f"{it['gain']:.2f}", right=True),
            Column("DISK TO COPY", lambda it: size(it["copy_mib"]) if it["copy_mib"] else "-", right=True),
        )
        show(table(moves, found["moves"]))
        show(table(_FULL, found["nodes"]))
    else:
        say("Nothing is worth moving: no move would gain a tenth of a node.")
    for reason, number in sorted(found["stays"].items()):
        say(f"{number} VM{'' if number == 1 else 's'} left out: {reason}")


def _percent(key: str) -> Callable[[Resource], str]:
    return lambda item: f"{100 * item[key]:.0f}%"


_FULL = (
    Column("NODE", lambda it: it["node"]),
    Column("PROMISED NOW", _percent("before"), right=True),
    Column("AFTERWARDS", _percent("after"), right=True),
)
