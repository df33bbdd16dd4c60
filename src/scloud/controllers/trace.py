"""`network trace`: the way of a packet from intent, and what the real switches say about it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from scloud.controllers.directory import AnyDesired, Directory
from scloud.controllers.manager import Manager
from scloud.flows.explain import trace_path
from scloud.flows.pipeline import GATEWAY_MAC
from scloud.flows.view import LocalPort, LocalVpc, NodeView, RemotePort
from scloud.model.desired import DesiredGroup, DesiredPort, DesiredVpc
from scloud.model.errors import CloudError, invalid
from scloud.model.kinds import Kind, State
from scloud.model.specs import NicSpec
from scloud.store.database import Tx
from scloud.store.resources import Resource, all_of, find_many, get, sources_of

FIRST_OFPORT = 10


def view_of(directory: Directory, node: str, tunnel_ip: str) -> NodeView:
    """The view a node compiles, with port numbers of our own choosing."""
    entries = [directory.wish(node, key) for key in sorted(directory.wishes(node))]
    items: list[AnyDesired] = [entry[0] for entry in entries if entry is not None]
    ports = [item for item in items if isinstance(item, DesiredPort) and not item.absent]
    local = [port for port in ports if port.on(node)]
    vpcs = [item for item in items if isinstance(item, DesiredVpc)]
    numbers = {port.id: FIRST_OFPORT + index for index, port in enumerate(local)}
    services = {vpc.id: FIRST_OFPORT + len(local) + index for index, vpc in enumerate(vpcs)}
    return NodeView(
        tunnel_ip=tunnel_ip,
        tunnel_ofport=1,
        vpcs=tuple(LocalVpc(vpc, services[vpc.id]) for vpc in vpcs),
        local=tuple(LocalPort(port, numbers[port.id], numbers[port.id]) for port in local),
        remote=tuple(RemotePort(port) for port in ports if not port.on(node)),
        groups=tuple(item for item in items if isinstance(item, DesiredGroup)),
    )


def nic_of(tx: Tx, ref: str, account: str, field: str) -> Resource:
    """A nic by its own name or id, or a VM's first."""
    for kind in (Kind.VM, Kind.NIC):
        try:
            row = get(tx, kind, ref, account)
        except CloudError:
            continue
        if kind is Kind.NIC:
            return row
        nics = [nic for nic in find_many(tx, sources_of(tx, row.id, "vm")).values() if nic.kind == Kind.NIC]
        if not nics:
            raise invalid(field, f"vm '{row.name}' has no nic")
        return min(nics, key=lambda nic: nic.id)
    raise invalid(field, f"names no VM and no nic of this account: '{ref}'")


async def trace(
    manager: Manager, account: str, source_ref: str, to: str, protocol: str, port: int | None
) -> dict[str, Any]:
    """See the API's /network/trace."""

    def look(tx: Tx) -> tuple[Resource, Resource | None, str, dict[str, str]]:
        source = nic_of(tx, source_ref, account, "from")
        target: Resource | None = None
        try:
            address = str(ipaddress.IPv4Address(to))
        except ValueError:
            target = nic_of(tx, to, account, "to")
            address = target.spec_as(NicSpec).ip
        return source, target, address, _names(tx, account)

    source, target, address, names = await manager.store.read(look)
    steps: list[dict[str, str]] = []
    _say_intent(steps, source, target, names)
    if source.node is None:
        steps.append(_step("", "placement", "drop", f"nic '{source.name}' is on no node: its VM never ran"))
        return _answer(steps)
    views = {node: view_of(manager.directory, node, ip) for node, ip in _nodes(manager, source).items()}
    found = trace_path(views, source.id, address, protocol, port, names=names)
    steps += [_step(step.node, step.stage, step.verdict, step.text) for step in found]
    steps += await _ask_switch(manager, source, address, protocol, port, names, _passes(steps))
    return _answer(steps)


def _nodes(manager: Manager, source: Resource) -> dict[str, str]:
    """The nodes that have nics of the VPC, with their tunnel addresses."""
    tunnel: dict[str, str] = {}
    for node in manager.directory.nodes_of_vpc(source.spec_as(NicSpec).vpc):
        tunnel[node] = manager.directory.tunnel_ip(node)
    return tunnel


def _names(tx: Tx, account: str) -> dict[str, str]:
    rows: list[Resource] = []
    for kind in (Kind.SECURITY_GROUP, Kind.SUBNET, Kind.VPC, Kind.NIC):
        rows += [row for row in all_of(tx, kind) if row.account == account]
    return {row.id: row.name for row in [*rows, *all_of(tx, Kind.NODE)]}


def _step(node: str, stage: str, verdict: str, text: str) -> dict[str, str]:
    return {"node": node, "stage": stage, "verdict": verdict, "text": text}


def _say_intent(steps: list[dict[str, str]], source: Resource, target: Resource | None, names: dict[str, str]) -> None:
    spec = source.spec_as(NicSpec)
    groups = ", ".join(names.get(group, group) for group in spec.security_groups) or "none"
    text = f"from {spec.ip} ({source.name}) in VPC {names.get(spec.vpc, spec.vpc)}; security groups: {groups}"
    steps.append(_step("", "intent", "info", text))
    if target is None:
        return
    other = target.spec_as(NicSpec)
    groups = ", ".join(names.get(group, group) for group in other.security_groups) or "none"
    text = f"to {other.ip} ({target.name}) in VPC {names.get(other.vpc, other.vpc)}; security groups: {groups}"
    steps.append(_step("", "intent", "info", text))
    if other.vpc != spec.vpc:
        steps.append(_step("", "intent", "info", "the two are in different VPCs, which are isolated from each other"))
    if target.state not in (State.READY, State.UPDATING):
        steps.append(_step("", "intent", "info", f"nic '{target.name}' is {target.state}"))


def _passes(steps: Iterable[dict[str, str]]) -> bool:
    return not any(step["verdict"] == "drop" for step in steps)


async def _ask_switch(
    manager: Manager,
    source: Resource,
    address: str,
    protocol: str,
    port: int | None,
    names: dict[str, str],
    passes: bool,
) -> list[dict[str, str]]:
    """The source node's own switch, asked about the same packet: does it agree with the intent?"""
    name = names.get(source.node or "", source.node or "")
    fields = _fields(manager.directory, source, address, protocol, port)
    try:
        said = await manager.call(source.node, f"nic '{source.name}'", "trace", port=source.id, fields=fields)
    except CloudError as error:
        return [_step(name, "switch", "info", f"the real switch could not be asked: {error.message}")]
    forwards = _forwards(str(said))
    verb = "sends it on" if forwards else "drops it"
    if passes == forwards:
        agrees = "as it should"
    elif forwards:
        agrees = "which is right here: what stops it comes later on its way"
    else:
        agrees = "which is not what it should do: its flows are behind; see `scloud node list`"
    return [_step(name, "switch", "info", f"the real switch, asked about this packet, {verb}, {agrees}")]


def _fields(
    directory: Directory, source: Resource, address: str, protocol: str, port: int | None
) -> dict[str, str | int]:
    """The packet in Open vSwitch's words, addressed as the guest would address it."""
    spec = source.spec_as(NicSpec)
    entry = directory.wish(source.node or "", f"vpc/{spec.vpc}")
    vpc = entry[0] if entry is not None and isinstance(entry[0], DesiredVpc) else None
    subnet = next((item for item in vpc.subnets if item.id == spec.subnet), None) if vpc else None
    near = subnet is not None and ipaddress.IPv4Address(address) in ipaddress.IPv4Network(subnet.cidr)
    mac = directory.mac_of(spec.vpc, address) if near else None
    fields: dict[str, str | int] = {
        "dl_src": spec.mac,
        "dl_dst": mac or GATEWAY_MAC,
        "dl_type": "0x0800",
        "nw_src": spec.ip,
        "nw_dst": address,
        "nw_ttl": 64,
        "nw_proto": {"icmp": 1, "tcp": 6, "udp": 17}[protocol],
    }
    if protocol == "icmp":
        return fields | {"icmp_type": 8, "icmp_code": 0}
    return fields | {"tp_src": 49152, "tp_dst": port or 0}


def _forwards(account: str) -> bool:
    """From the last datapath actions of `ofproto/trace`: earlier ones only lead to connection tracking."""
    actions = [line.partition(":")[2].strip() for line in account.splitlines() if line.startswith("Datapath actions:")]
    return bool(actions) and actions[-1] not in ("", "drop")


def _answer(steps: list[dict[str, str]]) -> dict[str, Any]:
    dropped = next((step for step in steps if step["verdict"] == "drop"), None)
    summary = dropped["text"] if dropped else "the packet arrives, and the answer comes back"
    return {"verdict": "dropped" if dropped else "delivered", "summary": summary, "steps": steps}
