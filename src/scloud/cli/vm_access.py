"""`scloud vm ssh|port-forward|console`: reaching a guest through its node, without a public address."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from scloud.cli.human import parse_forward
from scloud.cli.options import NameArgument
from scloud.cli.session import connect, parsed, path

if TYPE_CHECKING:
    from scloud.cli.output import Resource
    from scloud.client.http import Client

BOOT_S = 180.0
"""An emulated guest may need a minute and more from power-on to its SSH server."""


def ssh(
    name: NameArgument,
    command: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- COMMAND", help="What to run in it; a login shell if nothing.", show_default=False),
    ] = None,
    user: Annotated[
        str | None, typer.Option("--user", "-l", help="Log in as.", show_default="the image's login user")
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option("--identity", "-i", metavar="FILE", help="Private key.", show_default="that of the VM's keypair"),
    ] = None,
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="The guest's SSH port.")] = 22,
    boot: Annotated[
        float, typer.Option("--boot-time", min=0, metavar="SECONDS", help="How long to wait for a guest that boots.")
    ] = BOOT_S,
) -> None:
    """Log in to a VM by SSH, or run a command in it; leaves with that command's exit status."""
    program = shutil.which("ssh")
    if program is None:
        from scloud.client.problems import failure

        raise failure("unavailable", "there is no `ssh` on this machine: install openssh-client")
    with connect() as client:
        arguments = ssh_arguments(client, client.get(path("vms", name)), user, identity, port, boot)
    # In place of this process: signals, the terminal and the exit status are ssh's own.
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(program, [*arguments, *(["--", *command] if command else [])])


def ssh_arguments(
    client: Client, vm: Resource, user: str | None, identity: str | None, port: int, boot: float
) -> list[str]:
    """The ssh command line up to the host. Refuses a VM that is not going to run."""
    from scloud.client.contexts import config_dir, private_folder
    from scloud.client.problems import failure

    name, state = vm["name"], vm["status"]["state"]
    if vm["spec"].get("power") == "off" or state in ("stopped", "error", "deleting"):
        reason = vm["status"].get("reason")
        raise failure("conflict", f"{name} is {state}{f' ({reason})' if reason else ''}: `scloud vm start {name}`")
    proxy = [
        *(sys.executable, "-m", "scloud.cli.main", "vm", "port-forward", vm["id"], str(port)),
        *("--stdio", "--boot-time", f"{boot:g}"),
    ]
    hosts = private_folder(config_dir() / "known_hosts") / _host_key_name(client, vm)
    arguments = ["ssh", "-o", f"ProxyCommand={shlex.join(proxy).replace('%', '%%')}"]
    for option in (
        f"HostKeyAlias={vm['id']}",
        f'UserKnownHostsFile="{hosts}"',
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=accept-new",
        "LogLevel=ERROR",
    ):
        arguments += ["-o", option]
    keys = [identity] if identity else _own_keys(client, vm)
    for key in keys:
        arguments += ["-i", key]
    if keys:
        arguments += ["-o", "IdentitiesOnly=yes"]
    return [*arguments, "-l", user or _login_user(client, vm), name]


def _host_key_name(client: Client, vm: Resource) -> str:
    """A rebuilt guest has a new host key, and is meant to: each making of the system disk has its own file."""
    disks = client.pages("/disks", {"vm": vm["id"]})
    rebuilds = next((disk["spec"].get("rebuilds", 0) for disk in disks if disk["spec"].get("system")), 0)
    return f"{vm['id']}-{rebuilds}"


def _own_keys(client: Client, vm: Resource) -> list[str]:
    """Private keys of the VM's keypairs that are on this machine; with none, ssh offers what it has."""
    from scloud.client.keys import key_path
    from scloud.model.errors import CloudError

    found = []
    for ref in vm["spec"].get("keypairs") or ():
        try:
            file = key_path(client.get(path("keypairs", ref))["name"])
        except CloudError:
            continue  # deleted since: the guest still has it, but its name is lost
        if file.exists():
            found.append(str(file))
    return found


def _login_user(client: Client, vm: Resource) -> str:
    from scloud.model.errors import CloudError

    try:
        return str(client.get(path("images", vm["spec"]["image"]))["spec"].get("login_user") or "root")
    except CloudError:
        return "root"


def port_forward(
    name: NameArgument,
    ports: Annotated[
        list[str],
        typer.Argument(
            metavar="LOCAL:REMOTE...", help="Ports, such as 8080:80; REMOTE alone takes any free local one."
        ),
    ],
    stdio: Annotated[
        bool, typer.Option("--stdio", hidden=True, help="Carry one connection over stdin and stdout.")
    ] = False,
    boot: Annotated[
        float, typer.Option("--boot-time", min=0, hidden=True, help="With --stdio: keep trying for so many seconds.")
    ] = 0.0,
) -> None:
    """Listen on 127.0.0.1 and carry connections to ports of a VM, until interrupted."""
    import asyncio

    from scloud.cli import pipes
    from scloud.client.contexts import current_context

    pairs = [parsed(parse_forward, item, "LOCAL:REMOTE") for item in ports]
    if stdio:
        if len(pairs) != 1:
            raise typer.BadParameter("--stdio carries one port")
        asyncio.run(pipes.forward_stdio(current_context(), name, pairs[0][1], boot))
        return
    with connect() as client:
        vm = client.get(path("vms", name))
    asyncio.run(pipes.forward_listen(current_context(), vm["id"], vm["name"], pairs))


def console(
    name: NameArgument,
    linger: Annotated[
        float,
        typer.Option(
            "--linger",
            min=0,
            metavar="SECONDS",
            help="When stdin is not a terminal: leave once it has ended and the console was silent for so long.",
        ),
    ] = 2.0,
) -> None:
    """Open a VM's serial console; Ctrl-] leaves it. When stdin is not a terminal its bytes are typed in."""
    import asyncio

    from scloud.cli import pipes
    from scloud.client.contexts import current_context

    with connect() as client:
        vm = client.get(path("vms", name))
    asyncio.run(pipes.console(current_context(), vm["id"], vm["name"], linger))
