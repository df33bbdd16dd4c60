"""`scloud ha`: nodes that were lost, and what became of their VMs."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated, Any

import typer

from scloud.cli.follow import settle
from scloud.cli.options import How, OutputOption, Switch, with_how
from scloud.cli.output import Column, emit, say, show, table
from scloud.cli.session import Output, connect, path
from scloud.cli.standard import given, noun
from scloud.client.incidents import story

app = noun("High availability: nodes that are lost, and their VMs.")
Json = dict[str, Any]


class Profile(StrEnum):
    DEFAULT = "default"
    FAST = "fast"


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1000):03d}"


def _after(ms: float) -> str:
    return f"{ms:,.0f} ms"


_MOMENTS = (
    Column("AFTER", lambda row: _after(row["ms"]), right=True),
    Column("SINCE LAST", lambda row: _after(row["since_ms"]), right=True),
    Column("WHAT", lambda row: str(row["what"])),
    Column("", lambda row: str(row["text"])),
)


@app.command("log")
def log(
    node: Annotated[str | None, typer.Option("--node", metavar="NODE", help="Only of this node.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many incidents, the newest.")] = 10,
    output: OutputOption = Output.TABLE,
) -> None:
    """Tell each incident: what was seen when, fencing, restarts; milliseconds since the last sign of life."""
    with connect() as client:
        items = [story(item) for item in client.pages("/ha/incidents", given(node=node), limit=limit)][::-1]
    if output is not Output.TABLE:
        emit(items, output)
        return
    if not items:
        say("No node was ever lost.")
    for number, item in enumerate(items):
        if number:
            say("")
        words = f": {item['reason']}" if item["reason"] else ""
        say(f"{item['node_name']} lost at {_clock(item['began_at'])}, {item['state']}{words}")
        show(table(_MOMENTS, item["moments"]))
        for vm in item["vms"]:
            where = f" on {vm['node']}" if vm["node"] else ""
            why = f": {vm['reason']}" if vm["reason"] else ""
            say(f"  {vm['name']} {vm['state']}{where}{why}")


_CLUSTERS = (
    Column("CLUSTER", lambda row: str(row["cluster"])),
    Column("HA", lambda row: "on" if row["settings"]["enabled"] else "off"),
    Column("CHECK", lambda row: f"{row['settings']['check_s']:g} s", right=True),
    Column("MISSES", lambda row: str(row["settings"]["misses"]), right=True),
    Column(
        "PROBES", lambda row: f"{row['settings']['probes']} x {row['settings']['probe_interval_s']:g} s", right=True
    ),
    Column("DEAD AFTER", lambda row: f"{row['detection_s']:g} s", right=True),
    Column("LEASE", lambda row: f"{row['settings']['lease_s']:g} s", right=True),
    Column("SHARE", lambda row: f"{row['settings']['max_share']:.0%}", right=True),
)


@app.command("status")
def status(output: OutputOption = Output.TABLE) -> None:
    """Show the settings, open incidents, and why nothing is done where a node is missing."""
    with connect() as client:
        found = client.get("/ha")
    if output is not Output.TABLE:
        emit(found, output)
        return
    show(table(_CLUSTERS, found["clusters"]))
    for item in found["incidents"]:
        say(f"{item['node_name']}: {item['state']}, lost at {_clock(item['began_at'])}; {item['reason']}")
    for item in found["conditions"]:
        say(f"{item['node']}: {item['message']}")
    if not found["incidents"] and not found["conditions"]:
        say("No node is lost.")


@app.command("settings")
@with_how
def settings(
    cluster: Annotated[str, typer.Option("--cluster", help="Of which cluster of nodes.")] = "default",
    profile: Annotated[Profile | None, typer.Option("--profile", help="All numbers at once.")] = None,
    enabled: Annotated[Switch | None, typer.Option("--ha", help="Whether lost nodes' VMs are restarted.")] = None,
    check: Annotated[float | None, typer.Option("--check", metavar="SECONDS", help="Between health checks.")] = None,
    misses: Annotated[int | None, typer.Option("--misses", min=2, help="Failed checks until others probe.")] = None,
    probes: Annotated[int | None, typer.Option("--probes", min=1, help="Layer-2 probes of each prober.")] = None,
    probe_interval: Annotated[
        float | None, typer.Option("--probe-interval", metavar="SECONDS", help="Between probes.")
    ] = None,
    lease: Annotated[
        float | None, typer.Option("--lease", metavar="SECONDS", help="Cut off so long, a node stops its shared VMs.")
    ] = None,
    max_share: Annotated[
        float | None, typer.Option("--max-share", metavar="0..1", help="More nodes missing at once: do nothing.")
    ] = None,
    *,
    how: How,
) -> None:
    """Change when a node counts as dead; without an option, show it."""
    ask = given(
        profile=profile.value if profile else None,
        enabled=None if enabled is None else enabled is Switch.ON,
        check_s=check,
        misses=misses,
        probes=probes,
        probe_interval_s=probe_interval,
        lease_s=lease,
        max_share=max_share,
    )
    if not ask:
        status(how.output)
        return
    with connect() as client:
        answer = client.patch(path("clusters", cluster), {"spec": {"ha": ask}})
        settle(client, answer, how, "changed", "changed")
