"""`scloud pool`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from scloud.cli.listing import print_resource
from scloud.cli.options import How, NameArgument, OutputOption, with_how
from scloud.cli.output import show, table
from scloud.cli.session import Output, connect, path
from scloud.cli.standard import add_delete, add_list, add_rename, create, given, noun
from scloud.cli.storage_looks import POOL
from scloud.cli.storage_use import BY_ACCOUNT, USAGE, by_account

app = noun("Pools of storage clusters: how often and where the data of disks is kept.")


class FaultDomain(StrEnum):
    HOST = "host"
    RACK = "rack"
    DATACENTER = "datacenter"


class Media(StrEnum):
    HDD = "hdd"
    SSD = "ssd"


class Backend(StrEnum):
    CEPH = "ceph"


@app.command("create")
@with_how
def create_pool(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    cluster: Annotated[str, typer.Option("--cluster", help="The storage cluster it is in.")],
    redundancy: Annotated[
        str, typer.Option("--redundancy", metavar="replica:N|ec:K+M", help="N copies, or K chunks and M more.")
    ] = "replica:3",
    fault_domain: Annotated[
        FaultDomain, typer.Option("--fault-domain", help="Each copy or chunk is on another one of these.")
    ] = FaultDomain.HOST,
    media: Annotated[
        Media | None, typer.Option("--media", help="Only devices of this kind.", show_default="any")
    ] = None,
    backend: Annotated[Backend, typer.Option("--backend", help="What keeps the data.")] = Backend.CEPH,
    *,
    how: How,
) -> None:
    """Create a pool."""
    spec = given(
        backend=backend.value,
        cluster=cluster,
        redundancy=redundancy,
        fault_domain=fault_domain.value,
        media=media.value if media else None,
    )
    create(POOL, {"name": name, "spec": spec}, how)


add_list(app, POOL, tenant=False)


@app.command("show")
def show_pool(name: NameArgument, output: OutputOption = Output.TABLE) -> None:
    """Show one pool in full, and what each account has in it."""
    with connect() as client:
        pool = client.get(path("pools", name))
        print_resource(client, POOL, pool, output)
        if output is not Output.TABLE:
            return
        rows = by_account(client.get(USAGE, all_accounts=True)["items"], {pool["id"]})
    if rows:
        show("")
        show(table(BY_ACCOUNT, rows))


add_rename(app, POOL)
add_delete(app, POOL)
