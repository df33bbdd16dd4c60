"""`scloud disk export|import`: backups of disks in files on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scloud.cli.follow import await_operations
from scloud.cli.image import transfer
from scloud.cli.options import NameArgument, OutputOption
from scloud.cli.output import Resource, emit, note, say
from scloud.cli.session import Output, connect, path
from scloud.cli.standard import given

if TYPE_CHECKING:
    from scloud.client.http import Client

PIECE = 1 << 20


def export(
    name: NameArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="SNAPSHOT", help="Only what has changed from this snapshot of the disk."),
    ] = None,
    snapshot: Annotated[
        str | None,
        typer.Option("--snapshot", metavar="SNAPSHOT", help="Of this snapshot.", show_default="a new one, which stays"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if there is one.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Save a disk to a file. The next backup can be of what has changed since: keep the snapshot for that."""
    from scloud.client import backup

    if file.exists() and not force:
        raise typer.BadParameter(f"{file} is there already: name another file or say --force", param_hint="'FILE'")
    if not file.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {file.absolute().parent}", param_hint="'FILE'")
    fresh = file.with_name(f"{file.name}.unchecked")
    with connect() as client:
        taken = snapshot or _take(client, name)
        try:
            with transfer(f"saving {name}") as on_bytes:
                size = client.download(
                    path("disks", name, "export"), fresh, on_bytes, **given(snapshot=taken, since=since)
                )
            backup.check(fresh)
            fresh.replace(file)
        finally:
            fresh.unlink(missing_ok=True)
    if output is Output.TABLE:
        say(f"{name} saved to {file} ({size} bytes) as in snapshot {taken}; next time: --since {taken}")
    else:
        emit({"file": str(file), "bytes": size, "snapshot": taken, "since": since}, output)


def _take(client: Client, disk: str) -> str:
    """A snapshot to save."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    body = {"name": f"{disk[:30].rstrip('-')}-backup-{stamp}", "spec": {"disk": disk}}
    answer = client.post("/snapshots", body)
    _, errors = await_operations(client, [answer["operation"]])
    if errors:
        raise errors[0]
    return str(answer["resource"]["name"])


def import_disk(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A new disk, or a detached one to write over.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A backup made by `disk export`.")],
    type: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="Disk type of a new disk, of a pool: `scloud disk-type list`."),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Bring a disk back from a file: first the whole backup, then those of what has changed, in order."""
    from scloud.client import backup

    if not file.is_file():
        raise typer.BadParameter(f"{file} is no file on this machine", param_hint="'FILE'")
    found = backup.header(file)
    backup.check(file)
    with connect() as client:
        there = _there(client, name, found)
        operation = _send(client, there, file) if there else _into_new(client, name, type, file, found)
    if output is Output.TABLE:
        say(f"{name} is as in snapshot {found['snapshot']}")
    else:
        emit(operation, output)


def _there(client: Client, name: str, found: Resource) -> Resource | None:
    """The disk of this name; None if there is none and the backup is a whole one."""
    from scloud.client.problems import is_missing

    try:
        disk: Resource = client.get(path("disks", name))
        return disk
    except Exception as error:
        if not is_missing(error) or found.get("since"):
            raise
        return None


def _into_new(client: Client, name: str, type: str | None, file: Path, found: Resource) -> Resource:
    """Into a disk that is made for it, and does not stay behind empty if it cannot be filled."""
    if type is None:
        raise typer.BadParameter(
            f"there is no disk '{name}': to have one made, name a disk type of a pool (`scloud disk-type list`); "
            "a disk of a node's own storage has no place for the bytes before it was attached to a VM",
            param_hint="'--type'",
        )
    answer = client.post("/disks", {"name": name, "spec": {"size_mib": found["size_mib"], "type": type}})
    disk = answer["resource"]
    try:
        _, errors = await_operations(client, [answer["operation"]])
        if errors:
            raise errors[0]
        return _send(client, disk, file)
    except Exception:
        try:
            client.delete(path("disks", disk["id"]), now=True)
        except Exception as error:
            note(f"The disk {name}, which was made for it, stays behind: {error}")
        raise


def _send(client: Client, disk: Resource, file: Path) -> Resource:
    """The ended operation."""
    from scloud.client.problems import from_operation

    size = file.stat().st_size
    with transfer(f"sending {file.name}") as on_bytes:
        operation: Resource = client.request(
            "PUT",
            path("disks", disk["id"], "data"),
            content=_pieces(file, on_bytes, size),
            headers={"Content-Length": str(size), "Content-Type": "application/octet-stream"},
        )
    if operation["state"] != "done":
        raise from_operation(operation)
    return operation


def _pieces(file: Path, on_bytes: Callable[[int, int | None], None], size: int) -> Iterator[bytes]:
    done = 0
    with file.open("rb") as stream:
        while piece := stream.read(PIECE):
            yield piece
            done += len(piece)
            on_bytes(done, size)
