"""Nodes lost under a guest that writes to a pool; how many copies of it there are is looked at throughout.

About 80 s on two CPUs with TCG, without the lab.
"""

from __future__ import annotations

from lab.cloud import Lab, until
from lab_ceph.neighbours import UNNOTICED_S
from lab_ceph.protected import Protected, conditions


def test_cut_off_from_the_manager_alone_nothing_happens(lab: Lab, protected: Protected) -> None:
    what = "cut off from the manager only"
    with (
        protected.neighbours.talk(what, UNNOTICED_S),
        protected.nothing_is_done(what, lambda node: print(lab.ok("lab", "heal", node))) as node,
    ):
        lab.ok("lab", "fail", node, "--how", "partition", "--from", "manager")
        until(lambda: "answers layer-2 probes" in conditions(lab), "a condition says that it answers probes")
        assert not lab.json("ha", "status")["incidents"]


def test_a_node_that_is_killed(lab: Lab, protected: Protected) -> None:
    protected.recovers("node killed", lambda node: print(lab.ok("lab", "fail", node, "--how", "kill")))


def test_a_node_that_is_cut_off_from_everything(lab: Lab, protected: Protected) -> None:
    protected.recovers("cut off from everything", lambda node: print(lab.ok("lab", "fail", node, "--how", "partition")))
