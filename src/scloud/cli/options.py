"""Options that many commands share, each declared once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer

from scloud.cli.session import RUN, Output


class Switch(StrEnum):
    """A value of options such as --ha."""

    ON = "on"
    OFF = "off"


def _remember(value: Output) -> Output:
    RUN.output = value
    return value


OutputOption = Annotated[
    Output,
    typer.Option("--output", "-o", help="How to print the result.", callback=_remember, rich_help_panel="Output"),
]
WaitOption = Annotated[
    bool,
    typer.Option(
        "--wait/--no-wait",
        help="Wait until it is done, or print the operation at once.",
        rich_help_panel="Output",
    ),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        min=0,
        metavar="SECONDS",
        help="Give up waiting after this time; the operation goes on.",
        show_default="none",
        rich_help_panel="Output",
    ),
]
WatchOption = Annotated[
    bool, typer.Option("--watch", "-w", help="Print it again every two seconds.", rich_help_panel="Output")
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="At most so many.", show_default="all", rich_help_panel="Output"),
]
AllAccountsOption = Annotated[bool, typer.Option("--all-accounts", help="Of every account (administrators only).")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name or id.", show_default=False)]
NewNameArgument = Annotated[str, typer.Argument(metavar="NEW_NAME", help="The new name.", show_default=False)]
NamesArgument = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Names or ids, one or several.", show_default=False)
]


@dataclass(frozen=True)
class How:
    """How the result of a command is wanted. `timeout` is in seconds."""

    output: Output = Output.TABLE
    wait: bool = True
    timeout: float | None = None


_HOW = {"output": (OutputOption, Output.TABLE), "wait": (WaitOption, True), "timeout": (TimeoutOption, None)}


def with_how(function: Callable[..., None]) -> Callable[..., None]:
    """A command that changes something: its parameter `how` is read from --output, --wait and --timeout."""

    @functools.wraps(function)
    def command(*args: object, output: Output, wait: bool, timeout: float | None, **own: object) -> None:
        function(*args, **own, how=How(output, wait, timeout))

    own = [value for name, value in inspect.signature(function, eval_str=True).parameters.items() if name != "how"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    options = [inspect.Parameter(name, keyword, default=d, annotation=type) for name, (type, d) in _HOW.items()]
    # Typer reads both of these, and evaluates neither.
    command.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in [*own, *options]} | {"return": None}
    return command
