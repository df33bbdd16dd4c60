"""A node's view to its flows, whole or by what changed.

The view is cut into parts (a nic, a VPC, a policy, a peer), each compiled from its own inputs alone. `Compiler` keeps
the parts: one more nic among a thousand compiles one part. Flows of different parts never have the same match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scloud.flows import arp, classify, groups, l2, l3, output, port_security, service
from scloud.flows.ir import Flow, Match
from scloud.flows.pipeline import PIPELINE_OWNER, cookie_of
from scloud.flows.policy import policy_id
from scloud.flows.view import LocalPort, LocalVpc, NodeView
from scloud.model.desired import DesiredGroup, DesiredPort

_MAX_OFPORT = 0xFEFF
"""Higher numbers are reserved; 0 and below are ports that the switch has not opened."""

_Key = tuple[str, ...]
_Slot = tuple[int, int, tuple[Match, ...]]


@dataclass(frozen=True, slots=True)
class Change:
    """What to do to a switch. A flow in `add` replaces one of the same table, priority and match."""

    remove: tuple[Flow, ...] = ()
    add: tuple[Flow, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.remove or self.add)


@dataclass(frozen=True, slots=True)
class _Part:
    inputs: tuple[Any, ...]
    flows: tuple[Flow, ...]


def compile_view(view: NodeView) -> tuple[Flow, ...]:
    """All flows of a node, in an order that depends on the view's content alone."""
    compiler = Compiler()
    compiler.update(view)
    return compiler.flows()


def diff(old: Iterable[Flow], new: Iterable[Flow]) -> tuple[tuple[Flow, ...], tuple[Flow, ...]]:
    """(remove, add): `remove` has no flow whose table, priority and match are in `new`, as adding replaces those."""
    before = {_slot(flow): flow for flow in old}
    after = {_slot(flow): flow for flow in new}
    remove = tuple(flow for slot, flow in before.items() if slot not in after)
    add = tuple(flow for slot, flow in after.items() if before.get(slot) != flow)
    return remove, add


def owners_of(view: NodeView) -> dict[int, str]:
    """The `kind/id` key behind every cookie that the view's flows can have."""
    keys = [PIPELINE_OWNER]
    keys += [f"vpc/{item.vpc.id}" for item in view.vpcs]
    keys += [f"group/{item.id}" for item in view.groups]
    keys += [f"port/{item.port.id}" for item in view.local]
    keys += [f"port/{item.port.id}" for item in view.remote]
    return {cookie_of(key): key for key in keys}


class Compiler:
    """Remembers the view last compiled. Not for use by several tasks at once."""

    def __init__(self) -> None:
        self._parts: dict[_Key, _Part] = {}

    def flows(self) -> tuple[Flow, ...]:
        """The flows of the view last given to `update`."""
        return tuple(flow for key in sorted(self._parts) for flow in self._parts[key].flows)

    def update(self, view: NodeView) -> Change:
        """Take another view; the difference to the one before it (to no flows at all, the first time)."""
        wanted = _plan(view)
        removed: list[Flow] = []
        added: list[Flow] = []
        for key in [key for key in self._parts if key not in wanted]:
            removed.extend(self._parts.pop(key).flows)
        for key, inputs in wanted.items():
            part = self._parts.get(key)
            if part is not None and part.inputs == inputs:
                continue
            flows = tuple(_BUILDERS[key[0]](*inputs))
            removed.extend(part.flows if part is not None else ())
            added.extend(flows)
            self._parts[key] = _Part(inputs, flows)
        return Change(*diff(removed, added))


def _slot(flow: Flow) -> _Slot:
    return flow.table, flow.priority, flow.match


def _plan(view: NodeView) -> dict[_Key, tuple[Any, ...]]:
    """Every part that the view has, with its inputs."""
    vpcs = _present(view.vpcs)
    local, remote = _usable(view, vpcs)
    plan: dict[_Key, tuple[Any, ...]] = {("static",): ()}
    ofports: dict[str, list[int]] = {key: [] for key in vpcs}
    carried: set[tuple[str, ...]] = set()
    policies: set[tuple[str, ...]] = set()
    known = {group.id: group for group in view.groups}
    for nic in local:
        port = nic.port
        vpc = vpcs[port.vpc].vpc
        plan["nic", port.id] = (nic, vpc.vni, view.tunnel_ip, view.tunnel_ofport)
        for ip in l2.places(port):
            if port.second is not None and ip != view.tunnel_ip:
                plan["peer", vpc.id, ip] = (vpc, view.tunnel_ofport, ip)
        if connections := groups.still_allowed(nic, known):
            plan["brought", port.id] = (nic, connections)
        ofports[port.vpc].append(nic.ofport)
        policies.add(port.groups)
    carried.update(policies)
    for port in remote:
        vpc = vpcs[port.vpc].vpc
        plan["remote", port.id] = (port, vpc.vni, view.tunnel_ofport)
        for ip in l2.places(port):
            peer = ("peer", vpc.id, ip)
            if peer not in plan:
                plan[peer] = (vpc, view.tunnel_ofport, ip)
        carried.add(port.groups)
    for key, item in vpcs.items():
        plan["vpc", key] = (item,)
        plan["answers", key] = (item, tuple(sorted(ofports[key])))
    _plan_policies(plan, policies, carried, known)
    return plan


def _plan_policies(
    plan: dict[_Key, tuple[Any, ...]],
    policies: set[tuple[str, ...]],
    carried: set[tuple[str, ...]],
    known: Mapping[str, DesiredGroup],
) -> None:
    """A group that is not in the view has no rules, but nics can still be members of it."""
    for names in policies:
        members = tuple(known[name] for name in sorted(set(names)) if name in known)
        if not members:
            continue
        number = policy_id(names)
        peers = groups.peer_groups(members)
        others = tuple(sorted({tuple(sorted(set(other))) for other in carried if not peers.isdisjoint(other)}))
        plan["policy", f"{number:016x}"] = (number, members, others)


def _present(items: Sequence[LocalVpc]) -> dict[str, LocalVpc]:
    """By id; of two with one VNI, which would share everything, the first by id only."""
    by_vni: dict[int, LocalVpc] = {}
    for item in sorted(items, key=lambda item: item.vpc.id):
        by_vni.setdefault(item.vpc.vni, item)
    return {item.vpc.id: item for item in by_vni.values()}


def _usable(view: NodeView, vpcs: Mapping[str, LocalVpc]) -> tuple[list[LocalPort], list[DesiredPort]]:
    """The ports that get flows: present, with a place to go to, and none with an address that another one has.

    Of two with the same MAC or address in a VPC the local one is taken, then the one made last (ids sort by time).
    """
    local = [
        item
        for item in view.local
        if not item.port.absent and item.port.vpc in vpcs and 0 < item.ofport <= _MAX_OFPORT and item.zone > 0
    ]
    remote = [
        item.port
        for item in view.remote
        if item.port.vpc in vpcs and not item.port.absent and item.port.tunnel_ip not in (None, view.tunnel_ip)
    ]
    total = len(local) + len(remote)
    ips = {(item.port.vpc, item.port.ip) for item in local}
    ips.update([(port.vpc, port.ip) for port in remote])
    macs = {(item.port.vpc, item.port.mac) for item in local}
    macs.update([(port.vpc, port.mac) for port in remote])
    ids = {item.port.id for item in local}
    ids.update([port.id for port in remote])
    numbers = {item.ofport for item in local}
    if len(ips) == total and len(macs) == total and len(ids) == total and len(numbers) == len(local):
        return local, remote
    return _without_rivals(local, remote)


def _without_rivals(
    local: Sequence[LocalPort], remote: Sequence[DesiredPort]
) -> tuple[list[LocalPort], list[DesiredPort]]:
    taken: set[tuple[str, str, str]] = set()

    def take(port: DesiredPort, ofport: int | None) -> bool:
        claims = {("id", "", port.id), ("ip", port.vpc, port.ip), ("mac", port.vpc, port.mac)}
        if ofport is not None:
            claims.add(("ofport", "", str(ofport)))
        if not taken.isdisjoint(claims):
            return False
        taken.update(claims)
        return True

    here = sorted(local, key=lambda item: (item.port.id, item.ofport, item.zone, item.port.generation), reverse=True)
    kept_here = [item for item in here if take(item.port, item.ofport)]
    there = sorted(remote, key=lambda port: (port.id, port.generation, port.tunnel_ip or ""), reverse=True)
    return kept_here, [port for port in there if take(port, None)]


def _static() -> tuple[Flow, ...]:
    return (*classify.static(), *service.static(), *groups.static(), *l3.static(), *output.static())


def _vpc(item: LocalVpc) -> list[Flow]:
    flows = [*arp.vpc(item), *service.vpc(item)]
    if item.service_ofport is not None:
        flows += classify.service(item.vpc, item.service_ofport)
    return flows


def _nic(item: LocalPort, vni: int, tunnel_ip: str, tunnel_ofport: int) -> list[Flow]:
    return [
        classify.nic(item, vni),
        *port_security.nic(item),
        arp.own_address(item),
        service.nic(item, vni),
        *l2.local(item, vni, tunnel_ip, tunnel_ofport),
        *_anywhere(item.port, vni),
    ]


def _remote(port: DesiredPort, vni: int, tunnel_ofport: int) -> list[Flow]:
    return [l2.remote(port, vni, tunnel_ofport), *_anywhere(port, vni)]


def _anywhere(port: DesiredPort, vni: int) -> list[Flow]:
    return [arp.port(port, vni), l3.port(port, vni), *groups.peer(port, vni)]


_BUILDERS: dict[str, Callable[..., Iterable[Flow]]] = {
    "static": _static,
    "vpc": _vpc,
    "answers": service.answers,
    "peer": classify.tunnel,
    "policy": groups.policy,
    "nic": _nic,
    "brought": groups.brought,
    "remote": _remote,
}
