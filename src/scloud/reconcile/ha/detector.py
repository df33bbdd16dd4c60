"""Which nodes are dead: heartbeats that are missing, then probes by other nodes. Pure.

A verdict needs three things: enough checks in a row that failed, probers whose own networks work and lead to the node,
and none of them having heard anything of the node on any network. When too many nodes are missing at once, or the
watcher itself was away, nobody is declared dead.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from scloud.model.ha import HaSettings

AWAY_S = 3.0
"""If the watcher itself has not looked for so long, it knows nothing of the time between."""
RETURN_S = 10.0
"""So long a node that was not heard since the watcher began has to dial, before checks count as missed: agents hang up
after 6 s without their manager, wait up to 2 s between tries, and at first try the manager that they had."""
NOTED = 2
"""Missed checks from which on a node is spoken of; one may be late."""
VANISHED = 3
"""Missed checks from which on a node counts among those that are missing at once."""
AGAIN_S = 10.0
"""After so long a node that answered probes, or could not be probed, is probed again."""
PROBERS = 3
NETWORK_BITS = 24
"""Addresses that have so many bits in common are of one network as well as any."""


Phase = Literal["missing", "probing", "reachable", "held"]


@dataclass(frozen=True, slots=True)
class NodeView:
    """`heard_at` is the last sign of life on the watcher's clock, None if there was none since it began. `settled`:
    its loss is being dealt with already."""

    id: str
    name: str
    heard_at: float | None
    addresses: tuple[str, ...]
    settings: HaSettings
    connected: bool = True
    settled: bool = False


@dataclass(frozen=True, slots=True)
class ProbeOrder:
    """Each prober asks for the node's addresses and, to know that its own networks work, for those of another node.

    `asks` has for each prober (the node's address, the other's or None if there is none) by network. `at` is when it
    was given, on the watcher's clock: no two of a node are the same.
    """

    node: str
    at: float
    asks: Mapping[str, tuple[tuple[str, str | None], ...]]
    count: int
    interval_s: float


@dataclass(frozen=True, slots=True)
class Answers:
    """What one prober heard: how many of its probes each address answered. An address that it has no direct network to
    is left out, and says nothing. `failed` if it could not probe at all."""

    heard: Mapping[str, int] = field(default_factory=dict)
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Round:
    """An order that was carried out: what each prober heard, by its id."""

    order: ProbeOrder
    answers: Mapping[str, Answers]


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What is known of one node that misses checks. Times are the watcher's clock; `heard_at` is when it should have
    been heard if it never was since the watcher began (`heard`)."""

    heard_at: float
    noted_at: float
    heard: bool = True
    phase: Phase = "missing"
    probed_at: float | None = None
    judged_at: float | None = None
    order: ProbeOrder | None = None
    words: str = ""
    useless: frozenset[str] = frozenset()
    """Probers whose answers said nothing: others are asked before them."""


@dataclass(frozen=True, slots=True)
class Memory:
    """`looked_at` is when the watcher last looked; `floor` when its knowledge begins."""

    looked_at: float
    floor: float
    suspicions: Mapping[str, Suspicion] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Death:
    node: str
    heard_at: float
    suspicion: Suspicion
    words: str


@dataclass(frozen=True, slots=True)
class Decision:
    """`conditions` are (node id or "", words): why nothing is done although nodes are missing."""

    memory: Memory
    probe: tuple[ProbeOrder, ...] = ()
    dead: tuple[Death, ...] = ()
    conditions: tuple[tuple[str, str], ...] = ()


def beginning(now: float) -> Memory:
    return Memory(now, now)


def unspoken_s(settings: HaSettings) -> float:
    """A node that was heard since so many seconds is not spoken of."""
    return min(NOTED, settings.misses) * settings.check_s


def all_is_well(now: float, heard: Iterable[float | None], unspoken: float, memory: Memory) -> bool:
    """Whether `detect`, without new results, would find nothing to say or to do, and forget nothing: of thousands of
    nodes that is told at a fraction of its cost. `heard` is of every node, `unspoken` the least `unspoken_s`."""
    if memory.suspicions or now - memory.looked_at > AWAY_S:
        return False
    since = now - unspoken
    return all(at is not None and at > since for at in heard)


def detect(now: float, nodes: tuple[NodeView, ...], memory: Memory, rounds: Collection[Round]) -> Decision:
    """`rounds` have ended since the last look; of a node, only the one that was ordered last says anything."""
    floor = now if now - memory.looked_at > AWAY_S else memory.floor
    heard = {node.id: _counted_from(node, floor) for node in nodes}
    missed = {node.id: _missed(now, heard[node.id], node.settings) for node in nodes}
    watched = [node for node in nodes if not node.settled]
    vanished = [node for node in watched if missed[node.id] >= min(VANISHED, node.settings.misses)]
    suspicions: dict[str, Suspicion] = {}
    probe: list[ProbeOrder] = []
    dead: list[Death] = []
    conditions: list[tuple[str, str]] = []
    for node in watched:
        if missed[node.id] < min(NOTED, node.settings.misses) or not node.settings.enabled:
            continue
        known = memory.suspicions.get(node.id)
        if known is None or known.heard_at != heard[node.id]:
            known = Suspicion(heard[node.id], now, heard=heard[node.id] == node.heard_at)
        ended = next((one for one in rounds if one.order == known.order), None)
        if known.phase == "probing" and ended is not None:
            verdict, words, useless = _judge(ended)
            phase: Phase = "reachable" if verdict == "alive" else "held"
            known = replace(known, judged_at=now, words=words, phase=phase, useless=known.useless | useless)
            too_many = _too_many(node, vanished, len(watched))
            if verdict == "dead" and not too_many:
                dead.append(Death(node.id, known.heard_at, known, words))
        if known.phase != "probing" and missed[node.id] >= node.settings.misses and not _is(dead, node.id):
            known, order, words = _next(now, node, known, nodes, missed, vanished, len(watched))
            if order is not None:
                probe.append(order)
            if words:
                conditions.append((node.id, words))
        suspicions[node.id] = known
    return Decision(Memory(now, floor, suspicions), tuple(probe), tuple(dead), tuple(conditions))


def _counted_from(node: NodeView, floor: float) -> float:
    """The last sign of life, or when there should have been one."""
    return node.heard_at if node.heard_at is not None and node.heard_at >= floor else floor + RETURN_S


def _is(dead: list[Death], node: str) -> bool:
    return any(one.node == node for one in dead)


def _missed(now: float, heard_at: float, settings: HaSettings) -> int:
    return max(int((now - heard_at) / settings.check_s + 1e-6), 0)


def _too_many(node: NodeView, vanished: list[NodeView], of: int) -> str:
    if len(vanished) <= max(of * node.settings.max_share, 1 if of > 1 else 0):
        return ""
    who = "all of them" if len(vanished) == of else f"{len(vanished)} of {of}"
    return (
        f"{who} are missing at once, more than {node.settings.max_share:.0%}: rather the manager or its network is cut "
        "off, so nothing is recovered; see to the network; a node that is lost for ever can be taken out with "
        "`scloud node remove NODE --force`, which cuts it off from its storage first"
    )


def _next(
    now: float,
    node: NodeView,
    known: Suspicion,
    nodes: tuple[NodeView, ...],
    missed: Mapping[str, int],
    vanished: list[NodeView],
    of: int,
) -> tuple[Suspicion, ProbeOrder | None, str]:
    """Probe it now, or say why not."""
    too_many = _too_many(node, vanished, of)
    if too_many:
        return replace(known, phase="held", judged_at=now, words=too_many), None, too_many
    if known.judged_at is not None and known.words and now - known.judged_at < AGAIN_S:
        return known, None, known.words
    there = [one for one in nodes if one.id != node.id and one.connected and not one.settled and missed[one.id] < NOTED]
    if not there or not node.addresses:
        why = "no other node is there to probe it" if not there else "it has no address that others could probe"
        words = f"{why}, so it is not known to be dead; its VMs are left alone"
        return replace(known, phase="held", judged_at=now, words=words), None, words
    order = _order(now, node, sorted(there, key=lambda one: (one.id in known.useless, -_near(one, node), one.id)))
    return replace(known, phase="probing", probed_at=now, order=order), order, known.words


def _near(one: NodeView, other: NodeView) -> int:
    """How many bits their addresses of one network have in common, at most: the more, the rather it is one network."""
    return max((_common(*pair) for pair in zip(one.addresses, other.addresses, strict=False)), default=0)


def _common(one: str, other: str) -> int:
    try:
        differ = (int(ipaddress.IPv4Address(one)) ^ int(ipaddress.IPv4Address(other))).bit_length()
    except ValueError:
        return 0
    return min(32 - differ, NETWORK_BITS)


def _order(now: float, node: NodeView, there: list[NodeView]) -> ProbeOrder:
    """By the first of those that are there."""
    probers = there[:PROBERS]
    asks = {}
    for place, prober in enumerate(probers):
        # Somebody else who is certainly there: the next one of them.
        other = probers[(place + 1) % len(probers)].addresses if len(probers) > 1 else ()
        asks[prober.id] = tuple(
            (address, other[network] if network < len(other) else None)
            for network, address in enumerate(node.addresses)
        )
    return ProbeOrder(node.id, now, asks, node.settings.probes, node.settings.probe_interval_s)


def _judge(ended: Round) -> tuple[str, str, frozenset[str]]:
    """("alive" | "dead" | "unknown", words, probers whose answers say nothing)."""
    order = ended.order
    told = {prober: answers for prober, answers in ended.answers.items() if prober in order.asks}
    answered = sorted(
        {address for prober, one in told.items() for address, _ in order.asks[prober] if one.heard.get(address)}
    )
    asked = {prober: _asked(order.asks[prober], one) for prober, one in told.items() if not one.failed}
    useful = [len(addresses) for addresses in asked.values() if addresses]
    useless = frozenset(prober for prober in order.asks if not asked.get(prober))
    if answered:
        words = (
            f"it answers layer-2 probes at {', '.join(answered)}, but the manager does not hear its agent: its VMs are "
            "left alone; look at its agent and at its way to the manager"
        )
        return "alive", words, frozenset()
    if not useful:
        why = "; ".join(_why_useless(order, told))
        words = f"other nodes could not probe it ({why}), so it is not known to be dead; it is tried again"
        return "unknown", words, useless
    who = f"{len(useful)} other node{'s' * (len(useful) != 1)}"
    if len(set(useful)) == 1:
        words = f"none of {order.count * useful[0]} probes from {'each of ' * (len(useful) > 1)}{who} was answered"
    else:
        words = f"none of {order.count * sum(useful)} probes from {who} was answered"
    return "dead", words, useless


def _asked(pairs: tuple[tuple[str, str | None], ...], one: Answers) -> list[str]:
    """The addresses of the node that a prober asked for on networks that work. Where there is no third node, its
    connection to the manager shows that the prober is there."""
    alone = all(control is None for _, control in pairs)
    return [
        address
        for address, control in pairs
        if address in one.heard and (alone if control is None else one.heard.get(control, 0) > 0)
    ]


def _why_useless(order: ProbeOrder, told: Mapping[str, Answers]) -> list[str]:
    found = {one.failed for one in told.values() if one.failed}
    there = {prober: one for prober, one in told.items() if not one.failed}
    if any(address in one.heard for prober, one in there.items() for address, _ in order.asks[prober]):
        found.add("their own networks failed")
    elif there:
        addresses = dict.fromkeys(address for pairs in order.asks.values() for address, _ in pairs)
        found.add(f"they have no direct network to {', '.join(addresses)}")
    return sorted(found) or ["none of them answered"]
