"""`scloud operation`."""

from __future__ import annotations

from typing import Annotated

import typer

from scloud.cli.follow import await_operations
from scloud.cli.listing import print_list, print_resource, print_resources, show_one
from scloud.cli.looks import OPERATION
from scloud.cli.options import LimitOption, OutputOption, TimeoutOption, WatchOption
from scloud.cli.output import say
from scloud.cli.session import Output, connect, path
from scloud.cli.standard import given, noun

app = noun("Operations: what was asked for, and how far it is.")
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The operation's id.")]


@app.command("list")
def list_operations(
    state: Annotated[
        str | None, typer.Option("--state", help="Only those: queued, running, done, failed or cancelled.")
    ] = None,
    resource: Annotated[
        str | None, typer.Option("--resource", metavar="ID", help="Only those on this resource.")
    ] = None,
    limit: LimitOption = 50,
    watch: WatchOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List operations, the newest first."""
    print_list(OPERATION, given(state=state, resource=resource), output=output, watch=watch, limit=limit)


@app.command("show")
def show(operation: IdArgument, output: OutputOption = Output.TABLE) -> None:
    """Show one operation in full."""
    show_one(OPERATION, operation, output)


@app.command("wait")
def wait(
    operations: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of operations.")],
    timeout: TimeoutOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Wait until operations have ended; exit 1 if one of them failed."""
    with connect() as client:
        begun = [client.get(path("operations", operation)) for operation in operations]
        ended, errors = await_operations(client, begun, timeout)
        if len(ended) == 1:
            print_resource(client, OPERATION, ended[0], output)
        else:
            print_resources(client, OPERATION, ended, output)
    if errors:
        raise errors[0]


@app.command("cancel")
def cancel(operation: IdArgument, output: OutputOption = Output.TABLE) -> None:
    """Call back a creation or an import that is under way: what was made of it is removed."""
    with connect() as client:
        answer = client.post(path("operations", operation, "cancel"))
        if output is Output.TABLE:
            say(f"{operation} is {answer['operation']['state']}")
        else:
            print_resource(client, OPERATION, answer["operation"], output)
