"""Real storage clusters on the lab's nodes: grown, hurt, shrunk and removed, two side by side under one VM.

Objects are written with a node's own key, and read back after everything that is done to the cluster.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import rados
import rbd

from lab.cloud import Guest, Lab, until
from scloud.drivers.ceph import osds
from support.figures import Figures

CLUSTER, POOL, SECOND, SINGLE = "grown", "grown", "beside", "single"
OBJECTS = 60
BOTH_MIB = 8
NODES = ("n1", "n2", "n3")


def device(lab: Lab, node: str, name: str) -> str:
    return f"{node}:{lab.node_root(node)}/osds/{name}.img"


def cluster(lab: Lab, name: str = CLUSTER) -> dict[str, Any]:
    return lab.show("storage-clusters", name)


def conditions(lab: Lab) -> dict[str, str]:
    """Of what is amiss: name and words."""
    found = cluster(lab)["status"]["conditions"]
    return {item["name"]: item["message"] for item in found if item["level"] != "info"}


def clean(lab: Lab, name: str = CLUSTER) -> bool:
    status = cluster(lab, name)["status"]
    states = {state.replace("+scrubbing", "").replace("+deep", "") for state in status["placement_groups"]}
    return status["state"] == "ready" and {"active+clean"} >= states


def healthy(lab: Lab, name: str = CLUSTER) -> bool:
    return clean(lab, name) and all(item["level"] == "info" for item in cluster(lab, name)["status"]["conditions"])


@contextmanager
def access(lab: Lab, node: str, name: str = CLUSTER) -> Iterator[rados.Rados]:
    """As the node itself."""
    folder = lab.node_root(node) / "ceph" / cluster(lab, name)["id"]
    (keyring,) = folder.glob(f"*client.scloud-{node}*")
    options = {"keyring": str(keyring), "client_mount_timeout": "10", "rados_osd_op_timeout": "20"}
    handle = rados.Rados(name=f"client.scloud-{node}", conffile=str(folder / "ceph.conf"), conf=options)
    handle.connect()
    try:
        yield handle
    finally:
        handle.shutdown()


def content(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest() * 4096


def write_all(lab: Lab, name: str = CLUSTER, pool: str = POOL) -> None:
    with access(lab, "n1", name) as handle, handle.open_ioctx(lab.show("pools", pool)["spec"]["rados_name"]) as io:
        for number in range(OBJECTS):
            io.write_full(f"object-{number}", content(number))


def read_all(lab: Lab, node: str = "n2", name: str = CLUSTER, pool: str = POOL) -> None:
    with access(lab, node, name) as handle, handle.open_ioctx(lab.show("pools", pool)["spec"]["rados_name"]) as io:
        for number in range(OBJECTS):
            assert io.read(f"object-{number}", len(content(number))) == content(number), number


def daemons(lab: Lab) -> list[str]:
    return [process["role"] for process in lab.status()["processes"] if process["role"].startswith("ceph-")]


@pytest.fixture(scope="module")
def stored(lab: Lab) -> Iterator[Lab]:
    """A cluster of three nodes with an OSD each, a pool of three copies, and objects in it."""
    asked = [word for node in NODES for word in ("--device", f"{device(lab, node, 'a')}:4G")]
    lab.ok("storage-cluster", "create", CLUSTER, "--nodes", "n1,n2,n3", *asked)
    lab.ok("pool", "create", POOL, "--cluster", CLUSTER)
    until(lambda: healthy(lab), "the new cluster is healthy", 60.0)
    write_all(lab)
    try:
        yield lab
    finally:
        for kind, name in (
            *(("pool", SINGLE), ("pool", POOL)),
            *(("storage-cluster", SECOND), ("storage-cluster", CLUSTER)),
        ):
            if lab.has(f"{kind}s", name):
                lab.ok(kind, "delete", name)


def test_each_node_reaches_its_pools_and_nothing_else(stored: Lab, figures: Figures) -> None:
    (made,) = [
        op
        for op in stored.items("/operations", resource=CLUSTER, all_accounts=True)
        if op["action"] == "storage-cluster.create"
    ]
    figures.note(f"storage cluster of 3 monitors and 3 OSDs: {made['finished_at'] - made['created_at']:.1f} s")
    assert len(cluster(stored)["status"]["monitors_up"]) == 3
    read_all(stored, "n3")
    with access(stored, "n3") as handle:
        code, _, _ = handle.mon_command('{"prefix": "auth ls"}', b"")
        assert code != 0
        code, _, _ = handle.mon_command('{"prefix": "osd pool delete", "pool": "x", "pool2": "x"}', b"")
        assert code != 0
    shown = stored.ok("storage-cluster", "show", CLUSTER)
    assert "3 of 3: " in shown and "host n2" in shown and "active+clean" in shown


def test_a_device_comes_and_goes_while_the_manager_dies(stored: Lab) -> None:
    stored.ok("storage-cluster", "device", "add", CLUSTER, device(stored, "n1", "b"), "--size", "4G")
    until(lambda: healthy(stored), "balanced with the new device", 90.0)
    removing = stored.begin("storage-cluster", "device", "remove", CLUSTER, device(stored, "n1", "b"), "--no-wait")
    assert removing.wait(30) == 0
    pid = stored.unit_pid("manager")
    assert pid is not None
    stored.kill(pid)
    stored.wait_manager()
    gone = until(lambda: len(cluster(stored)["spec"]["devices"]) == 3, "the device is gone", 120.0)
    assert gone and not (stored.node_root("n1") / "osds" / "b.img").exists()
    until(lambda: healthy(stored), "healthy without it", 60.0)
    assert len(cluster(stored)["status"]["osds"]) == 3
    read_all(stored)


def test_what_would_cost_redundancy_is_refused_with_what_would_do(stored: Lab) -> None:
    problem = stored.refused("storage-cluster", "device", "remove", CLUSTER, device(stored, "n2", "a"))
    assert problem["code"] == "conflict" and f"pool '{POOL}' would lose redundancy" in problem["detail"]
    problem = stored.refused("pool", "create", "wide", "--cluster", CLUSTER, "--redundancy", "ec:4+2")
    assert "ec:2+1 over hosts" in problem["detail"]
    problem = stored.refused("pool", "create", "racks", "--cluster", CLUSTER, "--fault-domain", "rack")
    assert "fault domain host" in problem["detail"]
    problem = stored.refused("storage-cluster", "delete", CLUSTER)
    assert problem["users"] == [f"pool {POOL}"]


def test_what_is_in_use_is_not_deleted_and_who_uses_it_is_told(stored: Lab, blank: str) -> None:
    lab = stored
    lab.ok("disk-type", "create", "used", "--pool", POOL)
    lab.ok("disk", "create", "origin", "--size", "16M", "--type", "used")
    lab.ok("snapshot", "create", "s1", "--disk", "origin")
    lab.ok("disk", "create", "clone", "--type", "used", "--from-snapshot", "s1")
    lab.ok("disk", "create", "copy", "--type", "used", "--image", blank)
    lab.ok("vm", "create", "holder", "--image", blank, "--memory", "128M", "--disk", "clone")
    before = images(lab)
    assert len(before) == 4, before
    for words, users in (
        (("pool", "delete", POOL), {"disk-type used", "disk origin", "disk clone", "disk copy"}),
        (("snapshot", "delete", "s1"), {"disk clone"}),
        (("disk", "delete", "origin", "--now"), {"disk clone"}),
        (("image", "delete", blank), {"disk copy", "disk holder-system", "vm holder"}),
        (("disk", "delete", "clone", "--now"), {"vm holder"}),
    ):
        problem = lab.refused(*words)
        assert problem["code"] == "in_use" and set(problem["users"]) == users, problem
        assert all(user.split()[1] in problem["detail"] for user in users), problem
    assert images(lab) == before
    lab.ok("vm", "delete", "holder")
    # What waits in the trash is still in use, and in the way.
    lab.ok("disk", "delete", "copy")
    assert "disk copy (in the trash)" in lab.refused("pool", "delete", POOL)["users"]
    lab.ok("disk", "restore", "copy")
    lab.ok("disk", "delete", "clone", "--now")
    lab.ok("snapshot", "delete", "s1")
    for disk in ("origin", "copy"):
        lab.ok("disk", "delete", disk, "--now")
    lab.ok("disk-type", "delete", "used")
    assert not any(name.startswith("dsk-") for name in images(lab)), before


def images(lab: Lab, node: str = "n3", name: str = CLUSTER, pool: str = POOL) -> set[str]:
    """What the cluster itself says is in the pool."""
    with access(lab, node, name) as handle, handle.open_ioctx(lab.show("pools", pool)["spec"]["rados_name"]) as io:
        return set(rbd.RBD().list(io))


def test_a_device_that_dies_while_it_is_added_is_told_of_and_leaves_nothing(stored: Lab) -> None:
    lab = stored
    file = lab.folder / "dies.img"
    with file.open("wb") as made:
        made.truncate(2 << 30)
    path = subprocess.run(
        ["losetup", "--find", "--show", str(file)], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        adding = lab.begin("storage-cluster", "device", "add", CLUSTER, f"n1:{path}")
        until(lambda: osds.owner(file) is not None, "the OSD is being made", 60.0, 0.01)
        with file.open("r+b") as made:
            made.truncate(0)
        out, err = adding.communicate(timeout=90)
        assert adding.returncode != 0 and path in err and "device remove" in err, (out, err)
        lab.ok("storage-cluster", "device", "remove", CLUSTER, f"n1:{path}", timeout=120.0)
    finally:
        subprocess.run(["losetup", "--detach", path], check=False)
        file.unlink()
    until(lambda: healthy(lab), "healthy without it", 60.0)
    assert len(cluster(lab)["spec"]["devices"]) == len(cluster(lab)["status"]["osds"]) == 3
    assert len([name for name in daemons(lab) if "osd" in name]) == 3
    folder = lab.node_root("n1") / "ceph" / cluster(lab)["id"]
    assert len(list(folder.glob("osd.*"))) == 1, list(folder.glob("*"))
    assert lab.audit()["clean"]
    read_all(lab)


def test_copies_are_kept_in_different_racks_by_the_nodes_labels(stored: Lab) -> None:
    lab = stored
    for number, node in enumerate(NODES, 1):
        lab.ok("node", "label", node, f"rack=r{number}", "datacenter=d1")
    places = {
        "n1": {"datacenter": "d1", "rack": "r1", "host": "n1"},
        "n2": {"datacenter": "d1", "rack": "r2", "host": "n2"},
        "n3": {"datacenter": "d1", "rack": "r3", "host": "n3"},
    }
    until(
        lambda: {osd["node"]: osd["place"] for osd in cluster(lab)["status"]["osds"]} == places,
        "the tree is as the labels say",
        30.0,
    )
    shown = lab.ok("storage-cluster", "show", CLUSTER)
    assert "datacenter d1" in shown and "rack r2" in shown
    lab.ok("pool", "create", "racks", "--cluster", CLUSTER, "--fault-domain", "rack")
    with access(lab, "n1") as handle:
        code, out, words = handle.mon_command('{"prefix": "osd crush rule dump", "format": "json"}', b"")
    assert code == 0, words
    steps = [step for rule in json.loads(out) if "rack" in rule["rule_name"] for step in rule["steps"]]
    assert [step["type"] for step in steps if "type" in step] == ["rack"], out
    problem = lab.refused("pool", "create", "sites", "--cluster", CLUSTER, "--fault-domain", "datacenter")
    assert "datacenter" in problem["detail"] and "fault domain rack" in problem["detail"]
    problem = lab.refused("node", "label", "n3", "rack=r2")
    assert problem["code"] == "conflict" and "pool 'racks'" in problem["detail"]
    until(lambda: healthy(lab), "healthy in racks", 60.0)
    lab.ok("pool", "delete", "racks")
    read_all(lab)


def test_a_dead_osd_is_named_in_words_and_comes_back(stored: Lab) -> None:
    stored.ok("storage-cluster", "maintenance", "on", CLUSTER, "n3")
    until(lambda: "n3" in str(cluster(stored)["status"]["conditions"]), "maintenance is shown", 30.0)
    stored.ok("storage-cluster", "maintenance", "off", CLUSTER, "n3")
    (pid,) = stored.pids("ceph-osd", "n3")
    agent = stored.unit_pid("agent-n3")
    assert agent is not None
    stored.kill(agent)
    stored.kill(pid)
    read_all(stored)
    until(lambda: healthy(stored), "the OSD is back", 90.0)
    read_all(stored)


def test_a_device_is_replaced(stored: Lab) -> None:
    before = {osd["uuid"] for osd in cluster(stored)["status"]["osds"]}
    stored.ok("storage-cluster", "device", "replace", CLUSTER, device(stored, "n2", "a"))
    until(lambda: healthy(stored), "whole again on the new device", 120.0)
    after = {osd["uuid"] for osd in cluster(stored)["status"]["osds"]}
    assert len(after) == 3 and len(after - before) == 1
    read_all(stored)


@pytest.mark.long
def test_a_dead_device_is_replaced_though_its_data_find_no_room(stored: Lab) -> None:
    """All that its host has a copy of can only go to a neighbour, on which it does not fit."""
    big, mib = 360, 4
    stored.ok("storage-cluster", "device", "add", CLUSTER, device(stored, "n2", "small"), "--size", "1G")
    until(lambda: healthy(stored), "balanced with the small device", 120.0)
    pool = stored.show("pools", POOL)["spec"]["rados_name"]
    with access(stored, "n1") as handle, handle.open_ioctx(pool) as io:
        for number in range(big):
            io.write_full(f"big-{number}", content(number) * (mib * 8))
    path = stored.node_root("n2") / "osds" / "a.img"
    osds_of = {one["uuid"]: one for one in cluster(stored)["spec"]["devices"]}
    (old,) = [uuid for uuid, one in osds_of.items() if one["path"] == str(path)]
    aside = path.rename(path.with_suffix(".dead"))

    def dead() -> bool:
        """Without its device it does not come back."""
        (osd,) = [one for one in cluster(stored)["status"]["osds"] if one["uuid"] == old]
        return not osd["up"]

    for pid in stored.pids("ceph-osd", "n2"):
        stored.kill(pid)
    until(dead, "the device is dead", 60.0)
    stored.ok("storage-cluster", "device", "replace", CLUSTER, device(stored, "n2", "a"))
    until(lambda: healthy(stored), "whole again on the new device", 400.0)
    assert old not in {osd["uuid"] for osd in cluster(stored)["status"]["osds"]}
    events = stored.items("/events", resource=cluster(stored)["id"], all_accounts=True)
    said = [event["message"] for event in events]
    assert any("can be done without, and cannot be drained" in words for words in said), said
    read_all(stored)
    with access(stored, "n3") as handle, handle.open_ioctx(pool) as io:
        for number in range(big):
            assert io.read(f"big-{number}", mib << 20) == content(number) * (mib * 8), number
            io.remove_object(f"big-{number}")
    aside.unlink()
    stored.ok("storage-cluster", "device", "remove", CLUSTER, device(stored, "n2", "small"))
    until(lambda: healthy(stored), "as before", 120.0)


@pytest.fixture(scope="module")
def beside(stored: Lab) -> Lab:
    """With a second cluster beside the first: of one node, with one OSD."""
    stored.ok("storage-cluster", "create", SECOND, "--nodes", "n1", "--device", f"{device(stored, 'n1', 'z')}:4G:hdd")
    return stored


def test_a_vm_has_disks_in_both_of_two_clusters(beside: Lab) -> None:
    """Its system disk is in the first, another in the second: written from the guest, read back in the guest past its
    cache, also after it has been started anew, and from the second cluster itself."""
    lab = beside
    lab.ok("pool", "create", SINGLE, "--cluster", SECOND, "--redundancy", "replica:1")
    thin = until(lambda: lab.show("pools", SINGLE)["status"]["conditions"], "a warning", 30.0)
    assert [one["level"] for one in thin] == ["warning"] and "one copy of everything" in thin[0]["message"], thin
    for disk_type, pool in (("first", POOL), ("second", SINGLE)):
        lab.ok("disk-type", "create", disk_type, "--pool", pool)
    guest = lab.create("both", "--node", "n1", "--disk-type", "first")
    disk = lab.json("disk", "create", "other", "--size", "64M", "--type", "second")["id"]
    lab.ok("disk", "attach", "other", "both")
    (system,) = [one["id"] for one in lab.items("/disks", vm=guest.id) if one["spec"]["system"]]
    placed = (images(lab), images(lab, "n1", SECOND, SINGLE))
    where = {one: [any(name.startswith(one) for name in names) for names in placed] for one in (system, disk)}
    assert where == {system: [True, False], disk: [False, True]}, placed
    device_name = guest.device_of("other")
    wanted = guest.run(
        f"dd if=/dev/urandom of=/root/kept bs=1M count={BOTH_MIB} 2>/dev/null; sync; "
        f"dd if=/root/kept of=/dev/{device_name} bs=1M oflag=direct conv=fsync 2>/dev/null; sha256sum < /root/kept"
    )
    assert _both(guest, device_name) == [wanted, wanted]
    with (
        access(lab, "n1", SECOND) as handle,
        handle.open_ioctx(lab.show("pools", SINGLE)["spec"]["rados_name"]) as io,
        rbd.Image(io, next(name for name in placed[1] if name.startswith(disk)), read_only=True) as image,
    ):
        assert hashlib.sha256(image.read(0, BOTH_MIB << 20)).hexdigest() == wanted.split()[0]
    lab.ok("vm", "stop", "both")
    guest.forget()
    lab.ok("vm", "start", "both")
    guest.wait_boot()
    assert _both(guest, guest.device_of("other")) == [wanted, wanted]
    lab.ok("disk", "detach", "other")
    serials = "cat /sys/block/vd*/serial"
    until(lambda: disk[-20:] not in guest.run(serials), "it is gone from the guest", 20.0)
    assert system[-20:] in guest.run(serials)
    assert guest.run("echo 3 > /proc/sys/vm/drop_caches; sha256sum < /root/kept") == wanted
    guest.forget()
    lab.ok("vm", "delete", "both")
    lab.ok("disk", "delete", "other", "--now")
    lab.ok("disk-type", "delete", "first", "second")
    lab.ok("pool", "delete", SINGLE)
    until(lambda: healthy(lab, SECOND), "the second cluster is as before", 30.0)


def _both(guest: Guest, other: str) -> list[str]:
    """Checksums of what is on both disks, past the guest's cache."""
    read = f"dd if=/dev/{other} bs=1M count={BOTH_MIB} iflag=direct 2>/dev/null | sha256sum"
    return guest.run(f"echo 3 > /proc/sys/vm/drop_caches; sha256sum < /root/kept; {read}").splitlines()


def test_two_clusters_side_by_side_and_nothing_is_left_of_them(beside: Lab) -> None:
    stored = beside
    assert len(daemons(stored)) == 8 + 3
    assert stored.audit()["clean"]
    # It moves to another node, with its only monitor and all that is in it.
    stored.ok("pool", "create", SINGLE, "--cluster", SECOND, "--redundancy", "replica:1")
    write_all(stored, SECOND, SINGLE)
    stored.ok("storage-cluster", "node", "add", SECOND, "n2")
    stored.ok("storage-cluster", "device", "add", SECOND, device(stored, "n2", "z"), "--size", "4G", "--media", "hdd")
    stored.ok("storage-cluster", "node", "remove", SECOND, "n1", timeout=120.0)
    until(lambda: clean(stored, SECOND), "all is on the other node", 60.0)
    status = cluster(stored, SECOND)["status"]
    assert status["monitors_up"] == ["n2"] and [osd["node"] for osd in status["osds"]] == ["n2"]
    until(lambda: len(daemons(stored)) == 8 + 3, "nothing of it is left on the first", 30.0)
    read_all(stored, "n2", SECOND, SINGLE)
    stored.ok("pool", "delete", SINGLE)
    stored.ok("storage-cluster", "delete", SECOND)
    assert len(daemons(stored)) == 8
    read_all(stored)
    stored.ok("pool", "delete", POOL)
    stored.ok("storage-cluster", "delete", CLUSTER)
    assert daemons(stored) == []
    for node in NODES:
        root = stored.node_root(node)
        assert list((root / "osds").glob("*")) == []
        assert list((root / "ceph").glob("*")) == []
    assert stored.audit()["clean"]
