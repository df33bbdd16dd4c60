"""`scloud lab`: a cloud of several nodes on this one machine. All of it needs root."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="A cloud of several nodes on this one machine.")

Root = Annotated[
    Path | None,
    typer.Option("--root", help="The lab's folder; labs in different ones coexist.", envvar="SCLOUD_LAB_ROOT"),
]
Node = Annotated[str, typer.Argument(metavar="NODE", help="n1, n2, ...")]
Victim = Annotated[
    str,
    typer.Argument(
        metavar="NODE", help="n1, n2, ...; or manager, manager-2; or a storage daemon: osd.3, mon.n1, mgr.n1"
    ),
]


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class Fault(StrEnum):
    KILL = "kill"
    PARTITION = "partition"
    HANG = "hang"


class From(StrEnum):
    MANAGER = "manager"
    STORAGE = "storage"
    DATABASE = "database"
    NODES = "nodes"


def _root(root: Path | None, command: str) -> Path:
    from scloud.node.layout import lab_root
    from scloud.setup.host import need_root

    need_root(f"lab {command}")
    return root.absolute() if root is not None else lab_root()


@app.command()
def up(
    nodes: Annotated[int, typer.Option("--nodes", help="How many.")] = 3,
    root: Root = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove a lab that runs, and all in it, first.")] = False,
    ceph: Annotated[
        bool, typer.Option("--ceph", help="With a storage cluster: two OSDs a node, and a pool for disks.")
    ] = False,
    managers: Annotated[
        int, typer.Option("--managers", min=1, max=3, help="More than one share a PostgreSQL server of the lab's own.")
    ] = 1,
) -> None:
    """Start a lab, and a first VM in it. Clears whatever an earlier lab has left behind."""
    from scloud.lab.up import lab_up

    lab_up(_root(root, "up"), nodes, fresh=fresh, ceph=ceph, managers=managers)


@app.command()
def down(
    root: Root = None,
    purge: Annotated[bool, typer.Option("--purge", help="Remove also what makes the next start quick.")] = False,
) -> None:
    """Remove the lab with everything in it."""
    from scloud.lab.up import lab_down

    lab_down(_root(root, "down"), purge=purge)


@app.command()
def status(
    root: Root = None, output: Annotated[Format, typer.Option("--output", "-o", help="Form.")] = Format.TABLE
) -> None:
    """Every node's state, and every process by role, node and pid."""
    from scloud.lab.plan import need_plan
    from scloud.lab.show import show_status
    from scloud.lab.status import lab_status

    show_status(lab_status(need_plan(_root(root, "status"))), output)


@app.command("exec", context_settings={"ignore_unknown_options": True})
def execute(node: Node, command: Annotated[list[str], typer.Argument(metavar="-- CMD...")], root: Root = None) -> None:
    """Run a command inside a node; leaves with its exit status."""
    from scloud.lab.plan import need_plan

    raise typer.Exit(need_plan(_root(root, "exec")).sandbox(node).call(command))


@app.command()
def fail(
    node: Victim,
    how: Annotated[Fault, typer.Option("--how", help="kill all in it, cut it off, or stop all in it where it is.")],
    root: Root = None,
    only_agent: Annotated[bool, typer.Option("--only-agent", help="Spare guests and engines (kill, hang).")] = False,
    side: Annotated[
        From | None,
        typer.Option(
            "--from",
            help="Cut a node off from this only: manager, or (others') storage; or a manager: database, or nodes.",
        ),
    ] = None,
) -> None:
    """Break a node until `lab heal`. A storage daemon that is killed is started again by its node's agent."""
    from scloud.lab.faults import How, Side
    from scloud.lab.faults import fail as break_it
    from scloud.lab.plan import need_plan

    print(
        break_it(
            need_plan(_root(root, "fail")),
            node,
            How(how.value),
            only_agent=only_agent,
            side=Side(side) if side else None,
        )
    )


@app.command()
def heal(node: Victim, root: Root = None) -> None:
    """Undo whatever `lab fail` did."""
    from scloud.lab.faults import heal as mend
    from scloud.lab.plan import need_plan

    print(mend(need_plan(_root(root, "heal")), node))
