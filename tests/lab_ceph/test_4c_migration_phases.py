"""Everybody who has a part in a migration dies in every phase of it, or the link between its nodes is cut: `--long`."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Iterator

import pytest

from lab.cloud import Guest, Lab, until
from lab_ceph.copies import never_twice
from lab_ceph.migrations import ended_in
from lab_ceph.storage import Storage
from scloud.client.http import Client

PHASES = ("preparing", "copying", "switching", "cleaning")
"""The target gets ready; memory is copied; the last of it is, and the guest changes sides at some moment of that; it is
at the target, and the source removes what is left."""
VICTIMS = ("source agent", "target agent", "source libvirtd", "target libvirtd", "manager", "link")
PACE_MIB_S = 8
LAST_MIB = 10
CHANCE = random.Random(seed := int(os.environ.get("SCLOUD_CHAOS_SEED", time.time())))


@pytest.fixture(scope="module")
def mover(lab: Lab) -> Iterator[Guest]:
    print(f"SCLOUD_CHAOS_SEED={seed}")
    guest = lab.create("mover", "--node", "n1", "--disk-type", "standard")
    yield guest
    guest.forget()
    lab.ok("vm", "delete", "mover")


@pytest.mark.long
@pytest.mark.parametrize("victim", VICTIMS)
@pytest.mark.parametrize("phase", PHASES)
def test_one_copy_runs_whoever_dies_when(lab: Lab, storage: Storage, mover: Guest, phase: str, victim: str) -> None:
    boot = mover.boot_id()
    source = mover.node
    (target,) = {"n1", "n2"} - {source}
    mover.forget()
    with never_twice(lab, storage.pool("standard"), "n3"):
        with lab.own_client() as client:
            ask = {"node": target, "bandwidth_mib_s": PACE_MIB_S}
            operation = client.post("/vms/mover/actions/migrate", ask)["operation"]["id"]
            _until(client, operation, lab, phase)
        _strike(lab, victim, source, target)
        with lab.own_client() as client:
            ended = until(lambda: ended_in(client, operation), "it has ended", 180.0)
        _heal(lab, victim, source)
        until(lambda: not lab.vm("mover")["status"]["leaving"], "what it left is gone", 90.0)
        lab.wait_state("mover", "running")
    where = mover.node
    print(
        f"{victim} while {phase}, from {source} to {target}: {ended['state']}, it runs on {where}: {ended['message']}"
    )
    assert lab.guests_running()[mover.id] == [where]
    assert where == (target if ended["state"] == "done" else source)
    assert mover.boot_id() == boot, "it was started anew"
    lab.converged()


def _until(client: Client, operation: str, lab: Lab, phase: str) -> None:
    """Return in the middle of a phase: at its beginning, and at a random moment of the switch."""

    def told() -> str:
        return str(client.get(f"/operations/{operation}")["message"])

    if phase == "copying":
        until(lambda: "MiB left" in told(), "memory is copied", 60.0)
    elif phase == "switching":
        until(lambda: (left := _left_mib(told())) is not None and left <= LAST_MIB, "it is nearly copied", 90.0, 0.05)
        time.sleep(CHANCE.uniform(0.0, 1.5 * LAST_MIB / PACE_MIB_S))  # the moment is what is tried, not waited for
    elif phase == "cleaning":
        until(lambda: ended_in(client, operation), "it has moved", 120.0, 0.02)


def _left_mib(told: str) -> int | None:
    if (found := re.search(r"(\d+) of \d+ MiB left", told)) is not None:
        return int(found[1])
    return 0 if told.startswith("runs on") else None


def _strike(lab: Lab, victim: str, source: str, target: str) -> None:
    if victim == "link":
        print(lab.ok("lab", "fail", source, "--how", "partition", "--from", "storage"))
        return
    role, _, process = victim.partition(" ")
    node = {"source": source, "target": target}.get(role)
    if process == "libvirtd":
        (pid,) = lab.pids("libvirtd", node)
    else:
        found = lab.unit_pid("manager" if node is None else f"agent-{node}")
        assert found is not None
        pid = found
    lab.kill(pid)
    lab.wait_manager()


def _heal(lab: Lab, victim: str, source: str) -> None:
    if victim == "link":
        lab.ok("lab", "heal", source)
