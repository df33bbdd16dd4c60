"""`scloud account`."""

from __future__ import annotations

from typing import Annotated

import typer

from scloud.cli.looks import ACCOUNT
from scloud.cli.options import AllAccountsOption, How, OutputOption, with_how
from scloud.cli.output import emit, show, table
from scloud.cli.session import Output, connect
from scloud.cli.standard import add_delete, add_list, add_show, create, given, noun
from scloud.cli.storage_use import COLUMNS, USAGE, with_total

app = noun("Accounts: tenants, none of whom sees another's things.")


@app.command("create")
@with_how
def create_account(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    admin: Annotated[
        bool, typer.Option("--admin", help="An administrator: sees all accounts, nodes, clusters.")
    ] = False,
    *,
    how: How,
) -> None:
    """Create an account; `scloud token create --account NAME` lets somebody in."""
    create(ACCOUNT, {"name": name, "spec": given(admin=admin or None)}, how)


add_list(app, ACCOUNT, tenant=False)
add_show(app, ACCOUNT)
add_delete(app, ACCOUNT)


@app.command("usage")
def usage(all_accounts: AllAccountsOption = False, output: OutputOption = Output.TABLE) -> None:
    """Show what an account's disks may grow to and really occupy, by disk type."""
    with connect() as client:
        items = client.get(USAGE, all_accounts=all_accounts or None)["items"]
    if output is not Output.TABLE:
        emit(items, output)
    elif not items:
        show("There are no disks.")
    else:
        show(table(COLUMNS, with_total(items)))
