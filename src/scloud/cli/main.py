"""`scloud`: the root of all commands."""

from __future__ import annotations

import gc
import os
from typing import Annotated, ClassVar

import typer

from scloud import __version__
from scloud.cli.lazy import Entry, LazyGroup

RUN, COMPUTE, NETWORK, STORE, ADMIN, TOOLS = (
    "Start and stop",
    "Compute",
    "Network",
    "Disks and images",
    "Administration",
    "Tools",
)


class Root(LazyGroup):
    entries: ClassVar[dict[str, Entry]] = {
        "up": Entry("scloud.setup.commands:up", "Start a cloud on this machine, and a first VM in it (as root).", RUN),
        "down": Entry("scloud.setup.commands:down", "Stop the cloud on this machine; --purge removes it.", RUN),
        "lab": Entry("scloud.lab.commands:app", "A cloud of several nodes on this one machine.", RUN),
        "sim": Entry("scloud.sim.command:sim", "How big a cloud a manager carries: thousands of simulated nodes.", RUN),
        "test": Entry("scloud.setup.commands:test", "Run the tests.", RUN),
        "status": Entry("scloud.cli.health:status", "Whether the cloud is healthy, and what is not.", RUN),
        "vm": Entry("scloud.cli.vm:app", "Virtual machines.", COMPUTE),
        "keypair": Entry("scloud.cli.keypair:app", "SSH keys that new VMs let in.", COMPUTE),
        "placement-group": Entry("scloud.cli.placement_group:app", "VMs to keep on different nodes.", COMPUTE),
        "vpc": Entry("scloud.cli.vpc:app", "Private networks, isolated from one another.", NETWORK),
        "subnet": Entry("scloud.cli.subnet:app", "Address ranges of a VPC.", NETWORK),
        "security-group": Entry("scloud.cli.security_group:app", "What traffic may reach and leave VMs.", NETWORK),
        "nic": Entry("scloud.cli.nic:app", "Network interfaces.", NETWORK),
        "network": Entry("scloud.cli.network:app", "Why packets arrive, or do not.", NETWORK),
        "image": Entry("scloud.cli.image:app", "What system disks are made from.", STORE),
        "disk": Entry("scloud.cli.disk:app", "Disks, their limits, backups and trash.", STORE),
        "snapshot": Entry("scloud.cli.snapshot:app", "What a disk was like at a moment.", STORE),
        "node": Entry("scloud.cli.node:app", "The machines that VMs run on.", ADMIN),
        "storage-cluster": Entry("scloud.cli.storage_cluster:app", "Storage clusters (Ceph) and their health.", ADMIN),
        "pool": Entry("scloud.cli.pool:app", "Pools of storage clusters.", ADMIN),
        "disk-type": Entry("scloud.cli.disk_type:app", "Which kinds of disks there are to choose from.", STORE),
        "manager": Entry("scloud.cli.manager:app", "The manager that leads, and its standbys.", ADMIN),
        "cluster": Entry("scloud.cli.cluster:app", "Groups of nodes of one architecture.", ADMIN),
        "ha": Entry("scloud.cli.ha:app", "Nodes that are lost, and their VMs.", ADMIN),
        "account": Entry("scloud.cli.account:app", "Tenants.", ADMIN),
        "audit": Entry("scloud.cli.health:audit", "Compare what runs with what should; exit 1 if it differs.", ADMIN),
        "token": Entry("scloud.cli.token:app", "Secrets that programs and people log in with.", TOOLS),
        "operation": Entry("scloud.cli.operation:app", "What was asked for, and how far it is.", TOOLS),
        "event": Entry("scloud.cli.event:app", "What has happened.", TOOLS),
        "context": Entry("scloud.cli.context:app", "Which cloud to talk to, and as whom.", TOOLS),
        "api": Entry("scloud.cli.raw:api", "Call the REST API directly.", TOOLS),
        "version": Entry("scloud.cli.health:version", "The version of this command and of the cloud.", TOOLS),
    }


def _version(value: bool) -> None:
    if value:
        print(f"scloud {__version__}")
        raise typer.Exit()


def root(
    context: Annotated[
        str | None,
        typer.Option(
            "--context", metavar="NAME", help="Talk to another cloud than the current one.", show_default=False
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the noun."""
    if context:
        # The environment, because commands such as ssh call this program again.
        os.environ["SCLOUD_CONTEXT"] = context


app = typer.Typer(
    name="scloud",
    cls=Root,
    callback=root,
    help="Virtual machines, disks and networks of a private cloud.\n\n"
    "Every command is `scloud NOUN VERB [NAME] [--options]`; `scloud NOUN --help` tells its verbs, "
    "and -o json or yaml prints for programs. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
)


def main() -> None:
    """The entry point. Leaves with the exit code."""
    # Imports make many objects and no garbage: collecting between them is a tenth of a short command's time.
    gc.set_threshold(50_000)
    app(prog_name="scloud")


if __name__ == "__main__":
    main()
