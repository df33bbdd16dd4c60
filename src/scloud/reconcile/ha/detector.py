"""Which nodes are dead: heartbeats that are missing, then probes by other nodes. Pure.

A verdict needs three things: enough checks in a row that failed, probers whose own networks work, and none of them
having heard anything of the node on any network. When too many nodes are missing at once, or the watcher itself was
away, nobody is declared dead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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

    `asks` has for each prober (the node's address, the other's or None if there is none) by network.
    """

    node: str
    asks: Mapping[str, tuple[tuple[str, str | None], ...]]
    count: int
    interval_s: float


@dataclass(frozen=True, slots=True)
class Answers:
    """What one prober heard: how many of its probes each address answered. `failed` if it could not probe at all."""

    heard: Mapping[str, int] = field(default_factory=dict)
    failed: str = ""


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What is known of one node that misses checks. Times are the watcher's clock; `heard_at` is when it should have
    been heard if it never was since the watcher began (`heard`)."""

    heard_at: float
    noted_at: float
    heard: bool = True
    phase: Literal["missing", "probing", "reachable", "held"] = "missing"
    probed_at: float | None = None
    judged_at: float | None = None
    order: ProbeOrder | None = None
    words: str = ""


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


def detect(
    now: float, nodes: tuple[NodeView, ...], memory: Memory, results: Mapping[str, Mapping[str, Answers]]
) -> Decision:
    """`results` are rounds of probes that have ended since the last look: node to prober to answers."""
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
        if known.phase == "probing" and node.id in results:
            verdict, words = _judge(node, known, results[node.id])
            known = replace(known, judged_at=now, words=words, phase="reachable" if verdict == "alive" else "held")
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
        "off, so nothing is recovered; see to the network, or take dead nodes out with `scloud node remove --force`"
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
    order = _order(node, nodes, missed)
    if order is None:
        words = "no other node is there to probe it, so it is not known to be dead; its VMs are left alone"
        return replace(known, phase="held", judged_at=now, words=words), None, words
    return replace(known, phase="probing", probed_at=now, order=order), order, known.words


def _order(node: NodeView, nodes: tuple[NodeView, ...], missed: Mapping[str, int]) -> ProbeOrder | None:
    there = sorted(
        (one for one in nodes if one.id != node.id and one.connected and not one.settled and missed[one.id] < NOTED),
        key=lambda one: one.id,
    )
    if not there or not node.addresses:
        return None
    asks = {}
    for place, prober in enumerate(there[:PROBERS]):
        # Somebody else who is certainly there: the next one of them.
        other = there[(place + 1) % len(there)].addresses if len(there) > 1 else ()
        asks[prober.id] = tuple(
            (address, other[network] if network < len(other) else None)
            for network, address in enumerate(node.addresses)
        )
    return ProbeOrder(node.id, asks, node.settings.probes, node.settings.probe_interval_s)


def _judge(node: NodeView, known: Suspicion, results: Mapping[str, Answers]) -> tuple[str, str]:
    """("alive" | "dead" | "unknown", words)."""
    order = known.order
    assert order is not None
    answered = sorted(
        {address for prober, one in results.items() for address, _ in order.asks[prober] if one.heard.get(address)}
    )
    if answered:
        return "alive", (
            f"it answers layer-2 probes at {', '.join(answered)}, but the manager does not hear its agent: its VMs are "
            "left alone; look at its agent and at its way to the manager"
        )
    useful = 0
    for prober, one in results.items():
        for _address, control in order.asks[prober]:
            # Where there is no third node, its connection to the manager shows that the prober is there.
            useful += not one.failed and (control is None or one.heard.get(control, 0) > 0)
    if useful == 0:
        why = "; ".join(sorted({one.failed for one in results.values() if one.failed})) or "their own networks failed"
        return "unknown", f"other nodes could not probe it ({why}), so it is not known to be dead; it is tried again"
    sent = order.count * len(node.addresses)
    probers = sum(1 for one in results.values() if not one.failed)
    return "dead", f"none of {sent} probes from each of {probers} other node{'s' * (probers != 1)} was answered"
