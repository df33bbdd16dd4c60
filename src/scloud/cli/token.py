"""`scloud token`."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from scloud.cli.human import ago, parse_duration
from scloud.cli.looks import age
from scloud.cli.options import OutputOption
from scloud.cli.output import Column, Resource, emit, note, say, show, table
from scloud.cli.session import Output, connect, parsed, path
from scloud.cli.standard import given, noun

app = noun("Tokens: secrets that programs and people log in with.")


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")],
    account: Annotated[
        str | None, typer.Option("--account", help="For this account (administrators only).", show_default="your own")
    ] = None,
    ttl: Annotated[
        str | None,
        typer.Option(
            "--ttl", metavar="DURATION", help="How long it is good, such as 12h or 30d.", show_default="for ever"
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Create a token and print its secret, which cannot be shown again."""
    ttl_s = None if ttl is None else parsed(parse_duration, ttl, "--ttl")
    with connect() as client:
        answer = client.post("/tokens", {"name": name, **given(account=account, ttl_s=ttl_s)})
        url = client.context.url
    if output is not Output.TABLE:
        emit(answer, output)
        return
    say(answer["secret"])
    note(f"It is shown this once. To use it: scloud context add NAME --url {url} --token SECRET")


def _expiry(token: Resource) -> str:
    until = token.get("expires_at")
    if not until:
        return "never"
    left = until - time.time()
    return ago(-left) if left > 0 else "expired"


@app.command("list")
def list_tokens(output: OutputOption = Output.TABLE) -> None:
    """List tokens, without their secrets."""
    with connect() as client:
        items = list(client.pages("/tokens"))
    if output is not Output.TABLE:
        emit(items, output)
        return
    columns = (
        Column("ID", lambda token: token["id"]),
        Column("NAME", lambda token: token["name"]),
        Column("EXPIRES", _expiry),
        Column("AGE", age()),
    )
    show(table(columns, items) if items else "There is no token here.")


@app.command("delete")
def delete(
    token: Annotated[str, typer.Argument(metavar="ID", help="As `token list` tells it.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Delete a token: who has its secret is locked out at once."""
    with connect() as client:
        client.delete(path("tokens", token))
    if output is Output.TABLE:
        say(f"{token} deleted")
    else:
        emit({"id": token, "deleted": True}, output)
