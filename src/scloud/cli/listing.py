"""`list` and `show` of every kind."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scloud.cli.human import clean
from scloud.cli.looks import Look, at
from scloud.cli.names import Names
from scloud.cli.output import Resource, card, console, emit, show, style_of, table
from scloud.cli.session import Output, connect, path

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

    from scloud.client.http import Client

WATCH_S = 2.0


def print_list(
    look: Look,
    filters: Mapping[str, Any] | None = None,
    *,
    output: Output = Output.TABLE,
    watch: bool = False,
    limit: int | None = None,
) -> None:
    """All resources of a kind that match the filters; again and again with `watch`."""
    with connect() as client:
        if not watch:
            print_resources(client, look, _fetch(client, look, filters, limit), output)
        elif output is Output.TABLE and sys.stdout.isatty():
            _watch_live(client, look, filters, limit)
        else:
            while True:
                print_resources(client, look, _fetch(client, look, filters, limit), output)
                sys.stdout.flush()
                time.sleep(WATCH_S)


def _fetch(client: Client, look: Look, filters: Mapping[str, Any] | None, limit: int | None) -> list[Resource]:
    items = list(client.pages(f"/{look.collection}", filters, limit=limit))
    if look.beside is not None and items:
        look.beside(client, items)
    return items


def _watch_live(client: Client, look: Look, filters: Mapping[str, Any] | None, limit: int | None) -> None:
    from rich.live import Live

    with Live(console=console(), screen=True, auto_refresh=False) as live:
        while True:
            live.update(_rendered(client, look, _fetch(client, look, filters, limit)), refresh=True)
            time.sleep(WATCH_S)


def print_resources(client: Client, look: Look, items: Sequence[Resource], output: Output) -> None:
    """Several resources: a table, or one array."""
    if output is not Output.TABLE:
        emit(list(items), output)
    elif not items:
        show(f"There is no {look.noun} here.")
    else:
        show(_rendered(client, look, items))


def print_resource(client: Client, look: Look, item: Resource, output: Output) -> None:
    """One resource: a card, or one object."""
    if output is not Output.TABLE:
        emit(item, output)
        return
    show(card(look.card(_names(client, look, [item])), item))


def show_one(look: Look, ref: str, output: Output) -> None:
    with connect() as client:
        item = client.get(path(look.collection, ref))
        if look.beside is not None:
            look.beside(client, [item])
        print_resource(client, look, item, output)


def _names(client: Client, look: Look, items: Sequence[Resource]) -> Names:
    wanted: dict[str, set[str]] = {}
    for collection, refs in look.refs:
        wanted.setdefault(collection, set()).update(ref for item in items for ref in refs(item) if ref)
    return Names(client, wanted)


def _rendered(client: Client, look: Look, items: Sequence[Resource]) -> Group:
    """The table, and below it the reason of whatever is not as wanted."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [table(look.columns(_names(client, look, items)), items)]
    for item in items:
        reason = at(item, "status.reason") or at(item, "error.message")
        if reason:
            state = str(at(item, "status.state") or item.get("state"))
            name = item.get("name") or at(item, "resource.name")
            parts.append(Text.assemble((f"{name}: ", style_of(state)), clean(str(reason))))
    return Group(*parts)
