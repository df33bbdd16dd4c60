"""Nodes lost under a guest with a disk in a pool: how many copies there are is looked at throughout.

One guest for all of it; about 100-170 s on two CPUs with TCG: Ceph may speak of slow pings for a minute after.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lab.cloud import Guest, Lab, until
from lab_ceph.storage import Storage
from scloud.node.processes import Process, scan

LOOK_EVERY_S = 0.25


class Watch:
    """Looks again and again who runs a VM: QEMU processes of the whole machine, each with the node it is in."""

    def __init__(self, lab: Lab, guest: Guest) -> None:
        self._guest = f"guest={guest.id},"
        self._root = str(lab.root)
        self._nodes = {one.mount_namespace: one.node for one in self._processes() if one.kind == "agent"}
        assert len(self._nodes) == 3, self._nodes
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.copies: list[tuple[float, list[str]]] = []
        """When it changed, in seconds, and the nodes from then on."""

    def _processes(self) -> list[Process]:
        return [one for one in scan() if one.root == self._root or any(self._guest in part for part in one.argv)]

    def _run(self) -> None:
        began = time.monotonic()
        while not self._over.wait(LOOK_EVERY_S):
            found = [one for one in self._processes() if one.kind == "qemu"]
            running = sorted(self._nodes[one.mount_namespace] for one in found)
            if not self.copies or self.copies[-1][1] != running:
                self.copies.append((round(time.monotonic() - began, 1), running))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()


def writers(lab: Lab, node: str, disk: str) -> list[str]:
    """Addresses of the clients that watch a disk and are not on the blocklist, asked through a node."""
    conf = next((lab.node_root(node) / "ceph").glob("*/ceph.conf"))
    base = ("-c", str(conf), "-n", f"client.scloud-{node}")
    image = f"scloud.standard/{disk}.0"
    done = lab.scloud("lab", "exec", node, "--", "rbd", *base, "status", image, "--format", "json")
    if done.code != 0:
        return []
    listed = lab.scloud("lab", "exec", node, "--", "ceph", *base, "osd", "blocklist", "ls", "-f", "json")
    text = listed.out.strip()
    cut = {entry["addr"] for entry in json.JSONDecoder().raw_decode(text)[0]} if text else set()
    watching = [str(one["address"]) for one in json.loads(done.out)["watchers"]]
    return [address for address in watching if address.removeprefix("v2:") not in cut]


def incident(lab: Lab, node: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = lab.json("ha", "log", "--node", node)
    return found[-1] if found else {}


@contextmanager
def cut_from_manager(lab: Lab, node: str) -> Iterator[None]:
    """The node reaches everybody but the manager."""
    manager = str(lab.json("lab", "status")["url"])
    assert manager
    address = lab.on(node, "ip", "-4", "-o", "address", "show", "dev", "mgmt").split()[3].rpartition(".")[0] + ".1"
    lab.on(node, "ip", "route", "add", "blackhole", f"{address}/32")
    try:
        yield
    finally:
        lab.on(node, "ip", "route", "del", "blackhole", f"{address}/32")


@pytest.fixture(scope="module")
def guest(lab: Lab) -> Iterator[Guest]:
    lab.ok("ha", "settings", "--profile", "fast")
    made = lab.create("safe", "--disk-type", "standard")
    made.run("echo written-before > /data; sync")
    yield made
    made.forget()
    lab.ok("vm", "delete", "safe")
    lab.ok("ha", "settings", "--profile", "default")


def recovered(lab: Lab, storage: Storage, guest: Guest, node: str, how: str) -> None:
    """The node is lost, its guest runs elsewhere; the node returns and is let in, and nothing is left there."""
    with Watch(lab, guest) as watch:
        lab.ok("lab", "fail", node, "--how", how)
        guest.forget()
        try:
            until(lambda: guest.node != node, "it is given to another node", 90.0)
            lab.wait_state(guest.name, "running")
        finally:
            lab.ok("lab", "heal", node)
        guest.wait_boot()
        assert guest.run("cat /data") == "written-before"
        until(lambda: not lab.json("ha", "status")["incidents"], f"{node} is let in", 60.0)
        storage.healthy()
        lab.converged()
    home = guest.node
    print(lab.ok("ha", "log", "--node", node), watch.copies)
    assert [running for _, running in watch.copies] == [[node], [], [home]], watch.copies
    said = [moment["what"] for moment in incident(lab, node)["moments"]]
    wanted = ["heard", "suspected", "probed", "dead", "fencing", "key", "fenced", "placed", "running", "recovered"]
    assert [what for what in said if what in wanted] == wanted, said
    assert said[-4:] == ["back", "cleaned", "let in", "closed"], said
    disk = next(disk for disk in lab.items("/disks") if disk["spec"]["vm"] == guest.id)
    assert len(writers(lab, home, disk["id"])) == 1


def test_cut_off_from_the_manager_alone_nothing_happens(lab: Lab, storage: Storage, guest: Guest) -> None:
    node, boot = guest.node, guest.boot_id()
    with Watch(lab, guest) as watch, cut_from_manager(lab, node):
        until(
            lambda: any("answers layer-2 probes" in one["message"] for one in lab.json("ha", "status")["conditions"]),
            "a condition says that it answers probes",
            60.0,
        )
        assert not lab.json("ha", "status")["incidents"]
    lab.wait_manager()
    guest.forget()
    assert guest.node == node and guest.boot_id() == boot
    assert [running for _, running in watch.copies] == [[node]]


def test_a_node_that_is_killed(lab: Lab, storage: Storage, guest: Guest) -> None:
    recovered(lab, storage, guest, guest.node, "kill")


def test_a_node_that_is_cut_off_from_everything(lab: Lab, storage: Storage, guest: Guest) -> None:
    recovered(lab, storage, guest, guest.node, "partition")
