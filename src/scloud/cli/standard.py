"""The verbs that are the same for every noun, added to a noun's commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import typer

from scloud.cli.follow import settle, settle_each
from scloud.cli.lazy import LazyGroup
from scloud.cli.listing import print_list, show_one
from scloud.cli.looks import Look
from scloud.cli.options import (
    AllAccountsOption,
    How,
    LimitOption,
    NameArgument,
    NamesArgument,
    NewNameArgument,
    OutputOption,
    WatchOption,
    with_how,
)
from scloud.cli.session import Output, connect, path


def noun(summary: str) -> typer.Typer:
    """A noun's commands; without a verb it prints its help."""
    return typer.Typer(cls=LazyGroup, help=summary, no_args_is_help=True, add_completion=False)


def add_list(app: typer.Typer, look: Look, *, tenant: bool = True) -> None:
    """`list` without filters of its own; `tenant` kinds can be listed across accounts by an administrator."""

    def list_all(
        all_accounts: AllAccountsOption = False,
        limit: LimitOption = None,
        watch: WatchOption = False,
        output: OutputOption = Output.TABLE,
    ) -> None:
        filters = {"all_accounts": True} if all_accounts else {}
        print_list(look, filters, output=output, watch=watch, limit=limit)

    def list_admin(limit: LimitOption = None, watch: WatchOption = False, output: OutputOption = Output.TABLE) -> None:
        print_list(look, output=output, watch=watch, limit=limit)

    chosen: Callable[..., None] = list_all if tenant else list_admin
    app.command("list", help=f"List {_plural(look)}.")(chosen)


def add_show(app: typer.Typer, look: Look) -> None:
    @app.command("show", help=f"Show one {_spoken(look)} in full.")
    def show(name: NameArgument, output: OutputOption = Output.TABLE) -> None:
        show_one(look, name, output)


def add_rename(app: typer.Typer, look: Look) -> None:
    @app.command("rename", help=f"Give a {_spoken(look)} another name.")
    @with_how
    def rename(name: NameArgument, new_name: NewNameArgument, *, how: How) -> None:
        with connect() as client:
            answer = client.patch(path(look.collection, name), {"name": new_name})
            settle(client, answer, how, f"is the new name of {name}", "changed")


def add_delete(app: typer.Typer, look: Look) -> None:
    @app.command("delete", help=f"Delete one {_spoken(look)} or several.")
    @with_how
    def delete(names: NamesArgument, *, how: How) -> None:
        delete_all(look, names, how)


def delete_all(look: Look, names: list[str], how: How, said: str = "deleted", **params: bool | None) -> None:
    """Delete each of them: all are asked for before the first is waited for."""
    with connect() as client:
        settle_each(client, names, lambda name: client.delete(path(look.collection, name), **params), how, said, "gone")


def act(look: Look, names: list[str], action: str, body: Mapping[str, object], how: How, said: str) -> None:
    """An action on each of them, such as `start`."""
    with connect() as client:
        settle_each(
            client,
            names,
            lambda name: client.post(path(look.collection, name, "actions", action), body),
            how,
            said,
            "changed",
        )


def create(look: Look, body: Mapping[str, object], how: How) -> None:
    with connect() as client:
        settle(client, client.post(f"/{look.collection}", body), how, "created", "created")


def given(**values: object) -> dict[str, object]:
    """Only what was given on the command line: the API's defaults hold for the rest."""
    return {key: value for key, value in values.items() if value is not None and value != []}


def _spoken(look: Look) -> str:
    return {"vm": "VM", "vpc": "VPC"}.get(look.noun, look.noun.replace("-", " "))


def _plural(look: Look) -> str:
    return f"{_spoken(look)}s"
