"""A group of commands whose modules are imported when they are used, and the one place where errors become exit codes.

`scloud vm list` pays for the `vm` commands alone; help is printed from the table of entries and imports none of them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group


@dataclass(frozen=True)
class Entry:
    """A command elsewhere: `module:attribute` is a Typer app (a noun) or a function (a single command)."""

    target: str
    help: str
    panel: str | None = None


class LazyGroup(TyperGroup):
    """`entries` come in their order, after the commands that are declared in the ordinary way."""

    entries: ClassVar[dict[str, Entry]] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        own = [name for name in super().list_commands(ctx) if name not in self.entries]
        return [*own, *self.entries]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = self.entries.get(cmd_name)
        if entry is None:
            return super().get_command(ctx, cmd_name)
        command = self.commands.get(cmd_name)
        if command is None:
            command = self.commands[cmd_name] = _load(cmd_name, entry)
        return command

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


def _load(name: str, entry: Entry) -> Any:
    module, _, attribute = entry.target.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if isinstance(found, typer.Typer):
        command: Any = get_group(found)
    else:
        alone = typer.Typer(add_completion=False)
        alone.command(name)(found)
        command = get_command(alone)
    command.name = name
    command.rich_help_panel = entry.panel
    command.help = command.help or entry.help
    return command


def raise_exit(error: Exception) -> None:
    """Report a CloudError and leave with its exit code; return if it is another error."""
    import sys

    errors = sys.modules.get("scloud.model.errors")  # nobody can have raised one before this is imported
    if errors is None or not isinstance(error, errors.CloudError):
        return
    from scloud.cli.failure import exit_code, report

    report(error)
    raise typer.Exit(exit_code(error)) from error
