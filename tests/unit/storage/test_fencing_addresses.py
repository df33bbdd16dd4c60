"""Which sessions are a node's: a disk on its way between two nodes is open on both."""

from __future__ import annotations

from scloud.drivers.storage.rbd_fence import own

AGENTS = {"lost": "10.0.0.1:0/11", "well": "10.0.0.2:0/12", "other": "10.0.0.3:0/13"}
GUEST, ITS_TARGET, STRANGER = "10.0.0.1:0/77", "10.0.0.2:0/78", "10.9.9.9:0/79"


def test_what_comes_from_another_node_is_left_alone() -> None:
    seen = {*AGENTS.values(), GUEST, ITS_TARGET, ""}
    assert own(seen, AGENTS, "lost") == {"10.0.0.1:0/11", GUEST}


def test_what_is_of_no_known_node_is_cut_off() -> None:
    """It has a disk of the node open: better one too many."""
    assert own({GUEST, STRANGER}, AGENTS, "lost") == {GUEST, STRANGER}
    without = {"well": AGENTS["well"]}
    assert own({GUEST, ITS_TARGET}, without, "lost") == {GUEST}


def test_nodes_that_share_an_address_are_told_apart_by_their_agents_alone() -> None:
    agents = {"lost": "10.0.0.1:0/11", "beside": "10.0.0.1:0/12"}
    assert own({"10.0.0.1:0/11", "10.0.0.1:0/12", GUEST}, agents, "lost") == {"10.0.0.1:0/11", GUEST}
