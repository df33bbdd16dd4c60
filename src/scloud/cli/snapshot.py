"""`scloud snapshot`."""

from __future__ import annotations

from typing import Annotated

import typer

from scloud.cli.listing import print_list
from scloud.cli.looks import SNAPSHOT
from scloud.cli.options import AllAccountsOption, How, LimitOption, OutputOption, WatchOption, with_how
from scloud.cli.session import Output
from scloud.cli.standard import add_delete, add_rename, add_show, create, given, noun

app = noun("Snapshots: what a disk was like at a moment.")


@app.command("create")
@with_how
def create_snapshot(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    disk: Annotated[str, typer.Option("--disk", metavar="DISK", help="Of which disk.")],
    *,
    how: How,
) -> None:
    """Keep a disk's bytes as they are now, also while it is in use: as after a power cut."""
    create(SNAPSHOT, {"name": name, "spec": {"disk": disk}}, how)


@app.command("list")
def list_snapshots(
    disk: Annotated[str | None, typer.Option("--disk", help="Only those of this disk.")] = None,
    all_accounts: AllAccountsOption = False,
    limit: LimitOption = None,
    watch: WatchOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List snapshots, oldest first."""
    print_list(SNAPSHOT, given(disk=disk, all_accounts=all_accounts or None), output=output, watch=watch, limit=limit)


add_show(app, SNAPSHOT)
add_rename(app, SNAPSHOT)
add_delete(app, SNAPSHOT)
