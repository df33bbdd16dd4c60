"""`scloud network trace`."""

from __future__ import annotations

from typing import Annotated

import typer

from scloud.cli.human import clean
from scloud.cli.options import OutputOption
from scloud.cli.output import Resource, console, emit, style_of
from scloud.cli.session import Output, connect
from scloud.cli.standard import given, noun

app = noun("The network as a whole.")
_MARK = {"pass": "✓", "drop": "✗", "info": "·"}


@app.callback()
def network() -> None:
    """The network as a whole."""


@app.command("trace")
def trace(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A VM or nic.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="A VM, a nic or an address.")],
    tcp: Annotated[
        int | None, typer.Option("--tcp", metavar="PORT", min=1, max=65535, help="A TCP connection.")
    ] = None,
    udp: Annotated[int | None, typer.Option("--udp", metavar="PORT", min=1, max=65535, help="A UDP packet.")] = None,
    icmp: Annotated[bool, typer.Option("--icmp", help="A ping.", show_default=False)] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Tell in words which step lets a packet through, or drops it."""
    asked = [(name, port) for name, port in (("tcp", tcp), ("udp", udp)) if port is not None]
    if len(asked) + icmp > 1:
        raise typer.BadParameter("say one of --tcp PORT, --udp PORT and --icmp")
    protocol, port = asked[0] if asked else ("icmp", None)
    with connect() as client:
        found = client.post("/network/trace", {"from": source, "to": target, "protocol": protocol, **given(port=port)})
    if output is not Output.TABLE:
        emit(found, output)
        return
    _print(found)


def _print(found: Resource) -> None:
    """The steps, grouped by the node they happen on, and the verdict."""
    from rich.text import Text

    screen, node = console(), None
    for step in found["steps"]:
        if step.get("node") != node:
            node = step.get("node")
            screen.print(Text(clean(f"on {node}" if node else "in the manager"), style="bold"))
        style = style_of(step["verdict"])
        line = Text.assemble(
            (f"  {_MARK.get(step['verdict'], '?')} ", style), f"{clean(step['stage'])}: ", (clean(step["text"]), style)
        )
        screen.print(line, soft_wrap=True)
    verdict = found["verdict"]
    screen.print(Text.assemble((verdict, f"bold {style_of(verdict)}"), f": {clean(found['summary'])}"), soft_wrap=True)
