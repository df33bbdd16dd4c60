"""Live migration on real engines: what a guest and those who talk to it notice, and what is left behind."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.cloud import REPOSITORY, Guest, Lab, until
from lab.traffic import Pinging, Silent, Talking
from lab_ceph.copies import Watch, never_twice
from lab_ceph.migrations import ended_in
from lab_ceph.storage import Storage

TAKEN, OPENED = 9098, 9097
"""Ports: of the guest that migrates, which others connect to; and of the other one, which it connects to."""


@pytest.fixture(scope="module")
def pair(lab: Lab) -> Iterator[tuple[Guest, Guest]]:
    """One that moves, and one that watches it; gone afterwards, for they were asked onto their nodes."""
    guests = lab.create_all(
        mover="--node n1 --disk-type standard",
        watcher="--node n3 --disk-type standard",
    )
    yield guests["mover"], guests["watcher"]
    for guest in guests.values():
        guest.forget()
    lab.ok("vm", "delete", *guests)


def test_a_guest_moves_under_traffic(lab: Lab, storage: Storage, pair: tuple[Guest, Guest]) -> None:
    mover, watcher = pair
    disk = next(disk for disk in lab.items("/disks") if disk["spec"]["vm"] == mover.id)
    before, boot = mover.resource, mover.boot_id()
    talking = Talking(mover, watcher)
    pinging = Pinging(watcher, mover.ip)
    began = time.monotonic()
    with never_twice(lab, storage.pool("standard"), "n3") as watch:
        lab.ok("vm", "migrate", "mover", "--to", "n2")
        took = time.monotonic() - began
        until(lambda: not lab.vm("mover")["status"]["leaving"], "n1 has cleaned up", 30.0)
    assert watch.running.of(mover.id) == [["n1"], ["n1", "n2"], ["n2"]], watch.running.changes
    mover.forget()
    after = mover.resource
    assert after["status"]["node"] == "n2" and after["status"]["state"] == "running"
    assert after["status"]["addresses"] == before["status"]["addresses"]
    assert lab.guests_running()[mover.id] == ["n2"]
    answers, gap = pinging.stop()
    print(f"migrated in {took:.1f} s; longest time without an answer {gap:.1f} s of {answers} answers")
    assert gap < 3.0
    numbers, silence = talking.stop()
    print(f"its TCP connection lived on: {numbers} numbers, the longest time without one {silence:.1f} s")
    assert mover.boot_id() == boot, "it was not started anew"
    mover.run("echo kept > /root/kept; sync")
    # What it has is where it is, and nothing is left where it was.
    assert lab.show("disks", disk["id"])["status"]["node"] == "n2"
    assert mover.nic["id"][-12:] not in lab.on("n1", "ovs-vsctl", "list-ports", "br-int")
    assert lab.audit()["clean"]
    lab.ok("vm", "migrate", "mover", "--to", "n1")
    mover.forget()
    assert mover.run("cat /root/kept").strip() == "kept"
    assert len(lab.guests_running()[mover.id]) == 1


def test_silent_connections_go_on_whoever_speaks_first(
    lab: Lab, storage: Storage, pair: tuple[Guest, Guest], narrow: None
) -> None:
    """Its groups let it open connections to one port, and others to one of its own: what it hears and says in those
    that are open is allowed by nothing else than that they are."""
    mover, watcher = pair
    source = str(lab.vm("mover")["status"]["node"])
    taken, opened = Silent(mover, watcher, TAKEN), Silent(watcher, mover, OPENED)
    lab.ok("vm", "migrate", "mover", "--to", "n2" if source == "n1" else "n1")
    opened.speak()  # logging in to the mover speaks in no connection but its own
    mover.forget()
    taken.speak()


@pytest.fixture
def narrow(lab: Lab, pair: tuple[Guest, Guest]) -> Iterator[None]:
    mover, watcher = pair
    for name, direction, port in (
        ("one-way", "outbound", OPENED),
        ("one-way", "inbound", TAKEN),
        ("door", "inbound", OPENED),
    ):
        if name not in {group["name"] for group in lab.json("security-group", "list")}:
            lab.ok("security-group", "create", name)
            for rule in lab.json("security-group", "rule", "list", name):
                lab.ok("security-group", "rule", "delete", name, rule["id"])
        ask = ("--direction", direction, "--protocol", "tcp", "--port", str(port), "--cidr", "0.0.0.0/0")
        lab.ok("security-group", "rule", "add", name, *ask)
    lab.ok("nic", "set", mover.nic["id"], "--security-group", "one-way")
    lab.ok("nic", "set", watcher.nic["id"], "--security-group", "default", "--security-group", "door")
    yield
    for guest in pair:
        lab.ok("nic", "set", guest.nic["id"], "--security-group", "default")
    lab.ok("security-group", "delete", "one-way", "door")


@pytest.mark.parametrize("victim", ["source", "target", "manager"])
def test_whoever_dies_on_the_way_one_copy_runs(
    lab: Lab, storage: Storage, pair: tuple[Guest, Guest], victim: str
) -> None:
    """The memory takes some seconds at this pace: one is killed in the middle of it, and is started again."""
    mover, _ = pair
    boot = mover.boot_id()
    source = str(lab.vm("mover")["status"]["node"])
    target = "n2" if source == "n1" else "n1"
    unit = {"manager": "manager", "source": f"agent-{source}", "target": f"agent-{target}"}[victim]
    with lab.own_client() as client, never_twice(lab, storage.pool("standard"), "n3"):
        ask = {"node": target, "bandwidth_mib_s": 8}
        operation = client.post("/vms/mover/actions/migrate", ask)["operation"]["id"]
        until(lambda: "MiB left" in client.get(f"/operations/{operation}")["message"], "memory is copied", 60.0)
        pid = lab.unit_pid(unit)
        assert pid is not None
        lab.kill(pid)
        lab.wait_manager()
        ended = until(lambda: ended_in(client, operation), "it has ended", 120.0)
        until(lambda: not lab.vm("mover")["status"]["leaving"], "what it left is gone", 60.0)
    where = str(lab.vm("mover")["status"]["node"])
    assert lab.guests_running()[mover.id] == [where]
    print(f"{unit} killed on the way from {source} to {target}: {ended['state']}, it runs on {where}")
    mover.forget()
    assert mover.boot_id() == boot, "it was started anew"
    assert lab.audit()["clean"]


def test_a_second_process_of_one_that_has_migrated_is_seen(
    lab: Lab, storage: Storage, pair: tuple[Guest, Guest], tmp_path: Path
) -> None:
    """What says above that there was only one could say otherwise: for this VM, too, whose process was started to take
    it over, and though the second runs no guest at all."""
    mover, _ = pair
    if not _taken_over(lab):
        lab.ok("vm", "migrate", "mover", "--to", "n2" if mover.node == "n1" else "n1")
        mover.forget()
    home = mover.node
    (other,) = {"n1", "n2"} - {home}
    assert _taken_over(lab)
    script = tmp_path / "qemu-system-second"
    script.write_text("#!/bin/sh\nread end\n")
    script.chmod(0o755)
    with Watch(lab, storage.pool("standard"), "n3") as watch:
        second = subprocess.Popen(
            [str(REPOSITORY / "scloud"), "lab", "exec", other, "--", str(script), f"guest={mover.id}"],
            env=lab.env,
            stdin=subprocess.PIPE,
        )
        try:
            twice = until(watch.twice, "it is told of", 20.0)
        finally:
            second.communicate(timeout=20)
    assert [(id, sorted(nodes)) for _, id, nodes in twice] == [(mover.id, sorted({home, other}))]


def _taken_over(lab: Lab) -> bool:
    """Whether the mover's process was started to take it over."""
    return "-incoming" in Path(f"/proc/{lab.qemu('mover')}/cmdline").read_text().split("\0")


BUSY_MIB = 32
_BUSY = f"""
dd if=/dev/urandom of=/tmp/one bs=1M count=1 2> /dev/null
while :; do for part in $(seq {BUSY_MIB}); do cat /tmp/one; done > /tmp/busy; done
"""


@pytest.mark.long
def test_a_guest_that_writes_faster_than_is_copied(lab: Lab, storage: Storage, pair: tuple[Guest, Guest]) -> None:
    """It is given up, with the figures, if that is what was asked for; by post-copy it goes on at the target with part
    of its memory here."""
    mover, _ = pair
    boot = mover.boot_id()
    source = str(lab.vm("mover")["status"]["node"])
    target = "n2" if source == "n1" else "n1"
    mover.run(f"echo '{_BUSY}' > /tmp/busy.sh")
    mover.background("echo $$ > /tmp/busy.pid; exec sh /tmp/busy.sh")
    with lab.own_client() as client:
        ask = {"node": target, "bandwidth_mib_s": 8}
        operation = client.post("/vms/mover/actions/migrate", {**ask, "stuck": "give-up"})["operation"]["id"]
        ended = until(lambda: ended_in(client, operation), "it is given up", 180.0)
        assert ended["state"] == "failed", ended
        assert "the guest writes faster than is copied: after 6 rounds" in ended["message"], ended
        print(ended["message"])
        assert lab.guests_running()[mover.id] == [source]
        until(lambda: not lab.vm("mover")["status"]["leaving"], "what had come to the target is gone", 60.0)

        began = time.monotonic()
        operation = client.post("/vms/mover/actions/migrate", {**ask, "stuck": "post-copy"})["operation"]["id"]
        ended = until(lambda: ended_in(client, operation), "it has ended", 240.0)
        print(f"post-copy of a guest that writes {BUSY_MIB} MiB all the time: {time.monotonic() - began:.1f} s")
        assert ended["state"] == "done", ended
    until(lambda: not lab.vm("mover")["status"]["leaving"], "what it left is gone", 60.0)
    assert lab.guests_running()[mover.id] == [target]
    mover.forget()
    assert mover.boot_id() == boot, "it was started anew"
    mover.run("kill $(cat /tmp/busy.pid); rm -f /tmp/busy /tmp/one")
    assert lab.audit()["clean"]
