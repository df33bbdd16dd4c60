"""`scloud node`."""

from __future__ import annotations

from typing import Annotated, ClassVar

import typer

from scloud.cli.follow import settle
from scloud.cli.lazy import Entry, LazyGroup
from scloud.cli.looks import NODE
from scloud.cli.options import How, NameArgument, NamesArgument, OutputOption, with_how
from scloud.cli.output import emit, say
from scloud.cli.relocations import print_relocation
from scloud.cli.session import Output, connect, path
from scloud.cli.standard import act, add_list, add_show, given


class NodeGroup(LazyGroup):
    """`join` belongs to the set-up of a machine, and is imported from there when it is used."""

    entries: ClassVar[dict[str, Entry]] = {
        "join": Entry("scloud.setup.commands:node_join", "Make this machine a node (as root).")
    }


app = typer.Typer(
    cls=NodeGroup, help="Nodes: the machines that VMs run on.", no_args_is_help=True, add_completion=False
)


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    cluster: Annotated[
        str | None, typer.Option("--cluster", help="The cluster it joins.", show_default="the default one")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Expect a new node, and print the one command to run on it."""
    with connect() as client:
        answer = client.post("/nodes", {"name": name, "spec": given(cluster=cluster)})
    if output is not Output.TABLE:
        emit({**answer["resource"], "join": answer["join"]}, output)
        return
    say(f"Run this as root on {name}:\n\n  {answer['join']['command']}\n")


add_list(app, NODE, tenant=False)
add_show(app, NODE)


@app.command("cordon")
@with_how
def cordon(names: NamesArgument, *, how: How) -> None:
    """Place no more VMs on a node; those on it stay."""
    act(NODE, names, "cordon", {}, how, "takes no new VMs")


@app.command("uncordon")
@with_how
def uncordon(names: NamesArgument, *, how: How) -> None:
    """Place VMs on a node again; a drain is undone with that."""
    act(NODE, names, "uncordon", {}, how, "takes new VMs")


@app.command("drain")
@with_how
def drain(names: NamesArgument, *, how: How) -> None:
    """Empty a node for maintenance: its VMs move to others, live, and none comes.

    Fails with the reason of each VM that cannot leave; the node goes on being drained, and they leave when they can.
    """
    act(NODE, names, "drain", {}, how, "is drained: nothing runs on it")


@app.command("undrain")
@with_how
def undrain(
    names: NamesArgument,
    cancel: Annotated[bool, typer.Option("--cancel", help="Moves under way come to nothing.")] = False,
    *,
    how: How,
) -> None:
    """Open a node again, at any moment. What has left does not come back: see `scloud cluster rebalance`."""
    act(NODE, names, "undrain", {"cancel": cancel}, how, "takes new VMs")


@app.command("moves")
def moves(name: NameArgument, output: OutputOption = Output.TABLE) -> None:
    """Show what has become of each VM of a node since its drain began."""
    with connect() as client:
        found = client.get(path("nodes", name, "drain"))
    if output is not Output.TABLE:
        emit(found, output)
    elif found["drain"] is None:
        say(f"{name} was never drained.")
    else:
        print_relocation(found["drain"])


@app.command("label")
@with_how
def label(
    name: NameArgument,
    labels: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE...", help="Such as rack=r1 or datacenter=d1; KEY= takes it away.")
    ],
    *,
    how: How,
) -> None:
    """Say where a node stands: storage keeps copies in different racks and datacenters by these labels."""
    changed: dict[str, str] = {}
    for text in labels:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"'{text}' is not KEY=VALUE", param_hint="'KEY=VALUE...'")
        changed[key] = value
    with connect() as client:
        known = client.get(path("nodes", name))["spec"].get("labels") or {}
        merged = {key: value for key, value in {**known, **changed}.items() if value}
        answer = client.patch(path("nodes", name), {"spec": {"labels": merged}})
        settle(client, answer, how, "is labelled", "changed")


@app.command("remove")
@with_how
def remove(
    name: NameArgument,
    force: Annotated[bool, typer.Option("--force", help="It is lost, and what only it has goes with it.")] = False,
    powered_off: Annotated[
        bool, typer.Option("--powered-off", help="Its machine is off and stays off: take it out at once.")
    ] = False,
    *,
    how: How,
) -> None:
    """Take a node out of the cloud.

    A lost node may run on behind cut wires: with --force it is cut off from its storage first, and out when that is
    certain. --powered-off is your promise that it is not, for when its storage cannot be asked.
    """
    ask = given(force=force or powered_off or None, powered_off=powered_off or None)
    with connect() as client:
        answer = client.delete(path("nodes", name), **ask)
        settle(client, answer, how, "removed", "gone")
