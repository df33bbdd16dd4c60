"""Manager and agents are killed again and again while disks of a pool are made, made anew, cloned, grown, kept, brought
back, flattened and deleted: everything ends, and the pool has exactly what the cloud says, and nothing else."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import rbd

from lab.cloud import Lab, until
from lab_ceph.pool_contents import Contents, wanted
from lab_ceph.storage import Storage
from scloud.client.http import Client
from scloud.model.errors import CloudError, ErrorKind
from support.figures import Figures

TYPE = "standard"
ATTEMPTS = {"manager": 4, "agents": 8}
"""Kills in one round, at most. The manager is started again later each time, and clients are patient for 30 s."""

WATCH_S = 45.0
"""A client that was killed with an image open counts as having it open for 30 s."""


def requests(tag: str) -> list[tuple[str, str, dict[str, Any]]]:
    """One of each kind of work; what they need was made by `furnish`."""

    def disk(name: str, **spec: object) -> tuple[str, str, dict[str, Any]]:
        return "POST", "/disks", {"name": f"{name}-{tag}", "spec": {"type": TYPE, **spec}}

    return [
        disk("new", size_mib=64),
        disk("newer", size_mib=48),
        disk("clone", snapshot=f"kept-{tag}"),
        ("POST", "/vms", {"name": f"vm-{tag}", "spec": {"image": "micro", "disk_type": TYPE, "memory_mib": 128}}),
        ("POST", f"/vms/anew-{tag}/actions/rebuild", {}),
        ("POST", f"/disks/grown-{tag}/actions/resize", {"size_mib": 96}),
        ("POST", "/snapshots", {"name": f"taken-{tag}", "spec": {"disk": f"grown-{tag}"}}),
        ("POST", f"/disks/back-{tag}/actions/rollback", {"snapshot": f"before-{tag}"}),
        ("POST", f"/disks/child-{tag}/actions/flatten", {}),
        ("DELETE", f"/disks/gone-{tag}?now=true", {}),
        ("DELETE", f"/snapshots/old-{tag}", {}),
    ]


def ask(client: Client, method: str, path: str, body: dict[str, Any]) -> None:
    """And wait until it is done. A DELETE whose answer was lost with the manager is asked again."""
    deadline = time.monotonic() + 120.0
    while True:
        try:
            answer = client.request(method, path, json=body or None)
        except CloudError as error:
            if method == "DELETE" and error.kind is ErrorKind.NOT_FOUND:
                return
            assert method == "DELETE" and error.kind is ErrorKind.UNAVAILABLE and time.monotonic() < deadline, error
        else:
            client.finish(answer["operation"]["id"], timeout=150.0)
            return


def furnish(lab: Lab, tag: str) -> None:
    """Disks and snapshots for the work to be done with."""
    for name in ("base", "grown", "back", "gone"):
        lab.ok("disk", "create", f"{name}-{tag}", "--size", "32M", "--type", TYPE, "--no-wait")
    until(lambda: not lab.open_operations(), "the disks are there")
    for name, disk in (("kept", "base"), ("old", "base"), ("before", "back")):
        lab.ok("snapshot", "create", f"{name}-{tag}", "--disk", f"{disk}-{tag}")
    lab.ok("disk", "create", f"child-{tag}", "--type", TYPE, "--from-snapshot", f"kept-{tag}")
    spec = {"image": "micro", "disk_type": TYPE, "memory_mib": 128, "power": "off"}
    ask(lab.client, "POST", "/vms", {"name": f"anew-{tag}", "spec": spec})


def compare(lab: Lab, storage: Storage) -> None:
    """The pool, as librbd sees it, has what the API says: no image, snapshot, clone, watcher or lock more or less."""
    should = wanted(lab, TYPE)
    vms = [vm["id"] for vm in lab.items("/vms", all_accounts=True) if vm["status"]["state"] == "running"]
    disks = {disk["id"]: disk["spec"].get("vm") for disk in lab.items("/disks", all_accounts=True)}

    def wrongly_open() -> dict[str, int]:
        found = Contents(storage, TYPE)
        assert found.disks == should and found.strange == []
        images = {origin for _, _, origin in found.disks.values() if origin and origin.startswith("img-")}
        assert images <= found.bases
        return {disk: count for disk, count in found.open_by.items() if count != (disks[disk] in vms)}

    deadline = time.monotonic() + WATCH_S
    while wrong := wrongly_open():
        assert time.monotonic() < deadline, f"open without a VM that runs, or more than once: {wrong}"
        time.sleep(0.5)
    # Whoever has died with one is found out by the next look at the disk, which is made once a minute.
    until(lambda: not Contents(storage, TYPE).locked, "no disk to be locked by who is gone", WATCH_S + 60.0)


def finish(lab: Lab, tag: str) -> None:
    """What was asked for is so."""
    disks = {disk["name"]: disk for disk in lab.items("/disks")}
    for name in ("new", "newer", "clone", "grown", "back", "child", "base"):
        assert disks[f"{name}-{tag}"]["status"]["state"] == "ready", disks[f"{name}-{tag}"]
    assert disks[f"grown-{tag}"]["spec"]["size_mib"] == 96
    assert disks[f"back-{tag}"]["spec"]["rollbacks"] == 1 and disks[f"child-{tag}"]["spec"]["flattened"]
    vms = {name: lab.vm(f"{name}-{tag}") for name in ("vm", "anew")}
    assert {vm["status"]["state"] for vm in vms.values()} == {"running"}
    assert [disk["spec"]["rebuilds"] for disk in disks.values() if disk["spec"].get("vm") == vms["anew"]["id"]] == [1]
    assert f"gone-{tag}" not in disks and not lab.has("snapshots", f"old-{tag}")


def clear(lab: Lab, tag: str) -> None:
    lab.ok("vm", "delete", f"vm-{tag}", f"anew-{tag}")
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
    work = requests(victim)
    kills = 0
    with ExitStack() as stack:
        clients = [stack.enter_context(lab.own_client()) for _ in work]
        for client in clients:
            client.get("/status")  # who has been answered once is patient from then on
        crowd = stack.enter_context(ThreadPoolExecutor(len(work)))
        asked = [crowd.submit(ask, client, *request) for client, request in zip(clients, work, strict=True)]
        while kills < ATTEMPTS[victim] and not all(item.done() for item in asked):
            # A moment is chosen, not waited for: that is the fault.
            time.sleep(chance.uniform(0.05, 0.7))
            pid = lab.unit_pid("manager" if victim == "manager" else f"agent-n{chance.randint(1, 3)}")
            if pid is not None:
                lab.kill(pid)
                kills += 1
        for item in asked:
            item.result()
    assert kills >= 2, f"only {kills} kills: the work was done too soon"
    took = lab.converged(150.0)
    finish(lab, victim)
    compare(lab, storage)
    figures.note(f"{kills} kills ({victim}) in eleven changes to a pool at once: whole again {took:.1f} s after")
    clear(lab, victim)
    lab.converged(60.0)
    compare(lab, storage)


def test_what_is_put_into_a_pool_by_hand_is_named_by_the_audit(lab: Lab, storage: Storage) -> None:
    """An image of somebody else's, a disk that nobody has, a snapshot of a disk that nobody asked for."""
    disk = str(lab.json("disk", "create", "audited", "--size", "16M", "--type", TYPE)["id"])
    with storage.access("n1") as handle, handle.open_ioctx(storage.pool(TYPE)) as io:
        library = rbd.RBD()
        for name in ("somebodys", "dsk-0000000000000000.0"):
            library.create(io, name, 1 << 20, old_format=False)
        with rbd.Image(io, f"{disk}.0") as image:
            image.create_snap("snp-0000000000000000")
        try:
            found = {finding["key"].split("/")[-1]: finding["message"] for finding in lab.audit()["findings"]}
        finally:
            with rbd.Image(io, f"{disk}.0") as image:
                image.remove_snap("snp-0000000000000000")
            for name in ("somebodys", "dsk-0000000000000000.0"):
                library.remove(io, name)
    assert found.keys() == {"somebodys", "dsk-0000000000000000", "snp-0000000000000000"}
    assert f"pool '{TYPE}'" in found["somebodys"] and "left alone" in found["somebodys"]
    assert "without an owner" in found["dsk-0000000000000000"] and "snapshot" in found["snp-0000000000000000"]
    lab.ok("disk", "delete", "audited", "--now")
    assert lab.audit()["clean"]
