"""Manager and agents are killed again and again while disks of a pool are made, cloned, grown, kept, brought back,
flattened and deleted: everything ends, and the pool has exactly what the cloud says, and nothing else."""

from __future__ import annotations

import random
import subprocess
import time

import pytest

from lab.cloud import Lab, until
from lab_ceph.pool_contents import Contents, wanted
from lab_ceph.storage import Storage
from support.figures import Figures

TYPE = "standard"
ATTEMPTS = 8
"""Kills in one round, at most."""


def begin_all(lab: Lab, tag: str) -> dict[str, subprocess.Popen[str]]:
    """One of each kind of work, at the same time; what they need was made by `furnish`."""
    commands = {
        "create": f"disk create new-{tag} --size 64M --type {TYPE}",
        "create another": f"disk create newer-{tag} --size 48M --type {TYPE}",
        "clone": f"disk create clone-{tag} --type {TYPE} --from-snapshot kept-{tag}",
        "vm": f"vm create vm-{tag} --disk-type {TYPE}",
        "resize": f"disk resize grown-{tag} --size 96M",
        "snapshot": f"snapshot create taken-{tag} --disk grown-{tag}",
        "rollback": f"disk rollback back-{tag} before-{tag}",
        "flatten": f"disk flatten child-{tag}",
        "delete": f"disk delete gone-{tag} --now",
        "delete snapshot": f"snapshot delete old-{tag}",
    }
    return {what: lab.begin(*command.split()) for what, command in commands.items()}


def furnish(lab: Lab, tag: str) -> None:
    """Disks and snapshots for the work to be done with."""
    for name in ("base", "grown", "back", "gone"):
        lab.ok("disk", "create", f"{name}-{tag}", "--size", "32M", "--type", TYPE, "--no-wait")
    until(lambda: not lab.open_operations(), "the disks are there")
    for name, disk in (("kept", "base"), ("old", "base"), ("before", "back")):
        lab.ok("snapshot", "create", f"{name}-{tag}", "--disk", f"{disk}-{tag}")
    lab.ok("disk", "create", f"child-{tag}", "--type", TYPE, "--from-snapshot", f"kept-{tag}")


def compare(lab: Lab, storage: Storage) -> None:
    """The pool, as librbd sees it, has what the API says: no image, snapshot, clone or watcher more or less."""
    should = wanted(lab, TYPE)
    vms = [vm["id"] for vm in lab.items("/vms", all_accounts=True) if vm["status"]["state"] == "running"]
    disks = {disk["id"]: disk["spec"].get("vm") for disk in lab.items("/disks", all_accounts=True)}

    def same() -> bool:
        found = Contents(lab, storage, TYPE)
        assert found.disks == should and found.strange == []
        images = {origin for _, _, origin in found.disks.values() if origin and origin.startswith("img-")}
        assert images <= found.bases
        return all(count == (disks[disk] in vms) for disk, count in found.open_by.items())

    until(same, "disks are open where a VM runs with them, and nowhere else", 20.0)


def finish(lab: Lab, tag: str) -> None:
    """What was asked for is so; a delete whose answer was lost with the manager is asked for once more."""
    if lab.has("disks", f"gone-{tag}"):
        lab.ok("disk", "delete", f"gone-{tag}", "--now")
    if lab.has("snapshots", f"old-{tag}"):
        lab.ok("snapshot", "delete", f"old-{tag}")
    disks = {disk["name"]: disk for disk in lab.items("/disks")}
    for name in ("new", "newer", "clone", "grown", "back", "child", "base"):
        assert disks[f"{name}-{tag}"]["status"]["state"] == "ready", disks[f"{name}-{tag}"]
    assert disks[f"grown-{tag}"]["spec"]["size_mib"] == 96
    assert disks[f"back-{tag}"]["spec"]["rollbacks"] == 1 and disks[f"child-{tag}"]["spec"]["flattened"]
    assert lab.vm(f"vm-{tag}")["status"]["state"] == "running"
    assert f"gone-{tag}" not in disks and not lab.has("snapshots", f"old-{tag}")


def clear(lab: Lab, tag: str) -> None:
    lab.ok("vm", "delete", f"vm-{tag}")
    names = [f"{name}-{tag}" for name in ("clone", "child")]
    lab.ok("disk", "delete", *names, "--now")
    for name in ("kept", "before", "taken"):
        lab.ok("snapshot", "delete", f"{name}-{tag}")
    names = [f"{name}-{tag}" for name in ("new", "newer", "grown", "back", "base")]
    lab.ok("disk", "delete", *names, "--now")


@pytest.mark.parametrize("victim", ["manager", "agents"])
def test_whoever_is_killed_the_pool_has_what_the_cloud_says(
    lab: Lab, storage: Storage, victim: str, figures: Figures
) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    furnish(lab, victim)
    work = begin_all(lab, victim)
    kills = 0
    while kills < ATTEMPTS and any(process.poll() is None for process in work.values()):
        # A moment is chosen, not waited for: that is the fault.
        time.sleep(chance.uniform(0.1, 0.9))
        pid = lab.unit_pid("manager" if victim == "manager" else f"agent-n{chance.randint(1, 3)}")
        if pid is not None:
            lab.kill(pid)
            kills += 1
    said = {what: process.communicate(timeout=150)[1] for what, process in work.items()}
    assert kills >= 2, f"only {kills} kills: the work was done too soon"
    failed = {what: text for what, text in said.items() if work[what].returncode and not what.startswith("delete")}
    assert not failed, failed
    took = lab.converged(150.0)
    finish(lab, victim)
    compare(lab, storage)
    figures.note(f"{kills} kills ({victim}) in ten changes to a pool at once: whole again {took:.1f} s after")
    clear(lab, victim)
    lab.converged(60.0)
    compare(lab, storage)
