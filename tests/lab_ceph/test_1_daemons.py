"""Storage daemons in a lab: where they are, how they come back, and what an agent that is killed leaves of them."""

from __future__ import annotations

import time
from pathlib import Path

from lab.cloud import Lab
from lab_ceph.storage import Storage


def test_three_monitors_and_two_osds_a_node(lab: Lab, storage: Storage) -> None:
    daemons = storage.daemons()
    nodes = {name: node for name, (node, _) in daemons.items()}
    assert {name: node for name, node in nodes.items() if name.startswith("mon.")} == {
        f"mon.n{number}": f"n{number}" for number in (1, 2, 3)
    }
    osds = [node for name, node in nodes.items() if name.startswith("osd.")]
    assert sorted(osds) == ["n1", "n1", "n2", "n2", "n3", "n3"]
    assert sum(name.startswith("mgr.") for name in nodes) == 2
    storage.healthy()
    shown = storage.show()
    assert sorted(osd["node"] for osd in shown["status"]["osds"]) == sorted(osds)
    assert shown["status"]["placement_groups"].keys() == {"active+clean"}
    assert lab.show("pools", "standard")["status"]["state"] == "ready"
    assert lab.has("disk-types", "standard")
    again = lab.ok("lab", "up", "--nodes", "3", "--ceph")
    assert "Nothing to do" in again
    assert storage.daemons() == daemons


def test_an_agent_that_is_killed_leaves_them_alone(lab: Lab, storage: Storage) -> None:
    before = storage.daemons()
    pids = [lab.unit_pid(f"agent-n{number}") for number in (1, 2, 3)]
    for pid in pids:
        assert pid is not None
        lab.kill(pid)
    lab.wait_manager()
    storage.healthy()
    assert storage.daemons() == before


def test_one_of_each_kind_that_is_killed_comes_back(lab: Lab, storage: Storage) -> None:
    for name, (_, pid) in sorted({name[:3]: (name, found) for name, found in storage.daemons().items()}.values()):
        assert str(pid) in lab.ok("lab", "fail", name, "--how", "kill")
        took = storage.returned(name, pid)
        assert took < 30.0, f"{name} took {took:.1f} s"
    storage.healthy()


def test_an_agent_killed_again_and_again_while_an_osd_is_made_and_given_back(lab: Lab, storage: Storage) -> None:
    path = lab.node_root("n1") / "osds" / "osd-3.img"
    before = {osd["osd"] for osd in storage.show()["status"]["osds"]}
    ask = {"node": "n1", "path": str(path), "size_mib": 4096}
    operation = lab.client.post("/storage-clusters/ceph/actions/device-add", ask)["operation"]["id"]
    _kill_agent(lab, "n1", 5, 0.7)
    lab.client.finish(operation, timeout=120.0)
    storage.healthy(osds=7)
    (added,) = {osd["osd"] for osd in storage.show()["status"]["osds"]} - before
    assert storage.daemons()[f"osd.{added}"][0] == "n1" and path.exists()

    ask = {"device": f"osd.{added}"}
    operation = lab.client.post("/storage-clusters/ceph/actions/device-remove", ask)["operation"]["id"]
    _kill_agent(lab, "n1", 3, 1.5)
    lab.client.finish(operation, timeout=200.0)
    storage.healthy(osds=6)
    assert f"osd.{added}" not in storage.daemons()
    assert not path.exists()
    left = [folder.name for folder in (lab.node_root("n1") / "ceph").glob("*/osd.*")]
    assert len(left) == 2, left


def _kill_agent(lab: Lab, node: str, times: int, every_s: float) -> None:
    for _ in range(times):
        # A moment is chosen, not waited for: that is the fault.
        time.sleep(every_s)
        pid = lab.unit_pid(f"agent-{node}")
        if pid is not None:
            lab.kill(pid)


def test_nothing_of_it_is_left(lab: Lab, storage: Storage) -> None:
    audit = lab.audit()
    assert audit["clean"], audit["findings"]
    for node in ("n1", "n2", "n3"):
        keyrings = [path for path in Path(lab.node_root(node)).rglob("*keyring*") if path.is_file()]
        assert keyrings and all(path.stat().st_mode & 0o077 == 0 for path in keyrings)
