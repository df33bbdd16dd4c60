"""`scloud cluster`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import typer

from scloud.cli.follow import settle
from scloud.cli.human import ago, parse_duration
from scloud.cli.looks import CLUSTER
from scloud.cli.options import How, NameArgument, with_how
from scloud.cli.output import Column, Resource, emit, say, show, table
from scloud.cli.relocations import print_relocation
from scloud.cli.session import Output, connect, parsed, path
from scloud.cli.standard import add_list, add_show, given, noun

app = noun("Clusters: nodes of one architecture.")
add_list(app, CLUSTER, tenant=False)
add_show(app, CLUSTER)


@app.command("set")
@with_how
def set_values(
    name: NameArgument,
    cpu_overcommit: Annotated[
        float | None,
        typer.Option("--cpu-overcommit", min=1.0, max=16.0, help="Virtual CPUs promised for each physical one."),
    ] = None,
    moves_at_once: Annotated[
        int | None, typer.Option("--moves-at-once", min=1, max=256, help="VMs that a drain or rebalance moves at once.")
    ] = None,
    moves_per_node: Annotated[
        int | None, typer.Option("--moves-per-node", min=1, max=32, help="Of these, from or to one node.")
    ] = None,
    rebalance_every: Annotated[
        str | None, typer.Option("--rebalance-every", metavar="TIME", help="By itself, such as 6h or 1d; or off.")
    ] = None,
    rebalance_window: Annotated[
        str | None,
        typer.Option("--rebalance-window", metavar="HH:MM-HH:MM", help="Only then, UTC; 00:00-00:00 is always."),
    ] = None,
    rebalance_moves: Annotated[
        int | None, typer.Option("--rebalance-moves", min=1, max=100, help="Moves of each, at most.")
    ] = None,
    *,
    how: How,
) -> None:
    """Change how much a cluster's nodes may promise, and how VMs are moved between them."""
    every = None
    if rebalance_every is not None:
        every = 0 if rebalance_every == "off" else parsed(parse_duration, rebalance_every, "--rebalance-every")
    relocation = given(
        at_once=moves_at_once,
        per_node=moves_per_node,
        rebalance_every_s=every,
        rebalance_window=rebalance_window,
        rebalance_moves=rebalance_moves,
    )
    spec = given(cpu_overcommit=cpu_overcommit, relocation=relocation or None)
    if not spec:
        raise typer.BadParameter("say what to change: see --help")
    with connect() as client:
        answer = client.patch(path("clusters", name), {"spec": spec})
        settle(client, answer, how, "changed", "changed")


@app.command("rebalance")
@with_how
def rebalance(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")] = "default",
    limit: Annotated[int, typer.Option("--limit", min=1, max=100, help="Moves at most.")] = 20,
    apply: Annotated[bool, typer.Option("--apply", help="Make the moves.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Begin no more moves.")] = False,
    *,
    how: How,
) -> None:
    """Propose moves of VMs that would even out the load, the best first, and show what the last ones did.

    Nothing is moved without --apply.
    """
    if apply and stop:
        raise typer.BadParameter("say --apply or --stop")
    with connect() as client:
        if apply or stop:
            body = {"stop": True} if stop else {"limit": limit}
            answer = client.post(path("clusters", name, "actions", "rebalance"), body)
            settle(client, answer, how, "changed", "changed")
            if how.output is not Output.TABLE or not how.wait:
                return
            done = client.get(path("clusters", name, "rebalance"), limit=1)["runs"]
            if done:
                print_relocation(done[0])
            return
        found = client.get(path("clusters", name, "rebalance"), limit=limit)
    if how.output is not Output.TABLE:
        emit(found, how.output)
        return
    if found["moves"]:
        moves = (
            Column("VM", lambda it: it["name"]),
            Column("FROM", lambda it: it["source"]),
            Column("TO", lambda it: it["target"]),
            Column("GAIN", lambda it: f"{it['gain']:.2f}", right=True),
        )
        show(table(moves, found["moves"]))
        show(table(_FULL, found["nodes"]))
    else:
        say("Nothing is worth moving: no move would gain a tenth of a node.")
    for reason, number in sorted(found["stays"].items()):
        say(f"{number} VM{'' if number == 1 else 's'} left out: {reason}")
    if found["runs"]:
        show(table(_RUNS, found["runs"]))
    if found["next_at"] is not None:
        say(f"The next one begins by itself {ago(time.time() - found['next_at'])}.")


def _percent(key: str) -> Callable[[Resource], str]:
    return lambda item: f"{100 * item[key]:.0f}%"


_FULL = (
    Column("NODE", lambda it: it["node"]),
    Column("PROMISED NOW", _percent("before"), right=True),
    Column("AFTERWARDS", _percent("after"), right=True),
)
_RUNS = (
    Column("LAST", lambda it: ago(time.time() - it["began_at"])),
    Column("BY", lambda it: it["by"]),
    Column("STATE", lambda it: it["state"], state=True),
    Column("MOVED", lambda it: f"{it['counts']['moved']} of {len(it['moves'])}", right=True),
    Column("GAIN", lambda it: f"{it['gained']:.2f}", right=True),
)
