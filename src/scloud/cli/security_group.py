"""`scloud security-group`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from scloud.cli import human
from scloud.cli.follow import settle
from scloud.cli.looks import SECURITY_GROUP, at
from scloud.cli.names import Names
from scloud.cli.options import How, NameArgument, OutputOption, with_how
from scloud.cli.output import Column, emit, show, table
from scloud.cli.session import Output, connect, parsed, path
from scloud.cli.standard import add_delete, add_list, add_rename, add_show, create, given, noun

app = noun("Security groups: what traffic may reach and leave VMs. What no rule allows is dropped.")
rule = noun("Rules of a security group; they act on running VMs at once.")


class Direction(StrEnum):
    INBOUND = "inbound"
    OUTBOUND = "outbound"


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    ANY = "any"


@app.command("create")
@with_how
def create_group(name: Annotated[str, typer.Argument(metavar="NAME", help="Its name.")], *, how: How) -> None:
    """Create a security group; `rule list` shows the rules that it begins with."""
    create(SECURITY_GROUP, {"name": name, "spec": {}}, how)


add_list(app, SECURITY_GROUP)
add_show(app, SECURITY_GROUP)
add_rename(app, SECURITY_GROUP)
add_delete(app, SECURITY_GROUP)
app.add_typer(rule, name="rule")


@rule.command("add")
@with_how
def add_rule(
    name: NameArgument,
    direction: Annotated[Direction, typer.Option("--direction", help="To the VM or from it.")],
    protocol: Annotated[Protocol, typer.Option("--protocol", help="Which protocol.")] = Protocol.ANY,
    port: Annotated[
        str | None,
        typer.Option(
            "--port", metavar="PORT|LOW-HIGH", help="The receiver's port or range of ports.", show_default="all"
        ),
    ] = None,
    cidr: Annotated[str | None, typer.Option("--cidr", help="Whom with: these addresses, such as 0.0.0.0/0.")] = None,
    group: Annotated[str | None, typer.Option("--group", help="Whom with: the VMs in this security group.")] = None,
    *,
    how: How,
) -> None:
    """Allow some traffic."""
    if (cidr is None) == (group is None):
        raise typer.BadParameter("say --cidr or --group, and not both")
    if port is not None and protocol not in (Protocol.TCP, Protocol.UDP):
        raise typer.BadParameter("ports go with --protocol tcp or udp only", param_hint="'--port'")
    low, high = (None, None) if port is None else parsed(human.parse_ports, port, "--port")
    body = given(
        direction=direction.value, protocol=protocol.value, port_min=low, port_max=high, cidr=cidr, group=group
    )
    with connect() as client:
        answer = client.post(path("security-groups", name, "rules"), body)
        settle(client, answer, how, "has the rule", "changed")


@rule.command("list")
def list_rules(name: NameArgument, output: OutputOption = Output.TABLE) -> None:
    """List a security group's rules."""
    with connect() as client:
        rules = at(client.get(path("security-groups", name)), "spec.rules") or []
        if output is not Output.TABLE:
            emit(rules, output)
            return
        names = Names(client, {"security-groups": [item["group"] for item in rules if item.get("group")]})
        columns = (
            Column("ID", lambda item: item["id"]),
            Column("DIRECTION", lambda item: item["direction"]),
            Column("PROTOCOL", lambda item: item["protocol"]),
            Column("PORTS", lambda item: human.ports(item.get("port_min"), item.get("port_max"))),
            Column("PEER", lambda item: item.get("cidr") or f"group {names.of('security-groups', item.get('group'))}"),
        )
        show(table(columns, rules) if rules else f"{name} has no rules: it lets nothing through.")


@rule.command("delete")
@with_how
def delete_rule(
    name: NameArgument,
    rule_id: Annotated[str, typer.Argument(metavar="RULE_ID", help="As `rule list` tells it.")],
    *,
    how: How,
) -> None:
    """Take a rule away; connections that only it allowed are cut."""
    with connect() as client:
        answer = client.delete(path(path("security-groups", name, "rules").lstrip("/"), rule_id))
        settle(client, answer, how, "no longer has the rule", "changed")
