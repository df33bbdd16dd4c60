"""`scloud image`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scloud.cli.follow import settle
from scloud.cli.looks import IMAGE
from scloud.cli.options import How, NameArgument, OutputOption, with_how
from scloud.cli.output import Resource, emit, note, say
from scloud.cli.session import Output, connect, path
from scloud.cli.standard import add_delete, add_list, add_rename, add_show, given, noun

if TYPE_CHECKING:
    from scloud.client.http import Client

app = noun("Images: what system disks are made from.")
PIECE = 1 << 20


class Format(StrEnum):
    RAW = "raw"
    QCOW2 = "qcow2"


@app.command("import")
@with_how
def import_image(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A file on this machine, or an http(s) URL.")],
    format: Annotated[Format, typer.Option("--format", help="What the source is; it is checked, never guessed.")],
    sha256: Annotated[str | None, typer.Option("--sha256", help="Checksum that the source must have.")] = None,
    login_user: Annotated[
        str | None, typer.Option("--login-user", help="Whom `vm ssh` logs in as.", show_default="root")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="For every account to use (administrators only).")] = False,
    *,
    how: How,
) -> None:
    """Import an image from a file, which is uploaded, or from a URL, which the cloud fetches."""
    remote = "://" in source
    file = Path(source)
    if not remote and not file.is_file():
        raise typer.BadParameter(f"{source} is neither a file on this machine nor a URL", param_hint="'SOURCE'")
    checksum = sha256.lower() if sha256 else None
    spec = given(
        source=source if remote else "upload",
        format=format.value,
        sha256=checksum,
        login_user=login_user,
        public=public or None,
    )
    with connect() as client:
        answer = client.post("/images", {"name": name, "spec": spec})
        if not remote:
            _upload(client, answer["resource"], file)
        settle(client, answer, how, "imported", "created")


@app.command("create-from")
@with_how
def create_from(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The image's name.")],
    disk: Annotated[str | None, typer.Option("--disk", metavar="DISK", help="Of a disk, also one in use.")] = None,
    vm: Annotated[
        str | None, typer.Option("--vm", metavar="VM", help="Of the system disk of a VM that is off.")
    ] = None,
    login_user: Annotated[
        str | None, typer.Option("--login-user", help="Whom `vm ssh` logs in as.", show_default="its image's")
    ] = None,
    *,
    how: How,
) -> None:
    """Make an image of a disk as it is now."""
    if (disk is None) == (vm is None):
        raise typer.BadParameter("say --disk or --vm")
    source = path("disks", disk) if disk is not None else path("vms", str(vm))
    with connect() as client:
        answer = client.post(f"{source}/actions/image", given(name=name, login_user=login_user))
        settle(client, answer, how, "created", "created")


def _upload(client: Client, image: Resource, file: Path) -> None:
    """Send the file's bytes. If they do not arrive the image is deleted again: its name is free for another try."""
    size = file.stat().st_size
    try:
        with transfer(f"uploading {file.name}") as on_bytes:
            client.request(
                "PUT",
                path("images", image["id"], "data"),
                content=_pieces(file, size, on_bytes),
                headers={"Content-Length": str(size), "Content-Type": "application/octet-stream"},
            )
    except BaseException:
        client.delete(path("images", image["id"]))
        raise


def _pieces(file: Path, size: int, on_bytes: Callable[[int, int | None], None]) -> Iterator[bytes]:
    done = 0
    with file.open("rb") as stream:
        while piece := stream.read(PIECE):
            yield piece
            done += len(piece)
            on_bytes(done, size)


@contextmanager
def transfer(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar for bytes on a terminal's stderr; one line elsewhere."""
    if not sys.stderr.isatty():
        note(title)
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


add_list(app, IMAGE)
add_show(app, IMAGE)


@app.command("export")
def export(
    name: NameArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
    format: Annotated[Format, typer.Option("--format", help="In which format.")] = Format.QCOW2,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if there is one.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Save an image to a file on this machine."""
    if file.exists() and not force:
        raise typer.BadParameter(f"{file} is there already: name another file or say --force", param_hint="'FILE'")
    if not file.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {file.absolute().parent}", param_hint="'FILE'")
    with connect() as client, transfer(f"saving {name}") as on_bytes:
        size = client.download(path("images", name, "data"), file, on_bytes, format=format.value)
    if output is Output.TABLE:
        say(f"{name} saved to {file} ({size} bytes, {format.value})")
    else:
        emit({"file": str(file), "bytes": size, "format": format.value}, output)


add_rename(app, IMAGE)
add_delete(app, IMAGE)
