"""`scloud status`, `scloud audit` and `scloud version`."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import typer

from scloud import __version__
from scloud.cli.human import clean
from scloud.cli.options import OutputOption
from scloud.cli.output import Column, card, console, emit, say, show, table
from scloud.cli.session import Output, connect

_MARK = {"error": ("✗", "red"), "critical": ("✗", "red"), "warning": ("!", "yellow")}


def _numbers(values: Mapping[str, int] | None) -> str:
    return ", ".join(f"{count} {name}" for name, count in (values or {}).items() if count)


def _contents(counts: Mapping[str, Mapping[str, int]] | None) -> str:
    """How many of each kind, and in which states where they are not simply ready."""
    lines = []
    for kind, states in sorted((counts or {}).items()):
        total = sum(states.values())
        name = kind.replace("-", " ") + ("" if total == 1 else "s")
        lines.append(f"{total} {name}" + ("" if set(states) <= {"ready"} else f" ({_numbers(states)})"))
    return "\n".join(lines)


def _nodes(found: Any) -> str:
    """By state, and how many are still to dial a manager that has just begun."""
    nodes, connected = found.get("nodes") or {}, found.get("connected")
    late = nodes.get("ready", 0) - connected if connected is not None else 0
    return _numbers(nodes) + (f"; {late} still to be heard by this manager" if late > 0 else "")


def status(output: OutputOption = Output.TABLE) -> None:
    """Whether the cloud is healthy, and what is not; exit 1 if it is not."""
    with connect() as client:
        found = client.get("/status")
        url = client.context.url
    if output is not Output.TABLE:
        emit(found, output)
    else:
        from rich.text import Text

        rows = (
            Column("Cloud", lambda _: url),
            Column("Healthy", lambda it: "yes" if it["healthy"] else "no", state=True),
            Column("Version", lambda it: str(it.get("version") or "")),
            Column("Leader's epoch", lambda it: str(it.get("epoch") or "")),
            Column("Nodes", _nodes),
            Column("In it", lambda it: _contents(it.get("counts"))),
            Column("API", lambda _: f"{url.rstrip('/')}/docs"),
        )
        show(card(rows, found))
        for condition in found.get("conditions") or ():
            mark, style = _MARK.get(condition["severity"], ("·", ""))
            console().print(Text(f"{mark} {clean(condition['message'])}", style=style), soft_wrap=True)
    if not found["healthy"]:
        raise typer.Exit(1)


def audit(output: OutputOption = Output.TABLE) -> None:
    """Compare what runs on every node with what should run; exit 1 if it differs."""
    with connect() as client:
        found = client.get("/audit")
    if output is not Output.TABLE:
        emit(found, output)
    else:
        asked, silent = found.get("nodes_asked") or [], found.get("nodes_silent") or []
        if found["findings"]:
            columns = (
                Column("SEVERITY", lambda it: it["severity"], state=True),
                Column("NODE", lambda it: str(it.get("node") or "-")),
                Column("WHAT", lambda it: it["key"]),
                Column("FINDING", lambda it: it["message"]),
            )
            show(table(columns, found["findings"]))
        for node in silent if isinstance(silent, list) else ():
            say(f"{node} did not answer")
        number = len(asked) if isinstance(asked, list) else asked
        verdict = "clean" if found["clean"] else "not clean"
        say(f"The cloud is {verdict}: {number} nodes asked, {len(found['findings'])} findings.")
    if not found["clean"]:
        raise typer.Exit(1)


def version(output: OutputOption = Output.TABLE) -> None:
    """The version of this command and, if it answers, of the cloud."""
    from scloud.model.errors import CloudError

    found: dict[str, Any] = {"scloud": __version__, "python": platform.python_version(), "cloud": None}
    try:
        with connect() as client:
            found["cloud"] = client.get("/status")["version"]
    except CloudError:
        pass  # no cloud, or not ours to ask: this command's own version is still the answer
    if output is not Output.TABLE:
        emit(found, output)
        return
    say(f"scloud {found['scloud']} (Python {found['python']}); cloud {found['cloud'] or 'not reached'}")
