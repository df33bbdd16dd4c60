"""`scloud vm create`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scloud.cli.follow import await_operations, settle
from scloud.cli.human import parse_size
from scloud.cli.options import How, Switch, with_how
from scloud.cli.output import Column, Resource, emit, say, show, table
from scloud.cli.session import Output, connect, parsed, path
from scloud.cli.standard import given

if TYPE_CHECKING:
    from scloud.client.http import Client

_NICS, _DISKS, _PLACE = "Network", "Disks", "Placement"


@with_how
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name; NAME-1, NAME-2 ... with --count.")],
    image: Annotated[
        str, typer.Option("--image", metavar="IMAGE", help="What its system disk is made from.")
    ] = "micro",
    cpus: Annotated[int, typer.Option("--cpus", min=1, help="Virtual CPUs.")] = 1,
    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help="Memory, such as 512M or 1G.")] = "256M",
    keypair: Annotated[
        list[str] | None,
        typer.Option(
            "--keypair",
            metavar="KEYPAIR",
            help="SSH key to let in; repeat for several.",
            show_default="default, if it exists",
        ),
    ] = None,
    user_data: Annotated[
        str | None,
        typer.Option("--user-data", metavar="FILE|-", help="Script or #cloud-config that it runs at its first start."),
    ] = None,
    subnet: Annotated[
        list[str] | None,
        typer.Option(
            "--subnet",
            metavar="SUBNET",
            help="Subnet of a nic; repeat for several nics.",
            show_default="default",
            rich_help_panel=_NICS,
        ),
    ] = None,
    ip: Annotated[
        list[str] | None,
        typer.Option(
            "--ip",
            metavar="ADDRESS",
            help="Address of the nic, one for each --subnet in order.",
            show_default="next free",
            rich_help_panel=_NICS,
        ),
    ] = None,
    security_group: Annotated[
        list[str] | None,
        typer.Option(
            "--security-group",
            metavar="GROUP",
            help="Of every nic; repeat for several.",
            show_default="default",
            rich_help_panel=_NICS,
        ),
    ] = None,
    nic: Annotated[
        list[str] | None,
        typer.Option(
            "--nic", metavar="NIC", help="An existing nic, instead of or beside new ones.", rich_help_panel=_NICS
        ),
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(
            "--disk",
            metavar="NAME|SIZE",
            help="An existing data disk, or a new one of this size.",
            rich_help_panel=_DISKS,
        ),
    ] = None,
    system_disk: Annotated[
        str | None,
        typer.Option(
            "--system-disk",
            metavar="SIZE",
            help="Size of the system disk.",
            show_default="the image's",
            rich_help_panel=_DISKS,
        ),
    ] = None,
    disk_type: Annotated[
        str | None,
        typer.Option(
            "--disk-type",
            metavar="TYPE",
            help="Of the system disk and of new data disks.",
            show_default="its node's own storage",
            rich_help_panel=_DISKS,
        ),
    ] = None,
    node: Annotated[
        str | None, typer.Option("--node", metavar="NODE", help="The only node it may run on.", rich_help_panel=_PLACE)
    ] = None,
    placement_group: Annotated[
        str | None,
        typer.Option(
            "--placement-group", metavar="GROUP", help="Keep apart from this group's VMs.", rich_help_panel=_PLACE
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", min=1, max=4, help="GPUs passed through: 1, 2 or 4.", rich_help_panel=_PLACE),
    ] = None,
    gpu_model: Annotated[
        str | None,
        typer.Option("--gpu-model", metavar="MODEL", help="Such as t4.", show_default="any", rich_help_panel=_PLACE),
    ] = None,
    ha: Annotated[
        Switch | None,
        typer.Option(
            "--ha", help="Start it elsewhere when its node is lost.", show_default="on", rich_help_panel=_PLACE
        ),
    ] = None,
    ha_priority: Annotated[
        int | None,
        typer.Option(
            "--ha-priority", min=0, max=100, help="Higher ones first.", show_default="50", rich_help_panel=_PLACE
        ),
    ] = None,
    count: Annotated[int, typer.Option("--count", min=1, max=100, help="How many.", rich_help_panel=_PLACE)] = 1,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only tell where it would go, and why not elsewhere.", rich_help_panel=_PLACE),
    ] = False,
    *,
    how: How,
) -> None:
    """Create a VM, or several alike."""
    spec = given(
        image=image,
        cpus=cpus,
        memory_mib=parsed(parse_size, memory, "--memory"),
        disk_mib=None if system_disk is None else parsed(parse_size, system_disk, "--system-disk"),
        disk_type=disk_type,
        nics=_nics(subnet, ip, security_group, nic),
        user_data=None if user_data is None else _read(user_data),
        node=node,
        placement_group=placement_group,
        gpus=gpus,
        gpu_model=gpu_model,
        ha=None if ha is None else ha is Switch.ON,
        ha_priority=ha_priority,
    )
    if count > 1 and (disk or ip or nic):
        raise typer.BadParameter("--disk, --ip and --nic are for one VM and do not go with --count")
    new_disks = [parsed(parse_size, item, "--disk") for item in disk or () if item[:1].isdigit()]
    body: dict[str, Any] = {"name": name, "spec": spec}
    if count > 1:
        body["count"] = count
    with connect() as client:
        spec.update(given(keypairs=_keypairs(client, keypair)))
        named = [item for item in disk or () if not item[:1].isdigit()]
        if dry_run:
            spec.update(given(disks=named))
            _print_placement(client.post("/vms", body, dry_run=True), how.output)
            return
        with _made_disks(client, name, new_disks, disk_type) as made:
            spec.update(given(disks=named + made))
            answer = client.post("/vms", body)
        settle(client, answer, how, "created", "created")


def _nics(
    subnets: list[str] | None, ips: list[str] | None, groups: list[str] | None, existing: list[str] | None
) -> list[Resource]:
    """New nics for the subnets, then the existing ones; the default subnet if neither was named."""
    wanted = subnets or ([] if existing else ["default"])
    if ips and len(ips) > len(wanted):
        raise typer.BadParameter(f"there are {len(ips)} of --ip but {len(wanted)} of --subnet")
    addresses = [*(ips or []), *[None] * len(wanted)]
    new = [
        given(subnet=subnet, ip=address, security_groups=groups)
        for subnet, address in zip(wanted, addresses, strict=False)
    ]
    return [*new, *[{"nic": item} for item in existing or ()]]


def _read(source: str) -> str:
    try:
        return sys.stdin.read() if source == "-" else Path(source).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{source} cannot be read as text: {error}", param_hint="'--user-data'") from error


def _keypairs(client: Client, asked: list[str] | None) -> list[str]:
    if asked:
        return asked
    from scloud.client.problems import is_missing

    try:
        return [client.get("/keypairs/default")["id"]]
    except Exception as error:
        if is_missing(error):
            return []
        raise


@contextmanager
def _made_disks(client: Client, vm: str, sizes: list[int], disk_type: str | None) -> Iterator[list[str]]:
    """Data disks made for a VM, as ids; deleted again if the VM is refused."""
    answers: list[Resource] = []
    try:
        for number, mib in enumerate(sizes, 1):
            spec = given(size_mib=mib, type=disk_type)
            answers.append(client.post("/disks", {"name": f"{vm}-data-{number}", "spec": spec}))
        _, errors = await_operations(client, [answer["operation"] for answer in answers])
        if errors:
            raise errors[0]
        yield [answer["resource"]["id"] for answer in answers]
    except BaseException:
        for answer in answers:
            client.delete(path("disks", answer["resource"]["id"]), now=True)
        raise


def _print_placement(plan: Resource, output: Output) -> None:
    if output is not Output.TABLE:
        emit(plan, output)
        return
    columns = (
        Column("NODE", lambda item: item["node"]),
        Column("FITS", lambda item: "yes" if item["fits"] else "no", state=True),
        Column("SCORE", lambda item: f"{item['score']:.2f}" if item["fits"] else "-", right=True),
        Column("WHY", lambda item: "; ".join(item.get("reasons") or ()) or _weighed(item, plan["node"])),
    )
    show(table(columns, sorted(plan["candidates"], key=lambda item: (not item["fits"], item.get("score") or 0))))
    say(f"It would go to {plan['node']}." if plan["node"] else "No node can take it.")


_PARTS = {
    "promised": "promised to VMs",
    "load": "load",
    "gpu": "GPUs kept for others",
    "group": "others of its group",
    "account": "your other VMs",
}


def _weighed(item: Resource, chosen: str | None) -> str:
    """What a node's score is the sum of, leaving out what is nothing."""
    parts = [f"{value:.2f} {_PARTS.get(name, name)}" for name, value in (item.get("parts") or {}).items() if value]
    return ", ".join((["chosen"] if item["node"] == chosen else []) + parts)
