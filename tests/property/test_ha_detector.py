"""The detector over invented histories: who is ever declared dead, and when."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from scloud.model.ha import PROFILES, HaProfile, HaSettings
from scloud.reconcile.ha.detector import (
    RETURN_S,
    Answers,
    Death,
    Decision,
    Memory,
    NodeView,
    ProbeOrder,
    all_is_well,
    beginning,
    detect,
    unspoken_s,
)

TICK_S = 0.5
FAST = PROFILES[HaProfile.FAST]
DEFAULT = PROFILES[HaProfile.DEFAULT]


class Cluster:
    """A clock, nodes that are heard until they are not, and wires that answer probes or do not."""

    def __init__(self, count: int, settings: HaSettings) -> None:
        self.settings = settings
        self.now = 1000.0
        self.ids = [f"nod-{number}" for number in range(count)]
        self.silent: dict[str, float] = {}
        """Node to when the manager last heard it."""
        self.unheard: set[str] = set()
        """Nodes that this manager has never heard."""
        self.unreachable: set[str] = set()
        """Nodes that answer no probe."""
        self.settled: set[str] = set()
        self.memory = beginning(self.now)
        self.pending: list[tuple[float, ProbeOrder]] = []
        self.dead: dict[str, tuple[float, Death]] = {}
        self.orders: list[tuple[float, ProbeOrder]] = []
        self.words: set[str] = set()

    @staticmethod
    def addresses(node: str) -> tuple[str, str]:
        return f"u-{node}", f"s-{node}"

    def silence(self, *nodes: str) -> None:
        for node in nodes:
            self.silent.setdefault(node, self.now)

    def _view(self, node: str) -> NodeView:
        heard = None if node in self.unheard else self.silent.get(node, self.now - 0.3)
        gone = node in self.silent or node in self.unheard
        return NodeView(node, node, heard, self.addresses(node), self.settings, not gone, node in self.settled)

    def _answer(self, order: ProbeOrder) -> dict[str, Answers]:
        found = {}
        for prober, pairs in order.asks.items():
            if prober in self.silent:
                found[prober] = Answers(failed="it went away itself")
                continue
            asked = [address for pair in pairs for address in pair if address is not None]
            up = {address: 0 if address[2:] in self.unreachable else order.count for address in asked}
            # a prober whose own wires are cut hears nobody
            found[prober] = Answers(dict.fromkeys(up, 0) if prober in self.unreachable else up)
        return found

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += TICK_S
            due = [order for at, order in self.pending if at <= self.now]
            self.pending = [(at, order) for at, order in self.pending if at > self.now]
            results = {order.node: self._answer(order) for order in due}
            decision = detect(self.now, tuple(map(self._view, self.ids)), self.memory, results)
            self.memory = decision.memory
            for order in decision.probe:
                assert order.node not in [other.node for _, other in self.pending], "probed twice at once"
                self.orders.append((self.now, order))
                self.pending.append((self.now + order.count * order.interval_s, order))
            for death in decision.dead:
                assert death.node not in self.dead, "declared dead twice"
                self.dead[death.node] = (self.now, death)
                self.settled.add(death.node)
            self.words |= {words for _, words in decision.conditions}


def test_the_whitepapers_numbers_are_the_default() -> None:
    cluster = Cluster(3, DEFAULT)
    cluster.run(5.0)
    cluster.silence("nod-1")
    cluster.unreachable.add("nod-1")
    began = cluster.now
    cluster.run(49.0)
    assert not cluster.orders
    cluster.run(60.0)
    (at, order), *more = cluster.orders
    assert not more and 50.0 <= at - began <= 51.0
    assert (order.count, order.interval_s) == (10, 0.4)
    assert set(order.asks) == {"nod-0", "nod-2"}, "other nodes probe"
    assert {address for pairs in order.asks.values() for address, _ in pairs} == {"u-nod-1", "s-nod-1"}
    declared, death = cluster.dead["nod-1"]
    assert 54.0 <= declared - began <= 55.0 and death.heard_at == began


def test_the_fast_profile_declares_a_node_dead_within_ten_seconds() -> None:
    cluster = Cluster(3, FAST)
    cluster.run(5.0)
    cluster.silence("nod-2")
    cluster.unreachable.add("nod-2")
    began = cluster.now
    cluster.run(10.0)
    assert cluster.dead["nod-2"][0] - began <= 10.0
    assert FAST.lease_s < FAST.detection_s and DEFAULT.lease_s < DEFAULT.detection_s


def test_a_node_that_answers_probes_is_left_alone() -> None:
    cluster = Cluster(3, FAST)
    cluster.silence("nod-1")
    cluster.run(120.0)
    assert not cluster.dead and len(cluster.orders) > 3
    assert any("answers layer-2 probes" in words for words in cluster.words)
    cluster.unreachable.add("nod-1")  # now it is really gone
    cluster.run(30.0)
    assert set(cluster.dead) == {"nod-1"}


def test_one_prober_that_is_cut_off_itself_proves_nothing() -> None:
    cluster = Cluster(3, FAST)
    cluster.silence("nod-1")
    cluster.unreachable |= {"nod-0", "nod-1", "nod-2"}  # the wires between all nodes are cut, the manager hears two
    cluster.run(60.0)
    assert not cluster.dead
    assert any("could not probe it" in words for words in cluster.words)


def test_nobody_left_to_probe() -> None:
    cluster = Cluster(1, FAST)
    cluster.silence("nod-0")
    cluster.unreachable.add("nod-0")
    cluster.run(60.0)
    assert not cluster.dead and cluster.words


def test_too_many_at_once() -> None:
    cluster = Cluster(3, FAST)
    cluster.run(3.0)
    cluster.silence("nod-0", "nod-1")
    cluster.unreachable |= {"nod-0", "nod-1"}
    cluster.run(120.0)
    assert not cluster.dead
    assert any("2 of 3 are missing at once" in words for words in cluster.words)
    del cluster.silent["nod-0"]
    cluster.unreachable.discard("nod-0")
    cluster.run(60.0)
    assert set(cluster.dead) == {"nod-1"}, "one of them is back: the other is dead by itself"


def test_a_watcher_that_was_away_begins_anew() -> None:
    cluster = Cluster(3, FAST)
    cluster.run(3.0)
    cluster.silence("nod-1")
    cluster.unreachable.add("nod-1")
    cluster.now += 100.0  # stopped, and going on
    cluster.run(FAST.misses * FAST.check_s - 2 * TICK_S)
    assert not cluster.orders and not cluster.dead
    cluster.run(30.0)
    assert set(cluster.dead) == {"nod-1"}


def test_a_new_leader_gives_every_node_the_time_to_come_to_it() -> None:
    cluster = Cluster(3, FAST)
    cluster.run(3.0)
    cluster.memory = beginning(cluster.now)  # another process: it has heard nobody
    cluster.unheard |= set(cluster.ids)
    cluster.unreachable.add("nod-2")  # and one is lost together with the last leader
    began = cluster.now
    cluster.run(5.0)
    cluster.unheard.discard("nod-1")
    cluster.run(4.0)
    cluster.unheard.discard("nod-0")
    cluster.run(1.0)
    assert not cluster.orders and not cluster.words and not cluster.memory.suspicions
    cluster.run(FAST.detection_s + 2 * TICK_S)
    assert set(cluster.dead) == {"nod-2"} and {order.node for _, order in cluster.orders} == {"nod-2"}
    at, death = cluster.dead["nod-2"]
    assert not death.suspicion.heard and at - began >= RETURN_S + FAST.detection_s - TICK_S


def test_switched_off() -> None:
    cluster = Cluster(3, FAST.model_copy(update={"enabled": False}))
    cluster.silence("nod-1")
    cluster.unreachable.add("nod-1")
    cluster.run(60.0)
    assert not cluster.dead and not cluster.orders


STEPS = st.lists(
    st.tuples(st.sampled_from(["silence", "back", "cut", "mend", "wait"]), st.integers(0, 5), st.floats(0.5, 9.0)),
    max_size=30,
)


@given(count=st.integers(1, 6), share=st.sampled_from([0.34, 0.5, 1.0]), steps=STEPS)
def test_whatever_happens_only_what_nobody_hears_is_dead(
    count: int, share: float, steps: list[tuple[str, int, float]]
) -> None:
    settings = FAST.model_copy(update={"max_share": share})
    cluster = Cluster(count, settings)
    for what, number, seconds in steps:
        node = cluster.ids[number % count]
        known = set(cluster.dead)
        quiet_since = dict(cluster.silent)
        match what:
            case "silence":
                cluster.silence(node)
            case "back" if node not in cluster.dead:
                cluster.silent.pop(node, None)
            case "cut":
                cluster.unreachable.add(node)
            case "mend" if node not in cluster.dead:
                cluster.unreachable.discard(node)
        cluster.run(seconds)
        for died in set(cluster.dead) - known:
            at, death = cluster.dead[died]
            assert died in cluster.silent
            order = death.suspicion.order
            assert order is not None
            # Where no third node is there, a prober whose wires are cut cannot tell: but then neither it nor the
            # manager hears the node, and it is cut off before anything is started elsewhere.
            alone = all(control is None for pairs in order.asks.values() for _, control in pairs)
            assert died in cluster.unreachable or (alone and set(order.asks) <= cluster.unreachable)
            assert at - death.heard_at >= settings.detection_s - TICK_S
            assert any(other not in cluster.silent for other in cluster.ids), "somebody was there to look"
            watched = [other for other in cluster.ids if other not in known]
            missing = [other for other in watched if at - quiet_since.get(other, at) >= 3.0 and other in cluster.silent]
            assert len(missing) <= max(1, share * len(watched))


@given(
    st.lists(st.tuples(st.floats(0.0, 5.0), st.sampled_from([DEFAULT, FAST]), st.booleans()), max_size=6),
    st.floats(0.0, 5.0),
    st.booleans(),
)
def test_what_is_told_cheaply_to_be_well_is_well(
    nodes: list[tuple[float, HaSettings, bool]], away: float, suspected: bool
) -> None:
    now, memory = 1000.0, beginning(1000.0 - away)
    views = tuple(
        NodeView(f"nod-{number}", "n", now - age, ("u",), settings, settled=settled)
        for number, (age, settings, settled) in enumerate(nodes)
    )
    if suspected and views:
        memory = detect(now - away, (replace(views[0], heard_at=now - away - 3.0),), memory, {}).memory
    unspoken = min((unspoken_s(view.settings) for view in views), default=0.0)
    if all_is_well(now, [view.heard_at for view in views], unspoken, memory):
        assert detect(now, views, memory, {}) == Decision(Memory(now, memory.floor, {}))
