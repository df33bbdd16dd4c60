"""What one run of the command line knows: the output format asked for, and the client of the current context."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import typer

if TYPE_CHECKING:
    from scloud.client.http import Client

T = TypeVar("T")


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class _Run:
    """`output` is kept here too because errors are printed where the command's own arguments are out of sight."""

    output = Output.TABLE


RUN = _Run()


def connect() -> Client:
    """The client of the current context. CloudError, with what to do, if there is none."""
    from scloud.client.contexts import current_context

    context = current_context()
    _import_httpx()
    from scloud.client.http import Client

    return Client(context)


def _import_httpx() -> None:
    """Import httpx without its own command line, which brings click and half of rich; it does as well without."""
    if "httpx" in sys.modules:
        return
    sys.modules["httpx._main"] = None  # type: ignore[assignment]
    try:
        importlib.import_module("httpx")
    finally:
        del sys.modules["httpx._main"]


def path(collection: str, ref: str, *rest: str) -> str:
    """The path of one resource, and what is below it, from what the user typed as its name or id."""
    if not ref.strip(". /"):
        raise typer.BadParameter(f"'{ref}' is neither a name nor an id")
    return "/".join(["", collection, quote(ref, safe=""), *rest])


def parsed(parse: Callable[[str], T], text: str, option: str) -> T:
    """The parsed value of an option or argument; wrong usage, naming it, if it cannot be parsed."""
    try:
        return parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=f"'{option}'") from error
