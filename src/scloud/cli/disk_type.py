"""`scloud disk-type`."""

from __future__ import annotations

from typing import Annotated

import typer

from scloud.cli.options import How, with_how
from scloud.cli.standard import add_delete, add_list, add_rename, add_show, create, given, noun
from scloud.cli.storage_looks import DISK_TYPE

app = noun("Disk types: names for pools, made by administrators, that every account chooses disks by.")


@app.command("create")
@with_how
def create_disk_type(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, such as standard or performance.")],
    pool: Annotated[
        str | None, typer.Option("--pool", help="Where its disks are.", show_default="the nodes' local storage")
    ] = None,
    *,
    how: How,
) -> None:
    """Create a disk type."""
    create(DISK_TYPE, {"name": name, "spec": given(pool=pool)}, how)


add_list(app, DISK_TYPE, tenant=False)
add_show(app, DISK_TYPE)
add_rename(app, DISK_TYPE)
add_delete(app, DISK_TYPE)
