"""`scloud subnet`."""

from __future__ import annotations

from typing import Annotated

import typer

from scloud.cli.listing import print_list
from scloud.cli.looks import SUBNET
from scloud.cli.options import AllAccountsOption, How, LimitOption, OutputOption, WatchOption, with_how
from scloud.cli.session import Output
from scloud.cli.standard import add_delete, add_rename, add_show, create, given, noun

app = noun("Subnets: address ranges of a VPC, routed to each other inside it.")


@app.command("create")
@with_how
def create_subnet(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    vpc: Annotated[str, typer.Option("--vpc", help="The VPC it belongs to.")],
    cidr: Annotated[
        str,
        typer.Option("--cidr", help="Its addresses, such as 10.0.1.0/24; the first two are the gateway's and DHCP's."),
    ],
    *,
    how: How,
) -> None:
    """Create a subnet."""
    create(SUBNET, {"name": name, "spec": {"vpc": vpc, "cidr": cidr}}, how)


@app.command("list")
def list_subnets(
    vpc: Annotated[str | None, typer.Option("--vpc", help="Only those of this VPC.")] = None,
    all_accounts: AllAccountsOption = False,
    limit: LimitOption = None,
    watch: WatchOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List subnets."""
    print_list(SUBNET, given(vpc=vpc, all_accounts=all_accounts or None), output=output, watch=watch, limit=limit)


add_show(app, SUBNET)
add_rename(app, SUBNET)
add_delete(app, SUBNET)
