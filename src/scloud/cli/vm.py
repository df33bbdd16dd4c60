"""`scloud vm`: the verbs, and those of them that are short."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from scloud.cli import human, vm_access, vm_actions, vm_create
from scloud.cli.listing import print_list
from scloud.cli.looks import VM
from scloud.cli.options import (
    AllAccountsOption,
    How,
    LimitOption,
    NameArgument,
    NamesArgument,
    OutputOption,
    WatchOption,
    with_how,
)
from scloud.cli.output import Column, card, emit, show
from scloud.cli.session import Output, connect, path
from scloud.cli.standard import add_rename, add_show, delete_all, given, noun

app = noun("Virtual machines: create them, switch them, reach them.")
app.command("create")(vm_create.create)


@app.command("list")
def list_vms(
    node: Annotated[str | None, typer.Option("--node", help="Only those on this node.")] = None,
    state: Annotated[str | None, typer.Option("--state", help="Only those in this state.")] = None,
    all_accounts: AllAccountsOption = False,
    limit: LimitOption = None,
    watch: WatchOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List VMs."""
    filters = given(node=node, state=state, all_accounts=all_accounts or None)
    print_list(VM, filters, output=output, watch=watch, limit=limit)


add_show(app, VM)
app.command("start")(vm_actions.start)
app.command("stop")(vm_actions.stop)
app.command("reboot")(vm_actions.reboot)
app.command("resize")(vm_actions.resize)
app.command("migrate")(vm_actions.migrate)
app.command("rebuild")(vm_actions.rebuild)
app.command("set")(vm_actions.set_values)
add_rename(app, VM)


@app.command("delete")
@with_how
def delete(
    names: NamesArgument,
    keep_disks: Annotated[
        bool,
        typer.Option("--keep-disks", help="System disks of a pool wait in the trash: `scloud disk trash` lists them."),
    ] = False,
    *,
    how: How,
) -> None:
    """Delete one VM or several, with their system disks; data disks are detached and stay."""
    delete_all(VM, names, how, keep_disks=keep_disks or None)


app.command("ssh")(vm_access.ssh)
app.command("port-forward")(vm_access.port_forward)
app.command("console")(vm_access.console)


@app.command("log")
def log(
    name: NameArgument,
    size: Annotated[int, typer.Option("--bytes", min=1, help="At most so many bytes from its end.")] = 65536,
) -> None:
    """Print the end of a VM's console log."""
    with connect() as client:
        text = client.get(path("vms", name, "log"), bytes=size) or ""
    sys.stdout.write(text if not text or text.endswith("\n") else f"{text}\n")


@app.command("figures")
def figures(name: NameArgument, output: OutputOption = Output.TABLE) -> None:
    """Show what CPU and memory a VM uses."""
    with connect() as client:
        found = client.get(path("vms", name, "figures"))
    if output is not Output.TABLE:
        emit(found, output)
        return
    rows = (
        Column("CPU time", lambda it: f"{it['cpu_seconds']:.1f} s"),
        Column("CPU now", lambda it: "" if it.get("cpu_fraction") is None else f"{it['cpu_fraction'] * 100:.1f} %"),
        Column("Memory", lambda it: human.size(it.get("memory_mib"))),
        Column("Used by the guest", lambda it: human.size(it["memory_used_mib"]) if it.get("memory_used_mib") else ""),
        Column("Held on the node", lambda it: human.size(it["resident_mib"]) if it.get("resident_mib") else ""),
    )
    show(card(rows, found))
