"""`scloud context`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scloud.cli.options import OutputOption
from scloud.cli.output import Column, card, emit, say, show, table
from scloud.cli.session import Output, path
from scloud.cli.standard import noun

app = noun("Contexts: which cloud to talk to, and as whom. SCLOUD_CONTEXT picks one for a single command.")
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The context's name.")]


@app.command("list")
def list_contexts(output: OutputOption = Output.TABLE) -> None:
    """List the clouds known here."""
    from scloud.client.contexts import read_contexts

    contents = read_contexts()
    items: list[dict[str, Any]] = [
        {
            "name": item.name,
            "url": item.url,
            "ca": str(item.ca) if item.ca else None,
            "current": name == contents.current,
        }
        for name, item in sorted(contents.contexts.items())
    ]
    if output is not Output.TABLE:
        emit(items, output)
        return
    columns = (
        Column("", lambda item: "*" if item["current"] else ""),
        Column("NAME", lambda item: item["name"]),
        Column("URL", lambda item: item["url"]),
    )
    show(table(columns, items) if items else "No cloud is known here.")


@app.command("use")
def use(name: NameArgument) -> None:
    """Make a context the current one."""
    from scloud.client.contexts import use_context

    say(f"{use_context(name).name} is the current context")


@app.command("show")
def show_context(output: OutputOption = Output.TABLE) -> None:
    """Show the context in use, without its secret, and which account it is."""
    from scloud.client.contexts import current_context
    from scloud.client.http import Client
    from scloud.model.errors import CloudError

    context = current_context()
    found: dict[str, Any] = {"name": context.name, "url": context.url, "ca": str(context.ca) if context.ca else None}
    problem = ""
    try:
        with Client(context) as client:
            found.update(client.get("/whoami"))
    except CloudError as error:
        problem = error.message
    if output is not Output.TABLE:
        emit(found, output)
        return
    rows = (
        Column("Name", lambda it: it["name"]),
        Column("URL", lambda it: it["url"]),
        Column("CA", lambda it: it["ca"] or ""),
        Column("Account", lambda it: it["account"]["name"] if "account" in it else f"unknown: {problem}"),
        Column("Role", lambda it: "" if "admin" not in it else "administrator" if it["admin"] else "tenant"),
    )
    show(card(rows, found))


@app.command("add")
def add(
    name: NameArgument,
    url: Annotated[str, typer.Option("--url", help="The manager's address, such as http://10.0.0.1:7070.")],
    token: Annotated[str, typer.Option("--token", help="The secret of a token.", prompt=True, hide_input=True)],
    ca: Annotated[Path | None, typer.Option("--ca", help="PEM file of the authority to trust for https.")] = None,
    use: Annotated[bool, typer.Option("--use/--no-use", help="Make it the current one.")] = True,
) -> None:
    """Remember a cloud, or replace what is remembered under this name."""
    from scloud.client.contexts import Context, save_context
    from scloud.client.http import Client

    path("contexts", name)
    context = Context(name, url.rstrip("/"), token, ca.absolute() if ca else None)
    Client(context).close()  # refuses a URL or a CA file that cannot work
    save_context(context, make_current=use)
    say(f"{name} added" + (", and is the current context" if use else ""))


@app.command("delete")
def delete(name: NameArgument) -> None:
    """Forget a context."""
    from scloud.client.contexts import remove_context
    from scloud.client.problems import failure

    if not remove_context(name):
        raise failure("not_found", f"there is no context '{name}'")
    say(f"{name} forgotten")
