"""`scloud disk`."""

from __future__ import annotations

from typing import Annotated

import typer

from scloud.cli import disk_backup, human
from scloud.cli.human import parse_duration, parse_size
from scloud.cli.listing import print_list
from scloud.cli.looks import DISK, TRASH
from scloud.cli.options import (
    AllAccountsOption,
    How,
    LimitOption,
    NameArgument,
    NamesArgument,
    OutputOption,
    WatchOption,
    with_how,
)
from scloud.cli.output import Column, card, emit, show
from scloud.cli.session import Output, connect, parsed, path
from scloud.cli.standard import act, add_rename, add_show, create, delete_all, given, noun

app = noun("Disks: attached to and detached from running VMs; snapshots, limits, backups and the trash.")
SizeOption = Annotated[str, typer.Option("--size", metavar="SIZE", help="Such as 512M or 10G.")]


@app.command("create")
@with_how
def create_disk(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="SIZE", help="Such as 512M or 10G.", show_default="its source's"),
    ] = None,
    type: Annotated[
        str | None,
        typer.Option(
            "--type", metavar="TYPE", help="Disk type: `scloud disk-type list`.", show_default="its node's own storage"
        ),
    ] = None,
    from_snapshot: Annotated[
        str | None, typer.Option("--from-snapshot", metavar="SNAPSHOT", help="Begin with a snapshot's bytes.")
    ] = None,
    image: Annotated[str | None, typer.Option("--image", metavar="IMAGE", help="Begin with an image's bytes.")] = None,
    *,
    how: How,
) -> None:
    """Create a data disk: empty, or with a snapshot's or an image's bytes."""
    if size is None and from_snapshot is None and image is None:
        raise typer.BadParameter("say --size, --image or --from-snapshot")
    mib = None if size is None else parsed(parse_size, size, "--size")
    body = {"name": name, "spec": given(size_mib=mib, type=type, snapshot=from_snapshot, image=image)}
    create(DISK, body, how)


@app.command("list")
def list_disks(
    vm: Annotated[str | None, typer.Option("--vm", help="Only those of this VM.")] = None,
    all_accounts: AllAccountsOption = False,
    limit: LimitOption = None,
    watch: WatchOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List disks, the VMs' system disks too."""
    print_list(DISK, given(vm=vm, all_accounts=all_accounts or None), output=output, watch=watch, limit=limit)


add_show(app, DISK)


@app.command("attach")
@with_how
def attach(
    name: NameArgument,
    vm: Annotated[str, typer.Argument(metavar="VM", help="The VM to attach it to.")],
    *,
    how: How,
) -> None:
    """Attach a disk to a VM, which may be running."""
    act(DISK, [name], "attach", {"vm": vm}, how, f"attached to {vm}")


@app.command("detach")
@with_how
def detach(name: NameArgument, *, how: How) -> None:
    """Detach a disk from its VM; its data stays."""
    act(DISK, [name], "detach", {}, how, "detached")


@app.command("resize")
@with_how
def resize(name: NameArgument, size: SizeOption, *, how: How) -> None:
    """Grow a disk, also while it is attached. Disks never shrink."""
    body = {"size_mib": parsed(parse_size, size, "--size")}
    act(DISK, [name], "resize", body, how, f"is {size} now")


add_rename(app, DISK)


@app.command("delete")
@with_how
def delete(
    names: NamesArgument,
    now: Annotated[bool, typer.Option("--now", help="Its bytes are lost at once, not after a while.")] = False,
    *,
    how: How,
) -> None:
    """Delete one disk or several. Those of a pool wait in the trash for a while; local ones are lost at once."""
    delete_all(DISK, names, how, now=now or None)


@app.command("trash")
def trash(
    all_accounts: AllAccountsOption = False, limit: LimitOption = None, output: OutputOption = Output.TABLE
) -> None:
    """List deleted disks that can be had back."""
    filters = given(state="trashed", all_accounts=all_accounts or None)
    print_list(TRASH, filters, output=output, watch=False, limit=limit)


@app.command("restore")
@with_how
def restore(
    name: NameArgument,
    as_: Annotated[str | None, typer.Option("--as", metavar="NAME", help="Under another name.")] = None,
    *,
    how: How,
) -> None:
    """Have a disk back from the trash."""
    act(DISK, [name], "restore", given(name=as_), how, "is back")


@app.command("rollback")
@with_how
def rollback(
    name: NameArgument,
    snapshot: Annotated[str, typer.Argument(metavar="SNAPSHOT", help="One of the disk's snapshots.")],
    *,
    how: How,
) -> None:
    """Bring back a snapshot's bytes. What was written since is lost; the VM must be off, or the disk detached."""
    act(DISK, [name], "rollback", {"snapshot": snapshot}, how, f"is as in {snapshot} again")


@app.command("schedule")
@with_how
def schedule(
    name: NameArgument,
    every: Annotated[str | None, typer.Option("--every", metavar="TIME", help="Such as 30m, 1h or 1d.")] = None,
    keep: Annotated[int | None, typer.Option("--keep", min=1, max=366, help="How many of them to keep.")] = None,
    off: Annotated[bool, typer.Option("--off", help="No more; those that were taken stay.")] = False,
    *,
    how: How,
) -> None:
    """Take a snapshot every so often, and keep the newest."""
    if off == (every is not None or keep is not None) or (every is None) != (keep is None):
        raise typer.BadParameter("say --every and --keep, or --off")
    wanted = None if every is None else {"every_s": parsed(parse_duration, every, "--every"), "keep": keep}
    said = "is left alone" if off else f"is kept every {every}"
    act(DISK, [name], "schedule", {"schedule": wanted}, how, said)


@app.command("limit")
@with_how
def limit(
    name: NameArgument,
    iops: Annotated[int | None, typer.Option("--iops", min=0, help="Reads and writes a second; 0: no limit.")] = None,
    bandwidth: Annotated[
        str | None, typer.Option("--bandwidth", metavar="SIZE", help="A second, such as 50M; 0: no limit.")
    ] = None,
    *,
    how: How,
) -> None:
    """Limit what a disk may do a second, also while it is in use."""
    if iops is None and bandwidth is None:
        raise typer.BadParameter("say --iops or --bandwidth, or both")
    kib = None
    if bandwidth is not None:
        kib = 0 if bandwidth == "0" else parsed(parse_size, bandwidth, "--bandwidth") * 1024
    act(DISK, [name], "limit", given(iops=iops, kib_per_s=kib), how, "has new limits")


@app.command("flatten")
@with_how
def flatten(name: NameArgument, *, how: How) -> None:
    """Copy what a disk shares with its image or snapshot, so that those can be deleted."""
    act(DISK, [name], "flatten", {}, how, "depends on nothing now")


@app.command("move")
@with_how
def move(
    name: NameArgument,
    type: Annotated[str, typer.Option("--type", metavar="TYPE", help="To where: `scloud disk-type list`.")],
    *,
    how: How,
) -> None:
    """Move a disk to another pool, by copy: detached, or with its VM off. The old bytes wait in the trash."""
    act(DISK, [name], "move", {"type": type}, how, f"is of type {type} now")


@app.command("figures")
def figures(name: NameArgument, output: OutputOption = Output.TABLE) -> None:
    """Show what a disk occupies, and what is read and written, measured over a second."""
    with connect() as client:
        found = client.get(path("disks", name, "figures"))
    if output is not Output.TABLE:
        emit(found, output)
        return
    rows = (
        Column("Size", lambda it: human.size(it["size_mib"])),
        Column("Really used", lambda it: human.size(it.get("used_mib"))),
        Column("Reads", lambda it: _rate(it, "read")),
        Column("Writes", lambda it: _rate(it, "write")),
    )
    show(card(rows, found))


def _rate(figures: dict[str, float], way: str) -> str:
    if not figures.get("open"):
        return "not open in a running VM"
    latency = figures.get(f"latency_{way}_ms")
    took = f", {latency:.2f} ms each" if latency is not None else ""
    return f"{figures[f'iops_{way}']:.0f}/s, {human.size(figures[f'kib_{way}_per_s'] / 1024)}/s{took}"


app.command("export")(disk_backup.export)
app.command("import")(disk_backup.import_disk)
