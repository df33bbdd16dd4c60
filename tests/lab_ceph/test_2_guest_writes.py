"""A guest writes to a disk of the cluster, flushing each block, while everything of the cluster dies in turn.

No write that was acknowledged to the guest is lost and none is corrupted, whatever dies; the disk is read back from the
guest, and from another node through librbd. How long the guest's writes stood still is measured and told.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import rbd

from lab.cloud import Lab, until
from lab_ceph import writer as blocks
from lab_ceph.storage import Storage
from lab_ceph.writer import Writer
from scloud.drivers.supervisor.identity import Identity
from support.figures import Figures

HOME = "n1"
"""The guest's node."""
NODES = ("n1", "n2", "n3")
SEED = int(os.environ.get("SCLOUD_CHAOS_SEED") or random.SystemRandom().randrange(1 << 32))
"""Of what is drawn here."""
MONITORS_AWAY_S = 20.0
LONGEST_S = 90.0
"""A stall is a figure; this only tells one from a guest that hangs."""


@pytest.fixture(scope="module")
def writer(lab: Lab) -> Iterator[Writer]:
    """It writes from the first test to the last."""
    disk = lab.json("disk", "create", "written", "--size", f"{blocks.DISK_MIB}M", "--type", "standard")
    guest = lab.create("writer", "--node", HOME)
    lab.ok("disk", "attach", "written", "writer")
    found = Writer(guest, guest.device_of(disk["id"]))
    found.start()
    yield found
    guest.forget()
    lab.ok("vm", "delete", "writer")
    lab.ok("disk", "delete", "written", "--now")


@contextmanager
def opened(lab: Lab, storage: Storage, node: str) -> Iterator[Any]:
    """The disk, opened with librbd to be read, as a node would."""
    id = str(lab.show("disks", "written")["id"])
    pool = str(lab.show("pools", "standard")["spec"]["rados_name"])
    with storage.access(node) as handle, handle.open_ioctx(pool) as io:
        (name,) = [name for name in rbd.RBD().list(io) if name.startswith(id)]
        with rbd.Image(io, name, read_only=True) as image:
            yield image


def written_by(lab: Lab, storage: Storage, object_number: int) -> str:
    """The OSD that takes the writes to one of the disk's objects, as `osd.3`."""
    pool = str(lab.show("pools", "standard")["spec"]["rados_name"])
    with opened(lab, storage, "n2") as disk:
        prefix = disk.block_name_prefix()
    return storage.primary(pool, f"{prefix}.{object_number:016x}")


def told(figures: Figures, writer: Writer, since: int, what: str) -> None:
    stall = writer.stall(since)
    figures.note(f"a guest's writes stood still for {stall:.1f} s at most: {what}")
    assert stall < LONGEST_S


@contextmanager
def nobody_restarts(lab: Lab, *nodes: str) -> Iterator[None]:
    """What dies on these nodes meanwhile stays dead: their agents stand still."""
    pids = [pid for node in nodes if (pid := lab.unit_pid(f"agent-{node}"))]
    assert len(pids) == len(nodes)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_the_osd_that_is_written_to_is_killed(lab: Lab, storage: Storage, writer: Writer, figures: Figures) -> None:
    since = writer.mark()
    writer.go_on()
    told(figures, writer, since, "nothing is wrong")
    since = writer.mark()
    name = written_by(lab, storage, (since + 10) % blocks.OBJECTS)
    node, pid = storage.daemons()[name]
    lab.kill(pid)
    storage.returned(name, pid)
    writer.go_on(blocks.OBJECTS)
    told(figures, writer, since, "primary OSD killed, its agent starts it again")
    storage.healthy()

    others = [name for name, (node, _) in storage.daemons().items() if name.startswith("osd.") and node != HOME]
    since = writer.mark()
    name = next(found for n in range(blocks.OBJECTS) if (found := written_by(lab, storage, n)) in others)
    node, pid = storage.daemons()[name]
    with nobody_restarts(lab, node):
        lab.kill(pid)
        writer.go_on(blocks.OBJECTS)
        assert name not in storage.daemons()
    told(figures, writer, since, "primary OSD killed, nobody starts it again")


def test_an_osd_hangs(lab: Lab, storage: Storage, writer: Writer, figures: Figures) -> None:
    since = writer.mark()
    name = next(name for name, (node, _) in storage.daemons().items() if name.startswith("osd.") and node == "n2")
    lab.ok("lab", "fail", name, "--how", "hang")
    try:
        until(lambda: storage.truth().get("osdmap", {}).get("num_up_osds") == 5, f"{name} is down")
        writer.go_on(blocks.OBJECTS)
    finally:
        lab.ok("lab", "heal", name)
    told(figures, writer, since, "primary OSD hangs")


def test_a_node_dies(lab: Lab, storage: Storage, writer: Writer, figures: Figures) -> None:
    """One of those that the guest is not on."""
    lost = random.Random(SEED).choice([node for node in NODES if node != HOME])
    print(f"{lost} is drawn; seed {SEED}")
    since = writer.mark()
    lab.ok("lab", "fail", lost, "--how", "kill")
    try:
        until(lambda: storage.truth().get("osdmap", {}).get("num_up_osds") == 4, "its OSDs are down")
        assert not any(node == lost for node, _ in storage.daemons().values())
        writer.go_on(blocks.OBJECTS)
    finally:
        lab.ok("lab", "heal", lost)
    told(figures, writer, since, f"{lost} killed, a node of two OSDs and a monitor")
    lab.wait_manager()


def test_the_active_manager_daemon_dies(lab: Lab, storage: Storage, writer: Writer, figures: Figures) -> None:
    """Nobody starts it again until the other one works in its place; a guest's writes need neither."""
    since = writer.mark()
    active = until(storage.active_mgr, "a manager daemon works")
    node, pid = storage.daemons()[active]
    with nobody_restarts(lab, node):
        lab.kill(pid)
        other = until(lambda: (now := storage.active_mgr()) != active and now, "the other one works")
        assert active not in storage.daemons()
    storage.returned(active, pid)
    writer.go_on()
    told(figures, writer, since, f"active manager daemon killed ({active}; then {other})")
    lab.wait_manager()


def test_monitors_die(lab: Lab, storage: Storage, writer: Writer, figures: Figures) -> None:
    since = writer.mark()
    leader = f"mon.{storage.truth()['quorum_names'][0]}"
    _, pid = storage.daemons()[leader]
    lab.kill(pid)
    storage.returned(leader, pid)
    writer.go_on()
    told(figures, writer, since, "leading monitor killed")

    since = writer.mark()
    with nobody_restarts(lab, *NODES):
        for name, (_, pid) in storage.daemons().items():
            if name.startswith("mon."):
                lab.kill(pid)
        dead = time.monotonic()
        until(lambda: time.monotonic() - dead > MONITORS_AWAY_S, "20 s are over", MONITORS_AWAY_S + 5.0)
        assert not any(name.startswith("mon.") for name in storage.daemons())
    lab.wait_manager()
    writer.go_on()
    told(figures, writer, since, f"all monitors dead for {MONITORS_AWAY_S:g} s")


def test_everything_dies_at_once(lab: Lab, storage: Storage, writer: Writer, figures: Figures) -> None:
    since = writer.mark()
    before = storage.daemons()
    osds = {osd["uuid"]: osd["osd"] for osd in storage.show()["status"]["osds"]}
    for known in [Identity.of(pid) for _, pid in before.values()]:
        assert known is not None
        os.kill(known.pid, signal.SIGKILL)
    until(
        lambda: {n: p for n, (_, p) in storage.daemons().items() if p != before[n][1]}.keys() == before.keys(),
        "all daemons run again",
    )
    writer.go_on(blocks.OBJECTS, LONGEST_S)
    told(figures, writer, since, "all daemons killed at once")
    storage.healthy()
    assert {osd["uuid"]: osd["osd"] for osd in storage.show()["status"]["osds"]} == osds


def test_all_that_was_acknowledged_is_there(lab: Lab, storage: Storage, writer: Writer, figures: Figures) -> None:
    boot = writer.guest.boot_id()
    last = writer.stop()
    figures.note(f"acknowledged writes read back after all of that: {last}")
    # The guest's own cache is dropped, and reads go past it.
    assert writer.digest() == blocks.digest(last)
    assert writer.guest.boot_id() == boot and writer.guest.resource["status"]["restarts"] == 0
    lab.ok("disk", "detach", "written")
    with opened(lab, storage, "n3") as disk:
        for number, expected in enumerate(blocks.runs(last)):
            found = disk.read(number * blocks.OBJECT_BLOCKS * blocks.BLOCK, len(expected))
            assert found == expected, f"object {number}: {_first_difference(found, expected)}"


def _first_difference(found: bytes, expected: bytes) -> str:
    at = next(at for at, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
    sector = at // blocks.SECTOR * blocks.SECTOR
    return (
        f"byte {at}: is {found[sector : sector + blocks.SECTOR]!r}, was {expected[sector : sector + blocks.SECTOR]!r}"
    )
