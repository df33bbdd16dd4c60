"""`scloud placement-group`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from scloud.cli.looks import PLACEMENT_GROUP
from scloud.cli.options import How, OutputOption, TimeoutOption, WaitOption
from scloud.cli.session import Output
from scloud.cli.standard import add_delete, add_list, add_rename, add_show, create, noun

app = noun("Placement groups: VMs to keep on different nodes.")


class Policy(StrEnum):
    SOFT = "soft"
    HARD = "hard"


@app.command("create")
def create_group(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    policy: Annotated[
        Policy, typer.Option("--policy", help="hard refuses to put two members on one node, soft avoids it.")
    ] = Policy.SOFT,
    output: OutputOption = Output.TABLE,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
) -> None:
    """Create a placement group."""
    create(PLACEMENT_GROUP, {"name": name, "spec": {"policy": policy.value}}, How(output, wait, timeout))


add_list(app, PLACEMENT_GROUP)
add_show(app, PLACEMENT_GROUP)
add_rename(app, PLACEMENT_GROUP)
add_delete(app, PLACEMENT_GROUP)
