"""EGRESS_* and INGRESS_*: security groups, stateful, the same four tables for either direction.

Each local nic has its own connection tracking zone, which sees the packets it sends and those it receives. A
connection carries, as ct_mark, the mark of the rule that allowed it.

- STATE: answers (and ICMP errors) pass while the rule that let the connection begin, in the other direction, is there.
- PEER: which groups the other end is in, by its address.
- RULES: packets in the direction of the connection are always held against the rules: first against the connection's
  own (nothing changes then), next against all (the first that allows it marks the connection anew in COMMIT).

With the userspace datapath, a connection that begins with a datagram in fragments loses that one datagram where the
rule has ports: the switch takes none from fragments, and nothing is known of the connection yet.

- A nic that has migrated brings a list of its connections: the zone on its new node tracks none yet. What would be an
  answer there passes untracked (`brought`), until a packet in the direction of the connection makes it known again.

So taking away a rule, or a member from a group, cuts the connections that nothing else allows with the next packet,
and no others. The service's own connections have mark 0 and never come here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from scloud.flows.ir import Flow, Match
from scloud.flows.pipeline import (
    ICMP,
    IP,
    MARK,
    MARK_FIELD,
    PEER,
    POLICY,
    RANKS,
    TCP,
    UDP,
    VPC,
    ZONE,
    ZONE_FIELD,
    Band,
    Table,
    cookie_of,
    fixed,
    goto,
)
from scloud.flows.policy import peers_with, policy_id, port_masks
from scloud.flows.view import LocalPort
from scloud.model.connections import Connection
from scloud.model.desired import DesiredGroup, DesiredPort
from scloud.model.specs import Direction, Protocol, StoredRule


@dataclass(frozen=True, slots=True)
class Side:
    """The tables of one direction. `remote` is the address field of the other end."""

    direction: Direction
    remote: str
    state: Table
    peer: Table
    rules: Table
    commit: Table
    after: Table


EGRESS = Side(
    Direction.OUTBOUND,
    "ip_dst",
    Table.EGRESS_STATE,
    Table.EGRESS_PEER,
    Table.EGRESS_RULES,
    Table.EGRESS_COMMIT,
    Table.L3,
)
INGRESS = Side(
    Direction.INBOUND,
    "ip_src",
    Table.INGRESS_STATE,
    Table.INGRESS_PEER,
    Table.INGRESS_RULES,
    Table.INGRESS_COMMIT,
    Table.OUTPUT,
)
SIDES = (EGRESS, INGRESS)

_PROTOCOLS: dict[Protocol, tuple[Match, ...]] = {
    Protocol.ANY: (),
    Protocol.ICMP: (ICMP,),
    Protocol.TCP: (TCP,),
    Protocol.UDP: (UDP,),
}


def static() -> tuple[Flow, ...]:
    """The ways between the tables of a side."""
    flows = []
    for side in SIDES:
        invalid = (IP, Match("ct_state", "+trk+inv"))
        forward = (IP, Match("ct_state", "+trk-rpl-rel"))
        commit = f"ct(commit,zone={ZONE_FIELD},exec(move:{MARK_FIELD}->NXM_NX_CT_MARK[]))"
        flows += [
            fixed(side.state, Band.GUARD, invalid, (), "belongs to no connection and begins none"),
            fixed(side.state, Band.NETWORK, forward, (goto(side.peer),), "the rules decide"),
            fixed(
                side.peer,
                Band.REST,
                (IP,),
                (f"set_field:0->{PEER}", goto(side.rules)),
                "the other end is in no security group",
            ),
            fixed(side.commit, Band.REST, (IP,), (commit, goto(side.after)), "the connection is marked with the rule"),
        ]
    return tuple(flows)


def peer(nic: DesiredPort, vni: int) -> list[Flow]:
    """A nic's groups, looked up by its address when it is the other end. None for a nic without groups."""
    if not nic.groups:
        return []
    cookie = cookie_of(f"port/{nic.id}")
    load = f"set_field:{policy_id(nic.groups):#x}->{PEER}"
    note = f"the other end is nic {nic.id}"
    network = Match(VPC, str(vni))
    return [
        Flow(
            side.peer,
            Band.ADDRESS,
            (network, IP, Match(side.remote, nic.ip)),
            (load, goto(side.rules)),
            cookie,
            note,
        )
        for side in SIDES
    ]


def directions(names: tuple[str, ...], known: Mapping[str, DesiredGroup]) -> dict[int, Direction]:
    """The direction of each rule of these groups, by its mark."""
    return {rule.mark: rule.direction for name in names if name in known for rule in known[name].rules}


def still_allowed(nic: LocalPort, known: Mapping[str, DesiredGroup]) -> tuple[tuple[Connection, Direction], ...]:
    """Of what a nic brought: the connections that are its own and whose rule is there, with the rule's direction."""
    if not nic.brought:
        return ()
    found = directions(nic.port.groups, known)
    kept: dict[tuple[str, str, str, int, int], tuple[Connection, Direction]] = {}
    for item in nic.brought:
        direction = found.get(item.mark)
        if direction is None or nic.port.ip != (item.source if direction is Direction.OUTBOUND else item.target):
            continue
        kept[item.ends] = (item, direction)
    return tuple(kept.values())


def brought(nic: LocalPort, connections: Iterable[tuple[Connection, Direction]]) -> list[Flow]:
    """Answers in connections of before the nic's migration, as long as the zone does not know them."""
    cookie = cookie_of(f"port/{nic.port.id}")
    flows = []
    for item, direction in connections:
        side = INGRESS if direction is Direction.OUTBOUND else EGRESS
        name = item.protocol
        key = (
            Match(ZONE, str(nic.zone)),
            IP,
            Match("ct_state", "+trk+new-rpl-rel-inv"),
            *_PROTOCOLS[Protocol(name)],
            Match("ip_src", item.target),
            Match("ip_dst", item.source),
            Match(f"{name}_src", str(item.target_port)),
            Match(f"{name}_dst", str(item.source_port)),
        )
        note = "answers a connection that the nic had before it migrated"
        flows.append(Flow(side.state, Band.ADDRESS, key, (goto(side.after),), cookie, note))
    return flows


def peer_groups(groups: tuple[DesiredGroup, ...]) -> frozenset[str]:
    """The groups that rules of these groups name as peers."""
    return frozenset(rule.group for group in groups for rule in group.rules if rule.group is not None)


def policy(number: int, groups: tuple[DesiredGroup, ...], others: tuple[tuple[str, ...], ...]) -> list[Flow]:
    """All flows of one policy: `groups` are its members, `others` the sets of groups that nics of the node's VPCs have.

    Where rules overlap the lowest mark wins, so that no packet has two flows to choose from.
    """
    flows: list[Flow] = []
    local = Match(POLICY, f"{number:#x}")
    rules = sorted(
        ((rule, group.id) for group in groups for rule in group.rules), key=lambda pair: (pair[0].mark, pair[0].id)
    )
    for side in SIDES:
        marks: set[int] = set()
        rank = 0
        for rule, owner in rules:
            cookie = cookie_of(f"group/{owner}")
            if rule.mark not in marks:
                marks.add(rule.mark)
                flows += _states(side, local, rule, cookie)
            if rule.direction is side.direction:
                flows += _rule(side, local, rule, owner, min(rank, RANKS - 1), cookie, others)
                rank += 1
    return flows


def _states(side: Side, local: Match, rule: StoredRule, cookie: int) -> list[Flow]:
    mark = Match("ct_mark", str(rule.mark))

    def known(state: str, extra: tuple[Match, ...], note: str) -> Flow:
        key = (local, IP, *extra, Match("ct_state", state), mark)
        return Flow(side.state, Band.EXACT, key, (goto(side.after),), cookie, f"{note} that rule {rule.id} allows")

    if rule.direction is not side.direction:
        return [known("+trk+rpl-inv", (), "answers a connection")]
    flows = [known("+trk-rpl+rel-inv", (), "an ICMP error of a connection")]
    if rule.port_min is not None:
        # The switch takes no ports from fragments to hold against the rule; tracking has seen the datagram whole.
        flows.append(known("+trk-rpl-rel-inv", (Match("ip_frag", "yes"),), "a fragment of a connection"))
    return flows


def _rule(
    side: Side,
    local: Match,
    rule: StoredRule,
    owner: str,
    rank: int,
    cookie: int,
    others: tuple[tuple[str, ...], ...],
) -> Iterator[Flow]:
    note = f"{rule.direction.value} rule {rule.id} of security group {owner} allows it"
    kept = (goto(side.after),)
    fresh = (f"set_field:{rule.mark}->{MARK}", goto(side.commit))
    mark = Match("ct_mark", str(rule.mark))
    for who in _peers(side, rule, others):
        for ports in _ports(rule):
            key = (local, IP, *who, *_PROTOCOLS[rule.protocol], *ports)
            yield Flow(side.rules, Band.KEPT - rank, (*key, mark), kept, cookie, note)
            yield Flow(side.rules, Band.RULE - rank, key, fresh, cookie, note)


def _peers(side: Side, rule: StoredRule, others: tuple[tuple[str, ...], ...]) -> list[tuple[Match, ...]]:
    if rule.group is not None:
        return [(Match(PEER, f"{number:#x}"),) for number in peers_with(rule.group, others)]
    if rule.cidr is None or rule.cidr.endswith("/0"):
        return [()]
    return [(Match(side.remote, rule.cidr),)]


def _ports(rule: StoredRule) -> list[tuple[Match, ...]]:
    if rule.port_min is None or rule.port_max is None or (rule.port_min, rule.port_max) == (0, 65535):
        return [()]
    name = f"{rule.protocol.value}_dst"
    return [
        (Match(name, str(value) if mask == 0xFFFF else f"{value:#x}/{mask:#x}"),)
        for value, mask in port_masks(rule.port_min, rule.port_max)
    ]
