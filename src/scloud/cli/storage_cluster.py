"""`scloud storage-cluster`."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scloud.cli.human import parse_size
from scloud.cli.options import How, NameArgument, OutputOption, WatchOption, with_how
from scloud.cli.output import console, emit, show
from scloud.cli.pool import Media
from scloud.cli.session import Output, connect, parsed, path
from scloud.cli.standard import act, add_delete, add_list, add_rename, create, given, noun
from scloud.cli.storage_looks import STORAGE_CLUSTER
from scloud.cli.storage_parts import device, maintenance, node
from scloud.cli.storage_use import USAGE
from scloud.cli.storage_view import rendered

if TYPE_CHECKING:
    from rich.console import Group

app = noun("Storage clusters: Ceph on nodes' devices, deployed, watched, grown and mended.")
app.add_typer(device, name="device")
app.add_typer(node, name="node")
app.add_typer(maintenance, name="maintenance")
WATCH_S = 2.0
_DEVICE = re.compile(r"(?P<node>[^:]+):(?P<path>/[^:]+)(?::(?P<size>\d[^:]*?))?(?::(?P<media>hdd|ssd))?\Z")
MediaOption = Annotated[Media, typer.Option("--media", help="What the devices are, where it is not said.")]
NodesOption = Annotated[
    list[str] | None,
    typer.Option("--nodes", "--node", metavar="NODE,...", help="Who is part of it.", show_default="all ready nodes"),
]


def parse_device(text: str, media: str) -> dict[str, Any]:
    """`n1:/dev/sdb`, `n1:/osd/0.img:10G`, `n1:/dev/sdb:hdd`. ValueError says what is allowed."""
    match = _DEVICE.match(text)
    if match is None:
        raise ValueError(f"'{text}' is not a device: write NODE:PATH, with :SIZE for a sparse file and :hdd or :ssd")
    size = parse_size(match["size"]) if match["size"] else None
    return given(node=match["node"], path=match["path"], size_mib=size, media=match["media"] or media)


def _nodes(values: list[str] | None) -> list[str] | None:
    return [name for value in values for name in value.split(",") if name] if values else None


@app.command("create")
@with_how
def create_cluster(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")],
    nodes: NodesOption = None,
    devices: Annotated[
        list[str] | None,
        typer.Option("--device", metavar="NODE:PATH[:SIZE][:hdd|ssd]", help="A device to keep data on; repeat it."),
    ] = None,
    media: MediaOption = Media.SSD,
    *,
    how: How,
) -> None:
    """Deploy a storage cluster: monitors, managers, and an OSD on each device, which is OVERWRITTEN."""
    asked = [parsed(lambda value: parse_device(value, media.value), text, "--device") for text in devices or ()]
    spec = given(nodes=_nodes(nodes), devices=asked)
    create(STORAGE_CLUSTER, {"name": name, "spec": spec}, how)


@app.command("adopt")
@with_how
def adopt(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called here.")],
    conf: Annotated[Path, typer.Option("--conf", help="Its ceph.conf.", exists=True, dir_okay=False)],
    keyring: Annotated[
        Path, typer.Option("--keyring", help="A keyring with client.admin.", exists=True, dir_okay=False)
    ],
    nodes: NodesOption = None,
    *,
    how: How,
) -> None:
    """Use a Ceph cluster that is there; its daemons and devices stay its own."""
    spec = given(mode="adopted", conf=conf.read_text(), keyring=keyring.read_text(), nodes=_nodes(nodes))
    create(STORAGE_CLUSTER, {"name": name, "spec": spec}, how)


add_list(app, STORAGE_CLUSTER, tenant=False)


@app.command("show")
def show_cluster(name: NameArgument, watch: WatchOption = False, output: OutputOption = Output.TABLE) -> None:
    """Show its health, tree, devices, placement groups and recovery."""
    with connect() as client:
        where = f"{path('storage-clusters', name)}?fresh=true"
        if output is not Output.TABLE:
            while True:
                emit(client.get(where), output)
                if not watch:
                    return
                time.sleep(WATCH_S)
        names = {item["id"]: item["name"] for item in client.pages("/nodes")}

        def look() -> Group:
            use = client.get(USAGE, all_accounts=True)["items"]
            return rendered(client.get(where), names, list(client.pages("/pools")), use)

        screen = console()
        if not watch or not screen.is_terminal:
            while True:
                show(look())
                if not watch:
                    return
                time.sleep(WATCH_S)
        from rich.live import Live

        with Live(console=screen, screen=True, auto_refresh=False) as live:
            while True:
                live.update(look(), refresh=True)
                time.sleep(WATCH_S)


@app.command("set")
@with_how
def set_cluster(
    name: NameArgument,
    recovery_profile: Annotated[
        str | None,
        typer.Option(
            "--recovery-profile", metavar="client|balanced|recovery", help="What gives way to what while it recovers."
        ),
    ] = None,
    scrub_hours: Annotated[
        str | None,
        typer.Option("--scrub-hours", metavar="BEGIN-END", help="When it may scrub, such as 22-6; 0-0: always."),
    ] = None,
    deep_scrub_days: Annotated[
        int | None, typer.Option("--deep-scrub-days", min=1, max=365, help="Everything is read once in so many days.")
    ] = None,
    warn_percent: Annotated[
        int | None, typer.Option("--warn-percent", min=10, max=95, help="How full it may be without a warning.")
    ] = None,
    *,
    how: How,
) -> None:
    """Change its settings."""
    begin, end = (None, None) if scrub_hours is None else parsed(_hours, scrub_hours, "--scrub-hours")
    spec = given(
        recovery_profile=recovery_profile,
        scrub_begin_hour=begin,
        scrub_end_hour=end,
        deep_scrub_days=deep_scrub_days,
        warn_percent=warn_percent,
    )
    if not spec:
        raise typer.BadParameter("say what to change: see --help")
    from scloud.cli.follow import settle

    with connect() as client:
        answer = client.patch(path("storage-clusters", name), {"spec": spec})
        settle(client, answer, how, "changed", "changed")


def _hours(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,2})-(\d{1,2})", text)
    if match is None or int(match[1]) > 23 or int(match[2]) > 24:
        raise ValueError(f"'{text}' are no hours: write BEGIN-END, such as 22-6")
    return int(match[1]), int(match[2])


@app.command("repair")
@with_how
def repair(
    name: NameArgument,
    groups: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PLACEMENT_GROUP...", help="As `show` tells them.", show_default="all inconsistent ones"
        ),
    ] = None,
    *,
    how: How,
) -> None:
    """Mend inconsistent placement groups from their good copies."""
    body = given(placement_groups=groups)
    act(STORAGE_CLUSTER, [name], "repair", body, how, "repaired")


@app.command("deep-scrub")
@with_how
def deep_scrub(
    name: NameArgument,
    pools: Annotated[
        list[str] | None, typer.Option("--pool", help="Only this pool; repeat it.", show_default="all")
    ] = None,
    *,
    how: How,
) -> None:
    """Have everything read and compared now."""
    act(STORAGE_CLUSTER, [name], "deep-scrub", given(pools=pools), how, "is being scrubbed")


add_rename(app, STORAGE_CLUSTER)
add_delete(app, STORAGE_CLUSTER)
