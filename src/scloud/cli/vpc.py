"""`scloud vpc`."""

from __future__ import annotations

from typing import Annotated

import typer

from scloud.cli.looks import VPC
from scloud.cli.options import How, with_how
from scloud.cli.standard import add_delete, add_list, add_rename, add_show, create, given, noun

app = noun("VPCs: private networks, isolated from one another even where their addresses are equal.")


@app.command("create")
@with_how
def create_vpc(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    vni: Annotated[
        int | None,
        typer.Option("--vni", min=1, max=2**24 - 1, help="Its VXLAN network identifier.", show_default="a free one"),
    ] = None,
    *,
    how: How,
) -> None:
    """Create a VPC."""
    create(VPC, {"name": name, "spec": given(vni=vni)}, how)


add_list(app, VPC)
add_show(app, VPC)
add_rename(app, VPC)
add_delete(app, VPC)
