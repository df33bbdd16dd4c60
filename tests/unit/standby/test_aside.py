"""When a leader hands its lease over, and that it never goes to and fro."""

from __future__ import annotations

import itertools

from scloud.standby.aside import SETTLE_S, successor
from scloud.store.lease import Holder, Offer

LONG = SETTLE_S + 1.0


def manager(name: str) -> Holder:
    return Holder(id=name, api="127.0.0.1:1", link="127.0.0.1:2")


def offer(name: str, nodes: int) -> Offer:
    return Offer(holder=manager(name), nodes=nodes)


def test_the_lease_goes_to_whom_strictly_more_nodes_reach() -> None:
    assert successor(0, [offer("b", 1)], LONG) == manager("b")
    assert successor(1, [offer("b", 2), offer("c", 3)], LONG) == manager("c")
    assert successor(2, [offer("b", 2)], LONG) is None
    assert successor(3, [offer("b", 2)], LONG) is None


def test_nobody_is_made_leader_for_nothing() -> None:
    assert successor(0, [], LONG) is None
    assert successor(0, [offer("b", 0)], LONG) is None


def test_a_new_leader_is_given_time_to_be_found() -> None:
    assert successor(0, [offer("b", 5)], SETTLE_S - 0.1) is None
    assert successor(0, [offer("b", 5)], SETTLE_S) == manager("b")


def test_whoever_reaches_whom_the_lease_comes_to_rest() -> None:
    """Three managers and four nodes, every way in which nodes may reach managers, managers not reaching each other."""
    names, nodes = ("a", "b", "c"), range(4)
    some = [set(group) for size in range(5) for group in itertools.combinations(nodes, size)]
    for reached in itertools.product(some, repeat=3):
        reaches = dict(zip(names, reached, strict=True))
        leader, changes = "a", 0
        while True:
            heard = reaches[leader]
            offers = [offer(name, len(reaches[name] - heard)) for name in names if name != leader]
            to = successor(len(heard), offers, LONG)
            if to is None:
                break
            assert len(reaches[to.id]) > len(heard)
            leader, changes = to.id, changes + 1
            assert changes <= len(nodes)
