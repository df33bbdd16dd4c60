"""`scloud placement-group`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from scloud.cli.looks import PLACEMENT_GROUP
from scloud.cli.options import How, with_how
from scloud.cli.standard import add_delete, add_list, add_rename, add_show, create, noun

app = noun("Placement groups: VMs to keep on different nodes, or in different racks.")


class Policy(StrEnum):
    SOFT = "soft"
    HARD = "hard"


class Over(StrEnum):
    NODE = "node"
    RACK = "rack"


@app.command("create")
@with_how
def create_group(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    policy: Annotated[
        Policy, typer.Option("--policy", help="hard never puts two members in one place, soft avoids it.")
    ] = Policy.SOFT,
    over: Annotated[
        Over, typer.Option("--over", help="The places: nodes, or racks (`scloud node label NAME rack=r1`).")
    ] = Over.NODE,
    *,
    how: How,
) -> None:
    """Create a placement group."""
    create(
        PLACEMENT_GROUP,
        {"name": name, "spec": {"policy": policy.value, "over": over.value}},
        how,
    )


add_list(app, PLACEMENT_GROUP)
add_show(app, PLACEMENT_GROUP)
add_rename(app, PLACEMENT_GROUP)
add_delete(app, PLACEMENT_GROUP)
