"""Printing a lab's status."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from scloud.lab.status import LabStatus


def show_status(status: LabStatus, form: str) -> None:
    """As tables, or as JSON or YAML for programs."""
    if form == "json":
        print(status.model_dump_json(indent=2))
        return
    if form == "yaml":
        import yaml

        print(yaml.safe_dump(status.model_dump(mode="json"), sort_keys=False), end="")
        return
    console = Console(highlight=False)
    nodes = Table("NODE", "STATE", "MANAGEMENT", "TUNNEL", box=None, pad_edge=False)
    for node in status.nodes:
        nodes.add_row(node.name, node.state, node.management, node.tunnel)
    processes = Table("ROLE", "NODE", "PID", "", box=None, pad_edge=False)
    for process in status.processes:
        processes.add_row(
            process.role,
            process.node or "-",
            str(process.pid),
            " ".join(filter(None, (process.guest, process.daemon, "stopped" if process.stopped else ""))),
        )
    console.print(f"{status.root}: {status.url}, context {status.context}\n", soft_wrap=True)
    console.print(nodes)
    console.print()
    console.print(processes)
