"""Maintenance on real engines: a node's guests leave it running, and come back when the cluster is evened out."""

from __future__ import annotations

import time

from lab.cloud import Guest, Lab
from lab_ceph.storage import Storage


def test_a_node_is_drained_and_opened_again(lab: Lab, storage: Storage) -> None:
    """Not the node of hello: only those two are to leave it."""
    node = next(name for name in ("n2", "n1") if name != lab.vm("hello")["status"]["node"])
    others = [name for name in ("n1", "n2", "n3") if name != node]
    lab.ok("node", "cordon", *others)  # so that its guests are there without having been asked onto it
    guests = lab.create_all(drained_1="--disk-type standard", drained_2="--disk-type standard")
    lab.ok("node", "uncordon", *others)
    try:
        _drain_and_undrain(lab, node, others, guests)
    finally:
        lab.ok("node", "undrain", node)
        for guest in guests.values():
            guest.forget()
        lab.ok("vm", "delete", *(guest.name for guest in guests.values()))


def _drain_and_undrain(lab: Lab, node: str, others: list[str], guests: dict[str, Guest]) -> None:
    assert {guest.node for guest in guests.values()} == {node}
    boots = {name: guest.boot_id() for name, guest in guests.items()}
    began = time.monotonic()
    said = lab.scloud("node", "drain", node)
    took = time.monotonic() - began
    assert said.code == 0, repr(said)
    print(f"drained in {took:.1f} s\n{said.err}{said.out}")
    print(lab.ok("node", "moves", node))
    print(lab.ok("node", "list"))
    assert "draining" in lab.ok("node", "list")
    running = lab.guests_running()
    for name, guest in guests.items():
        assert guest.node in others and running[guest.id] == [guest.node], "one copy, and elsewhere"
        guest.forget()
        assert guest.boot_id() == boots[name], "it was not started anew"
    lab.ok("node", "undrain", node)
    print(lab.ok("cluster", "rebalance"))
    print(lab.ok("cluster", "rebalance", "--apply"))
    assert lab.audit()["clean"]
