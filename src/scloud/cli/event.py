"""`scloud event`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scloud.cli.human import clean
from scloud.cli.options import OutputOption
from scloud.cli.output import Column, Resource, console, emit, show, style_of, table
from scloud.cli.session import Output, connect
from scloud.cli.standard import given, noun

if TYPE_CHECKING:
    from scloud.client.http import Client

app = noun("Events: what has happened.")
WAIT_S = 20.0
"""How long one request waits for something to happen."""


class Level(StrEnum):
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def _when(event: Resource) -> str:
    return time.strftime("%m-%d %H:%M:%S", time.localtime(event["at"]))


def _about(event: Resource) -> str:
    resource = event.get("resource") or {}
    return " ".join(filter(None, (resource.get("kind"), resource.get("name"))))


_COLUMNS = (
    Column("TIME", _when),
    Column("LEVEL", lambda event: event["level"], state=True),
    Column("ABOUT", _about),
    Column("MESSAGE", lambda event: event["message"]),
)


@app.command("list")
def list_events(
    resource: Annotated[str | None, typer.Option("--resource", metavar="ID", help="Only those about this one.")] = None,
    level: Annotated[Level | None, typer.Option("--level", help="Only those of this level.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, the newest.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing them as they happen.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List events, the newest last. With --follow, -o json prints one object a line."""
    filters = given(resource=resource, level=level.value if level else None)
    with connect() as client:
        items = list(client.pages("/events", filters, limit=limit))[::-1]
        if follow:
            _follow(client, filters, items, output)
        elif output is Output.TABLE:
            show(table(_COLUMNS, items) if items else "There is no event here.")
        else:
            emit(items, output)


def _follow(client: Client, filters: Mapping[str, Any], items: Sequence[Resource], output: Output) -> None:
    """Print what is there, then what comes, until interrupted. Ids grow with time, so the last one is the position."""
    last = items[-1]["id"] if items else None
    while True:
        for item in items:
            _print_line(item, output)
        items = list(client.pages("/events", {**filters, **given(after=last), "wait": WAIT_S}))[::-1]
        last = items[-1]["id"] if items else last


def _print_line(event: Resource, output: Output) -> None:
    if output is Output.JSON:
        print(json.dumps(event, ensure_ascii=False), flush=True)
    elif output is Output.YAML:
        print("---")
        emit(event, output)
    else:
        from rich.text import Text

        level = event["level"]
        text = Text.assemble(f"{_when(event)}  ", (f"{level:<7}", style_of(level)), f"  {_about(event)}  ")
        text.append(clean(event["message"]))
        console().print(text)
