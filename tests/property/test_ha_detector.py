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
    Round,
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
        self.routed: set[str] = set()
        """Nodes that are behind a router for all others, and these for them."""
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
            asked = [
                address
                for pair in pairs
                for address in pair
                if address is not None and (address[2:] in self.routed) == (prober in self.routed)
            ]
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
            rounds = [Round(order, self._answer(order)) for order in due]
            decision = detect(self.now, tuple(map(self._view, self.ids)), self.memory, rounds)
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


def test_whom_nobody_could_ask_is_not_dead() -> None:
    """All its probers are behind a router: they leave its addresses out, and hear one another well."""
    cluster = Cluster(6, FAST)
    cluster.routed.add("nod-5")
    cluster.silence("nod-5")
    cluster.unreachable.add("nod-5")
    cluster.run(120.0)
    assert not cluster.dead
    words = next(words for words in cluster.words if "could not probe it" in words)
    assert "no direct network to u-nod-5, s-nod-5" in words
    asked = {prober for _, order in cluster.orders for prober in order.asks}
    assert asked == {"nod-0", "nod-1", "nod-2", "nod-3", "nod-4"}, "others were tried when three were of no use"


def test_who_is_on_its_network_is_asked_first() -> None:
    now = 1000.0
    racks = {1: "10.0.1", 2: "10.0.1", 3: "10.0.2", 4: "10.0.2", 5: "10.0.2"}
    nodes = [
        NodeView(f"nod-{number}", "n", now - (60.0 if number == 5 else 0.3), (f"{rack}.{number}",), FAST, number != 5)
        for number, rack in racks.items()
    ]
    memory = Memory(now - 0.5, now - 100.0)
    (order,) = detect(now, tuple(nodes), memory, ()).probe
    assert list(order.asks)[:2] == ["nod-3", "nod-4"]
    assert order.asks["nod-3"] == (("10.0.2.5", "10.0.2.4"),), "and asks for another that is there as well"


def test_a_node_without_addresses_is_not_said_to_have_no_probers() -> None:
    cluster = Cluster(3, FAST)
    cluster.addresses = lambda node: ()  # type: ignore[assignment,method-assign]
    cluster.silence("nod-1")
    cluster.run(60.0)
    assert not cluster.dead and not cluster.orders
    assert {"has no address" in words for words in cluster.words} == {True}


def test_answers_of_an_earlier_round_say_nothing() -> None:
    """It was back in between; who probes it now may be others."""
    cluster = Cluster(3, FAST)
    cluster.silence("nod-1")
    while not cluster.orders:
        cluster.run(TICK_S)
    ((_, old),) = cluster.pending
    cluster.pending = []
    del cluster.silent["nod-1"]
    cluster.run(1.0)
    cluster.silence("nod-1")
    cluster.ids.remove("nod-0")
    cluster.ids.insert(0, "nod-a")
    while len(cluster.orders) < 2:
        cluster.run(TICK_S)
    stale = Round(old, {"nod-0": Answers(dict.fromkeys(["u-nod-1", "s-nod-1", "u-nod-2", "s-nod-2"], 0))})
    views = tuple(map(cluster._view, cluster.ids))
    decision = detect(cluster.now, views, cluster.memory, [stale])
    assert not decision.dead and decision.memory.suspicions["nod-1"].phase == "probing"


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
    st.tuples(
        st.sampled_from(["silence", "back", "cut", "mend", "wait", "route", "unroute"]),
        st.integers(0, 5),
        st.floats(0.5, 9.0),
    ),
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
            case "route" if not cluster.pending:  # who hears what is as it was when the probes began
                cluster.routed.add(node)
            case "unroute" if not cluster.pending:
                cluster.routed.discard(node)
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
            assert any((prober in cluster.routed) == (died in cluster.routed) for prober in order.asks)
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
        memory = detect(now - away, (replace(views[0], heard_at=now - away - 3.0),), memory, ()).memory
    unspoken = min((unspoken_s(view.settings) for view in views), default=0.0)
    if all_is_well(now, [view.heard_at for view in views], unspoken, memory):
        assert detect(now, views, memory, ()) == Decision(Memory(now, memory.floor, {}))
