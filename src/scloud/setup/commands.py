"""The commands `up`, `down`, `test` and `node join`."""

from __future__ import annotations

from typing import Annotated

import typer


def up() -> None:
    """Start a cloud on this machine, and a first VM in it.

    Whatever is there already stays as it is; running it again changes nothing. Needs root.
    """
    from scloud.node.layout import Layout, cloud_root
    from scloud.setup.host import need_root
    from scloud.setup.up import up as bring_up

    need_root("up")
    bring_up(Layout(root=cloud_root()))


def down(
    purge: Annotated[bool, typer.Option("--purge", help="Remove all data, too, and every trace on this host.")] = False,
) -> None:
    """Shut the guests down and stop the cloud on this machine; `up` starts all of it again. Needs root."""
    from scloud.node.layout import Layout, cloud_root
    from scloud.setup.down import down as take_down
    from scloud.setup.host import need_root

    need_root("down")
    take_down(Layout(root=cloud_root()), purge=purge)


def test(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- PYTEST-ARGUMENT ...]", help="Handed to pytest.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Only what needs neither engines nor root.")] = False,
    long: Annotated[bool, typer.Option("--long", help="Only what takes longer than CI has.")] = False,
) -> None:
    """Check the sources and run the tests: all that CI runs."""
    from scloud.setup.host import need_root
    from scloud.setup.testing import run_tests

    if not fast:
        need_root("test")
    raise typer.Exit(run_tests(fast=fast, arguments=arguments or [], long=long))


def node_join(
    manager: Annotated[str, typer.Option("--manager", metavar="HOST:PORT", help="The link of the cloud's manager.")],
    token: Annotated[str, typer.Option("--token", help="The join token that `scloud node add` printed.")],
    name: Annotated[
        str | None, typer.Option("--name", help="The node's name as given to `node add`; else the hostname.")
    ] = None,
    underlay_device: Annotated[
        str | None, typer.Option("--underlay-device", help="Carries the tunnels; it is given to the switch.")
    ] = None,
    underlay_address: Annotated[
        str | None, typer.Option("--underlay-address", metavar="ADDRESS/PREFIX", help="The tunnels' address on it.")
    ] = None,
) -> None:
    """Make this host a node of a cloud. Needs root."""
    from scloud.node.layout import Layout, cloud_root
    from scloud.setup.host import need_root, node_name
    from scloud.setup.join import join

    need_root("node join")
    layout = Layout(root=cloud_root())
    join(layout, name or node_name(layout), manager, token, underlay_device, underlay_address)
