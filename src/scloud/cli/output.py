"""Printing: tables that fit the terminal, two-column cards, JSON and YAML."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scloud.cli.human import clean
from scloud.cli.session import Output

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

Resource = dict[str, Any]

STATE_STYLE = {
    **dict.fromkeys(("ready", "running", "done", "delivered", "pass", "yes"), "green"),
    **dict.fromkeys(("error", "failed", "down", "unknown", "dropped", "drop", "no"), "red"),
    **dict.fromkeys(("stopped", "cancelled", "info"), "dim"),
    "warning": "yellow",
}
"""Colours of states and verdicts; what is on its way is yellow."""

_MOVING = frozenset({"pending", "creating", "starting", "stopping", "updating", "deleting", "joining", "queued"})
PIPE_WIDTH = 500
"""Where the reader is a program, no column is cut short."""


@dataclass(frozen=True)
class Column:
    """A column of a table or a row of a card. `state` values are coloured; `right` is for numbers."""

    title: str
    value: Callable[[Resource], str]
    right: bool = False
    state: bool = False


def style_of(state: str) -> str:
    return STATE_STYLE.get(state, "yellow" if state in _MOVING else "")


def console() -> Console:
    """stdout, as wide as its terminal."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(file=sys.stdout, highlight=False)
    return Console(file=sys.stdout, highlight=False, width=PIPE_WIDTH)


def emit(data: Any, output: Output) -> None:
    """JSON or YAML on stdout."""
    if output is Output.JSON:
        print(json.dumps(data, indent=2, ensure_ascii=False))
        return
    import yaml

    print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), end="")


def table(columns: Sequence[Column], rows: Iterable[Resource]) -> Table:
    """A table without lines; a column too wide for the terminal ends in an ellipsis."""
    from rich.table import Table
    from rich.text import Text

    result = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True, padding=(0, 2, 0, 0))
    for column in columns:
        result.add_column(
            column.title, justify="right" if column.right else "left", no_wrap=True, overflow="ellipsis", min_width=3
        )
    for row in rows:
        values = [(column, clean(column.value(row)).replace("\n", " ")) for column in columns]
        result.add_row(*[Text(value, style=style_of(value) if column.state else "") for column, value in values])
    return result


def card(rows: Sequence[Column], resource: Resource) -> Table:
    """What `show` prints: a name and a value a line; rows without a value are left out."""
    from rich.table import Table
    from rich.text import Text

    result = Table.grid(padding=(0, 3, 0, 0))
    result.add_column(style="bold", no_wrap=True)
    result.add_column(overflow="fold")
    for row in rows:
        value = clean(row.value(resource))
        if value:
            result.add_row(row.title, Text(value, style=style_of(value) if row.state else ""))
    return result


def show(renderable: RenderableType) -> None:
    """Print for people on stdout."""
    console().print(renderable, soft_wrap=isinstance(renderable, str), markup=False)


def say(text: str) -> None:
    """One line on stdout: what has been done."""
    print(clean(text))


def note(text: str) -> None:
    """One line on stderr: what is going on."""
    print(clean(text), file=sys.stderr, flush=True)
