"""`scloud vm start|stop|reboot|resize|rebuild|set|migrate`."""

from __future__ import annotations

from typing import Annotated

import typer

from scloud.cli.follow import settle
from scloud.cli.human import parse_size
from scloud.cli.looks import VM
from scloud.cli.options import How, NameArgument, NamesArgument, Switch, with_how
from scloud.cli.session import connect, parsed, path
from scloud.cli.standard import act, given


@with_how
def start(names: NamesArgument, *, how: How) -> None:
    """Start one VM or several."""
    act(VM, names, "start", {}, how, "started")


@with_how
def stop(
    names: NamesArgument,
    force: Annotated[bool, typer.Option("--force", help="Switch it off without asking the guest.")] = False,
    *,
    how: How,
) -> None:
    """Ask the guest to shut down; switch it off if it has not done so in time."""
    act(VM, names, "stop", {"force": force}, how, "stopped")


@with_how
def reboot(names: NamesArgument, *, how: How) -> None:
    """Reboot one VM or several."""
    act(VM, names, "reboot", {}, how, "rebooted")


@with_how
def resize(
    name: NameArgument,
    cpus: Annotated[int | None, typer.Option("--cpus", min=1, help="Virtual CPUs.")] = None,
    memory: Annotated[str | None, typer.Option("--memory", metavar="SIZE", help="Memory, such as 512M or 1G.")] = None,
    *,
    how: How,
) -> None:
    """Change a VM's CPUs or memory: at once where the guest allows it, else on its next start."""
    if cpus is None and memory is None:
        raise typer.BadParameter("say --cpus or --memory, or both")
    mib = None if memory is None else parsed(parse_size, memory, "--memory")
    act(VM, [name], "resize", given(cpus=cpus, memory_mib=mib), how, "resized")


@with_how
def rebuild(
    name: NameArgument,
    image: Annotated[str | None, typer.Option("--image", help="Another image than it was made from.")] = None,
    *,
    how: How,
) -> None:
    """Make a VM's system disk anew from an image. What was on it is lost; addresses and data disks stay."""
    act(VM, [name], "rebuild", given(image=image), how, "rebuilt")


@with_how
def set_values(
    name: NameArgument,
    ha: Annotated[
        Switch | None, typer.Option("--ha", help="Whether it is started elsewhere when its node is lost.")
    ] = None,
    ha_priority: Annotated[
        int | None, typer.Option("--ha-priority", min=0, max=100, help="VMs with a higher one are started first.")
    ] = None,
    *,
    how: How,
) -> None:
    """Say what becomes of a VM when its node is lost."""
    spec = given(ha=None if ha is None else ha is Switch.ON, ha_priority=ha_priority)
    if not spec:
        raise typer.BadParameter("say --ha or --ha-priority, or both")
    with connect() as client:
        answer = client.patch(path(VM.collection, name), {"spec": spec})
        settle(client, answer, how, "changed", "changed")


@with_how
def migrate(
    name: NameArgument,
    to: Annotated[str | None, typer.Option("--to", metavar="NODE", help="Where to; else the best node.")] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="End the migration under way; the VM stays.")] = False,
    stuck: Annotated[
        str | None,
        typer.Option(
            "--stuck",
            metavar="HOW",
            help="A guest that writes faster than is copied: auto-converge (slow it down), post-copy, or give-up.",
        ),
    ] = None,
    bandwidth: Annotated[int | None, typer.Option("--bandwidth", min=1, help="At most so many MiB/s.")] = None,
    downtime: Annotated[int | None, typer.Option("--downtime", min=10, help="Milliseconds it may pause.")] = None,
    *,
    how: How,
) -> None:
    """Bring a running VM to another node without stopping it."""
    body = given(node=to, cancel=cancel or None, stuck=stuck, bandwidth_mib_s=bandwidth, downtime_ms=downtime)
    # Cancelling is done when the migration has ended, as cancelled: that is no failure of this command.
    act(VM, [name], "migrate", body, How(how.output, how.wait and not cancel, how.timeout), "migrated")
