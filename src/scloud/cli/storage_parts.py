"""`scloud storage-cluster device|node|maintenance`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from scloud.cli.human import parse_size
from scloud.cli.options import How, NameArgument, with_how
from scloud.cli.pool import Media
from scloud.cli.session import parsed
from scloud.cli.standard import act, given, noun
from scloud.cli.storage_looks import STORAGE_CLUSTER

device = noun("Devices of a storage cluster: added, drained and removed, replaced, all while it is in use.")
node = noun("Nodes of a storage cluster.")
maintenance = noun("Work on a node: nothing is rebuilt elsewhere though its OSDs are down.")
DeviceArgument = Annotated[
    str, typer.Argument(metavar="DEVICE", help="osd.3, a uuid, or NODE:PATH.", show_default=False)
]
NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="Name or id.", show_default=False)]


def _do(name: str, action: str, body: Mapping[str, object], how: How, said: str) -> None:
    act(STORAGE_CLUSTER, [name], action, body, how, said)


@device.command("add")
@with_how
def add_device(
    name: NameArgument,
    place: Annotated[str, typer.Argument(metavar="NODE:PATH", help="Where it is; it is OVERWRITTEN.")],
    size: Annotated[
        str | None, typer.Option("--size", help="Make a sparse file of this size.", show_default="a block device")
    ] = None,
    media: Annotated[Media, typer.Option("--media", help="What it is.")] = Media.SSD,
    *,
    how: How,
) -> None:
    """Add a device; data moves there by itself."""
    host, colon, path = place.partition(":")
    if not colon or not path.startswith("/"):
        raise typer.BadParameter("write NODE:PATH, such as n1:/dev/sdb", param_hint="'NODE:PATH'")
    mib = parsed(parse_size, size, "--size") if size else None
    body = given(node=host, path=path, size_mib=mib, media=media.value)
    _do(name, "device-add", body, how, f"has {place}")


@device.command("remove")
@with_how
def remove_device(name: NameArgument, which: DeviceArgument, *, how: How) -> None:
    """Drain a device, wipe it and forget it. Refused if redundancy or room would be lost."""
    _do(name, "device-remove", {"device": which}, how, f"no longer has {which}")


@device.command("keep")
@with_how
def keep_device(name: NameArgument, which: DeviceArgument, *, how: How) -> None:
    """Take back a removal or replacement that is not at its end."""
    _do(name, "device-keep", {"device": which}, how, f"keeps {which}")


@device.command("replace")
@with_how
def replace_device(
    name: NameArgument,
    which: DeviceArgument,
    path: Annotated[
        str | None, typer.Option("--path", help="Where the new one is.", show_default="where the old one was")
    ] = None,
    *,
    how: How,
) -> None:
    """Begin anew with an empty device in the place of a broken or an old one."""
    body = given(device=which, path=path)
    _do(name, "device-replace", body, how, f"has a new device instead of {which}")


@node.command("add")
@with_how
def add_node(name: NameArgument, which: NodeArgument, *, how: How) -> None:
    """Let a node use the cluster; give it devices with `device add`."""
    _do(name, "node-add", {"node": which}, how, f"has node {which}")


@node.command("remove")
@with_how
def remove_node(name: NameArgument, which: NodeArgument, *, how: How) -> None:
    """Drain a node's devices and take it out of the cluster."""
    _do(name, "node-remove", {"node": which}, how, f"no longer has node {which}")


@maintenance.command("on")
@with_how
def maintenance_on(name: NameArgument, which: NodeArgument, *, how: How) -> None:
    """Before work on a node: its OSDs stay where they are while they are down."""
    body = {"node": which, "on": True}
    _do(name, "maintenance", body, how, f"waits for node {which} while it is away")


@maintenance.command("off")
@with_how
def maintenance_off(name: NameArgument, which: NodeArgument, *, how: How) -> None:
    """When the work is done."""
    body = {"node": which, "on": False}
    _do(name, "maintenance", body, how, f"no longer waits for node {which}")
