"""Live migration on real engines: what a guest and those who talk to it notice, and what is left behind."""

from __future__ import annotations

import time

from lab.cloud import Lab, Pinging, until
from lab_ceph.storage import Storage


def test_a_guest_moves_under_traffic(lab: Lab, storage: Storage) -> None:
    guests = lab.create_all(
        mover="--node n1 --disk-type standard",
        watcher="--node n3 --disk-type standard",
    )
    mover, watcher = guests["mover"], guests["watcher"]
    disk = next(disk for disk in lab.items("/disks") if disk["spec"]["vm"] == mover.id)
    before, boot = mover.resource, mover.boot_id()
    pinging = Pinging(watcher, mover.ip)
    began = time.monotonic()
    lab.ok("vm", "migrate", "mover", "--to", "n2")
    took = time.monotonic() - began
    mover.forget()
    after = mover.resource
    assert after["status"]["node"] == "n2" and after["status"]["state"] == "running"
    assert after["status"]["addresses"] == before["status"]["addresses"]
    assert lab.guests_running()[mover.id] == ["n2"]
    answers, gap = pinging.stop()
    print(f"migrated in {took:.1f} s; longest time without an answer {gap:.1f} s of {answers} answers")
    assert gap < 3.0
    assert mover.boot_id() == boot, "it was not started anew"
    mover.run("echo kept > /root/kept; sync")
    # What it has is where it is, and nothing is left where it was.
    assert lab.show("disks", disk["id"])["status"]["node"] == "n2"
    until(lambda: not lab.vm("mover")["status"]["leaving"], "n1 has cleaned up", 30.0)
    assert mover.nic["id"][-12:] not in lab.on("n1", "ovs-vsctl", "list-ports", "br-int")
    assert lab.audit()["clean"]
    lab.ok("vm", "migrate", "mover")
    mover.forget()
    assert mover.run("cat /root/kept").strip() == "kept"
    assert len(lab.guests_running()[mover.id]) == 1
