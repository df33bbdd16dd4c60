"""Printing: tables that fit the terminal, two-column cards, JSON and YAML."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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
_GAP = 2
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
        print(json.dumps(data, indent=2, ensure_ascii=False), flush=True)
        return
    import yaml

    print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), end="", flush=True)


def fitted(widths: Sequence[int], available: int) -> list[int]:
    """Column widths that add up to what is available: the widest give way first, none below 4."""
    result = list(widths)
    while sum(result) > available and max(result) > 4:
        result[result.index(max(result))] -= 1
    return result


def table(columns: Sequence[Column], rows: Iterable[Resource]) -> Table:
    """A table without lines; what is too wide for the terminal ends in an ellipsis."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    cells = [[clean(column.value(row)).replace("\n", " ") for column in columns] for row in rows]
    wanted = [
        max(cell_len(line[number]) for line in [[column.title for column in columns], *cells])
        for number in range(len(columns))
    ]
    widths = fitted(wanted, console().width - _GAP * (len(columns) - 1))
    result = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    for column, width in zip(columns, widths, strict=True):
        align: Literal["left", "right"] = "right" if column.right else "left"
        result.add_column(column.title, justify=align, no_wrap=True, overflow="ellipsis", width=width)
    for line in cells:
        styles = [style_of(value) if column.state else "" for column, value in zip(columns, line, strict=True)]
        result.add_row(*[Text(value, style=style) for value, style in zip(line, styles, strict=True)])
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
    """Print for people on stdout; for a program without the spaces that fill up the last column."""
    screen = console()
    if screen.is_terminal:
        screen.print(renderable, markup=False)
        return
    with screen.capture() as captured:
        screen.print(renderable, markup=False)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def say(text: str) -> None:
    """One line on stdout: what has been done."""
    print(clean(text))


def note(text: str, end: str = "\n") -> None:
    """One line on stderr: what is going on."""
    print(clean(text), file=sys.stderr, flush=True, end=end)
