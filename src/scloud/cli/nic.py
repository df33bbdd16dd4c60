"""`scloud nic`."""

from __future__ import annotations

from typing import Annotated

import typer

from scloud.cli.follow import settle
from scloud.cli.listing import print_list
from scloud.cli.looks import NIC
from scloud.cli.options import AllAccountsOption, How, LimitOption, NameArgument, OutputOption, WatchOption, with_how
from scloud.cli.session import Output, connect, path
from scloud.cli.standard import act, add_delete, add_rename, add_show, create, given, noun

app = noun("Nics: network interfaces, added to and removed from running VMs.")
GroupsOption = Annotated[
    list[str] | None,
    typer.Option("--security-group", metavar="GROUP", help="Security group; repeat for several.", show_default=False),
]


@app.command("create")
@with_how
def create_nic(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    subnet: Annotated[str, typer.Option("--subnet", help="The subnet it is in.")],
    ip: Annotated[str | None, typer.Option("--ip", help="Its address.", show_default="next free")] = None,
    security_group: GroupsOption = None,
    vm: Annotated[str | None, typer.Option("--vm", help="Attach it to this VM.")] = None,
    *,
    how: How,
) -> None:
    """Create a nic."""
    spec = given(subnet=subnet, ip=ip, security_groups=security_group, vm=vm)
    create(NIC, {"name": name, "spec": spec}, how)


@app.command("list")
def list_nics(
    vm: Annotated[str | None, typer.Option("--vm", help="Only those of this VM.")] = None,
    vpc: Annotated[str | None, typer.Option("--vpc", help="Only those in this VPC.")] = None,
    subnet: Annotated[str | None, typer.Option("--subnet", help="Only those in this subnet.")] = None,
    all_accounts: AllAccountsOption = False,
    limit: LimitOption = None,
    watch: WatchOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List nics."""
    filters = given(vm=vm, vpc=vpc, subnet=subnet, all_accounts=all_accounts or None)
    print_list(NIC, filters, output=output, watch=watch, limit=limit)


add_show(app, NIC)


@app.command("attach")
@with_how
def attach(
    name: NameArgument,
    vm: Annotated[str, typer.Argument(metavar="VM", help="The VM to attach it to.")],
    *,
    how: How,
) -> None:
    """Attach a nic to a VM, which may be running."""
    act(NIC, [name], "attach", {"vm": vm}, how, f"attached to {vm}")


@app.command("detach")
@with_how
def detach(name: NameArgument, *, how: How) -> None:
    """Detach a nic from its VM; it keeps its addresses."""
    act(NIC, [name], "detach", {}, how, "detached")


@app.command("set")
@with_how
def set_groups(
    name: NameArgument,
    security_group: GroupsOption = None,
    no_security_group: Annotated[
        bool, typer.Option("--no-security-group", help="Take all away: only DHCP, DNS and metadata pass then.")
    ] = False,
    *,
    how: How,
) -> None:
    """Put a nic into other security groups: the ones named here, instead of those it has."""
    if bool(security_group) == no_security_group:
        raise typer.BadParameter("say --security-group, or --no-security-group")
    with connect() as client:
        answer = client.patch(path("nics", name), {"spec": {"security_groups": security_group or []}})
        settle(client, answer, how, "changed", "changed")


add_rename(app, NIC)
add_delete(app, NIC)
