"""A group of commands whose modules are imported when they are used, and the one place where errors become exit codes.

`scloud vm list` pays for the `vm` commands alone; help is printed from the table of entries and imports none of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command_from_info, get_group
from typer.models import CommandInfo

from scloud.cli.quick import quickened


@dataclass(frozen=True)
class Entry:
    """A command elsewhere: `module:attribute` is a Typer app (a noun) or a function (a single command)."""

    target: str
    help: str
    panel: str | None = None


class Verb(TyperCommand):
    """A command whose plain arguments are read without pydantic."""

    def get_params(self, ctx: Any) -> list[Any]:
        return quickened(super().get_params(ctx))


class LazyGroup(TyperGroup):
    """`pending` are a noun's own verbs, whose options are worked out when one is used; `entries` come after them."""

    entries: ClassVar[dict[str, Entry]] = {}
    pending: Mapping[str, CommandInfo] = MappingProxyType({})

    def list_commands(self, ctx: Any) -> list[str]:
        return list(dict.fromkeys([*self.pending, *super().list_commands(ctx), *self.entries]))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands:
            if cmd_name in self.pending:
                self.commands[cmd_name] = _build(self.pending[cmd_name])
            elif cmd_name in self.entries:
                self.commands[cmd_name] = _load(cmd_name, self.entries[cmd_name])
        return super().get_command(ctx, cmd_name)

    def get_params(self, ctx: Any) -> list[Any]:
        return quickened(super().get_params(ctx))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super()._click_resolve_command(ctx, args)
        except typer.TyperException as error:
            close = get_close_matches(args[0], self.list_commands(ctx))
            if close and "No such command" in error.message:
                error.message = f"{error.message.rstrip('.')}. Did you mean {' or '.join(map(repr, close))}?"
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:
        full, self.commands = self.commands, {**self.commands}
        for name, entry in self.entries.items():
            self.commands[name] = TyperCommand(name, help=entry.help, rich_help_panel=entry.panel)
        try:
            super().format_help(ctx, formatter)
        finally:
            self.commands = full

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            raise_exit(error)
            raise


def _build(info: CommandInfo) -> Any:
    """One command, from what `@app.command` has noted."""
    if info.cls in (None, TyperCommand):
        info.cls = Verb
    return get_command_from_info(info, pretty_exceptions_short=True, rich_markup_mode="rich")


def _load(name: str, entry: Entry) -> Any:
    """The noun or the command that an entry names."""
    module, _, attribute = entry.target.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if isinstance(found, typer.Typer):
        command: Any = _group(found)
    else:
        command = _build(CommandInfo(name=name, callback=found))
    command.name = name
    command.rich_help_panel = entry.panel
    command.help = command.help or entry.help
    return command


def _group(app: typer.Typer) -> TyperGroup:
    """A noun as a group; its verbs stay pending where it can have them so."""
    cls = app.info.cls
    if not (isinstance(cls, type) and issubclass(cls, LazyGroup)):
        return get_group(app)
    verbs, app.registered_commands = app.registered_commands, []
    try:
        group = get_group(app)
    finally:
        app.registered_commands = verbs
    assert isinstance(group, LazyGroup)
    group.pending = {info.name: info for info in verbs if info.name}
    return group


def raise_exit(error: Exception) -> None:
    """Report a CloudError and leave with its exit code; return if it is another error."""
    from scloud.client.problems import cloud_error

    if (problem := cloud_error(error)) is None:
        return
    from scloud.cli.failure import exit_code, report

    report(problem)
    raise typer.Exit(exit_code(problem)) from error
