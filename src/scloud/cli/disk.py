"""`scloud disk`."""

from __future__ import annotations

from typing import Annotated

import typer

from scloud.cli.human import parse_size
from scloud.cli.listing import print_list
from scloud.cli.looks import DISK
from scloud.cli.options import (
    AllAccountsOption,
    How,
    LimitOption,
    NameArgument,
    OutputOption,
    TimeoutOption,
    WaitOption,
    WatchOption,
)
from scloud.cli.session import Output, parsed
from scloud.cli.standard import act, add_delete, add_rename, add_show, create, given, noun

app = noun("Disks: data disks, attached to and detached from running VMs.")
SizeOption = Annotated[str, typer.Option("--size", metavar="SIZE", help="Such as 512M or 10G.")]


@app.command("create")
def create_disk(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    size: SizeOption,
    output: OutputOption = Output.TABLE,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
) -> None:
    """Create an empty data disk."""
    body = {"name": name, "spec": {"size_mib": parsed(parse_size, size, "--size")}}
    create(DISK, body, How(output, wait, timeout))


@app.command("list")
def list_disks(
    vm: Annotated[str | None, typer.Option("--vm", help="Only those of this VM.")] = None,
    all_accounts: AllAccountsOption = False,
    limit: LimitOption = None,
    watch: WatchOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List disks, the VMs' system disks too."""
    print_list(DISK, given(vm=vm, all_accounts=all_accounts or None), output=output, watch=watch, limit=limit)


add_show(app, DISK)


@app.command("attach")
def attach(
    name: NameArgument,
    vm: Annotated[str, typer.Argument(metavar="VM", help="The VM to attach it to.")],
    output: OutputOption = Output.TABLE,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
) -> None:
    """Attach a disk to a VM, which may be running."""
    act(DISK, [name], "attach", {"vm": vm}, How(output, wait, timeout), f"attached to {vm}")


@app.command("detach")
def detach(
    name: NameArgument, output: OutputOption = Output.TABLE, wait: WaitOption = True, timeout: TimeoutOption = None
) -> None:
    """Detach a disk from its VM; its data stays."""
    act(DISK, [name], "detach", {}, How(output, wait, timeout), "detached")


@app.command("resize")
def resize(
    name: NameArgument,
    size: SizeOption,
    output: OutputOption = Output.TABLE,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
) -> None:
    """Grow a disk, also while it is attached. Disks never shrink."""
    body = {"size_mib": parsed(parse_size, size, "--size")}
    act(DISK, [name], "resize", body, How(output, wait, timeout), f"is {size} now")


add_rename(app, DISK)
add_delete(app, DISK)
