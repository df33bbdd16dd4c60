"""`scloud cluster`."""

from __future__ import annotations

from typing import Annotated

import typer

from scloud.cli.follow import settle
from scloud.cli.looks import CLUSTER
from scloud.cli.options import How, NameArgument, OutputOption, TimeoutOption, WaitOption
from scloud.cli.session import Output, connect, path
from scloud.cli.standard import add_list, add_show, noun

app = noun("Clusters: nodes of one architecture.")
add_list(app, CLUSTER, tenant=False)
add_show(app, CLUSTER)


@app.command("set")
def set_values(
    name: NameArgument,
    cpu_overcommit: Annotated[
        float,
        typer.Option("--cpu-overcommit", min=1.0, max=16.0, help="Virtual CPUs promised for each physical one."),
    ],
    output: OutputOption = Output.TABLE,
    wait: WaitOption = True,
    timeout: TimeoutOption = None,
) -> None:
    """Change how much a cluster's nodes may promise."""
    with connect() as client:
        answer = client.patch(path("clusters", name), {"spec": {"cpu_overcommit": cpu_overcommit}})
        settle(client, answer, How(output, wait, timeout), "changed", "changed")
