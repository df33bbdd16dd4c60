"""Storage clusters, pools and disk types: what requests put into the database, and what is refused."""

from __future__ import annotations

from typing import Any

from scloud.model.desired import DesiredStore
from support.cloud import Cloud


def store_of(node: Any, cluster: str) -> DesiredStore:
    item = node.objects[f"store/{cluster}.{node.id}"]
    assert isinstance(item, DesiredStore)
    return item


def devices(*names: str, count: int = 1) -> list[dict[str, Any]]:
    return [{"node": name, "path": f"/osd/{number}.img", "size_mib": 1024} for name in names for number in range(count)]


async def test_three_nodes_get_three_monitors_two_managers_and_their_devices(cloud: Cloud) -> None:
    nodes = [await cloud.node(f"n{number}") for number in (1, 2, 3, 4)]
    spec = {"nodes": ["n1", "n2", "n3", "n4"], "devices": devices("n1", "n2", "n3", "n4", count=2)}
    made = await cloud.admin.do("POST", "/storage-clusters", {"name": "c1", "spec": spec})
    id = made["resource"]["id"]
    assert made["resource"]["status"]["state"] == "creating"
    for node in nodes:
        await node.until(lambda node=node: f"store/{id}.{node.id}" in node.objects)  # type: ignore[misc]
    first, *_, last = (store_of(node, id) for node in nodes)
    assert [daemon.type for daemon in first.daemons] == ["mon", "mgr", "osd", "osd"]
    assert [daemon.type for daemon in last.daemons] == ["osd", "osd"]
    assert [name for name, _ in first.initial_monitors] == ["n1", "n2", "n3"]
    assert first.mon_key and first.admin_key and first.bootstrap_key
    assert last.bootstrap_key and not last.mon_key and not last.admin_key
    assert not last.client_key and last.client == "scloud-n4"
    assert len({daemon.key for node in nodes for daemon in store_of(node, id).daemons if daemon.type == "osd"}) == 8
    shown = (await cloud.admin.ask("GET", f"/storage-clusters/{id}")).text + str(cloud.rows("operation"))
    for row in cloud.rows("secret", owner=id):
        if len(row["value"]) > 20:
            assert row["value"].rpartition(":")[2] not in shown, row["name"]


async def test_clusters_side_by_side_have_ports_and_devices_of_their_own(cloud: Cloud) -> None:
    await cloud.node("n1")
    for name in ("a", "b"):
        asked = {"devices": [{"node": "n1", "path": f"/osd/{name}", "size_mib": 1024}]}
        await cloud.admin.do("POST", "/storage-clusters", {"name": name, "spec": asked})
    first, second = await cloud.admin.list("/storage-clusters")
    assert first["spec"]["first_port"] + 256 == second["spec"]["first_port"]
    asked = {"devices": [{"node": "n1", "path": "/osd/b", "size_mib": 1024}]}
    problem = await cloud.admin.fail(
        "POST", "/storage-clusters", {"name": "c", "spec": asked}, status=422, code="invalid"
    )
    assert problem["fields"][0]["field"] == "spec.devices.0.path" and "cluster 'b' has" in problem["detail"]


async def test_what_makes_no_cluster_is_refused_and_changes_nothing(cloud: Cloud) -> None:
    await cloud.node("n1")
    await cloud.node("n2", connect=False)
    before = cloud.dump()
    for spec, status, said in (
        ({"nodes": ["n1", "n1"]}, 422, "a second time"),
        ({"nodes": ["n9"]}, 422, "names no node"),
        ({"nodes": ["n1", "n2"]}, 409, "n2"),
        ({"nodes": ["n1"], "devices": devices("n2")}, 422, "must be a node of this cluster (n1)"),
        ({"nodes": ["n1"], "devices": [*devices("n1"), *devices("n1")]}, 422, "already"),
        ({"nodes": ["n1"], "devices": [{"node": "n1", "path": "relative"}]}, 422, "absolute path"),
        ({"nodes": ["n1"], "conf": "x", "keyring": "y"}, 422, "mode adopted"),
        ({"mode": "adopted", "conf": "[global]\nfsid = x", "keyring": ""}, 422, "fsid"),
    ):
        answer = await cloud.admin.ask("POST", "/storage-clusters", json={"name": "c", "spec": spec})
        assert answer.status_code == status and said in answer.text, answer.text
    assert cloud.dump() == before


async def test_tenants_see_disk_types_and_nothing_behind_them(cloud: Cloud) -> None:
    await cloud.admin.create("disk-types", "standard")
    (seen,) = await cloud.alice.list("/disk-types")
    assert (seen["name"], seen["spec"]) == ("standard", {})
    assert (await cloud.admin.get("/disk-types/standard"))["spec"] == {"pool": None}
    for path in ("/storage-clusters", "/pools"):
        await cloud.alice.fail("GET", path, status=403, code="forbidden")
    await cloud.alice.fail("POST", "/disk-types", {"name": "mine", "spec": {}}, status=403, code="forbidden")
    await cloud.admin.end("PATCH", "/disk-types/standard", {"name": "plain"})
    await cloud.admin.end("DELETE", "/disk-types/plain")
    assert await cloud.alice.list("/disk-types") == []


async def test_a_node_in_a_storage_cluster_is_not_removed_by_mistake(cloud: Cloud) -> None:
    node = await cloud.node("n1")
    await cloud.node("n2")
    await cloud.admin.do("POST", "/storage-clusters", {"name": "c", "spec": {"devices": devices("n1", "n2")}})
    problem = await cloud.admin.fail("DELETE", "/nodes/n1", status=409, code="in_use")
    assert problem["users"] == ["storage-cluster c"]
    await cloud.admin.fail("DELETE", "/nodes/n1?force=true", status=409, code="conflict")
    await cloud.lose(node)
    await cloud.admin.end("DELETE", "/nodes/n1?force=true")
    spec = (await cloud.admin.get("/storage-clusters/c"))["spec"]
    assert [device["drained"] for device in spec["devices"]] == [True, False]
    assert len(spec["nodes"]) == 1 and spec["nodes"] == spec["monitors"] == spec["managers"]


async def test_labels_make_the_tree_and_must_fit_it(cloud: Cloud) -> None:
    node = await cloud.node("n1")
    await cloud.node("n2")
    made = await cloud.admin.do("POST", "/storage-clusters", {"name": "c", "spec": {"devices": devices("n1", "n2")}})
    id = made["resource"]["id"]
    await cloud.admin.end("PATCH", "/nodes/n1", {"spec": {"labels": {"rack": "r1", "datacenter": "d1"}}})
    key = f"store/{id}.{node.id}"
    await node.until(lambda: key in node.objects and "rack" in store_of(node, id).daemons[-1].crush)  # type: ignore[union-attr]
    crush = store_of(node, id).daemons[-1].crush  # type: ignore[union-attr]
    assert crush == {"root": "default", "datacenter": "d1", "rack": "r1", "host": "n1"}
    for labels, said in (({"rack": "r1", "datacenter": "d2"}, "two datacenters"), ({"rack": "n1"}, "name of a")):
        problem = await cloud.admin.fail(
            "PATCH", "/nodes/n2", {"spec": {"labels": labels}}, status=409, code="conflict"
        )
        assert said in problem["detail"]
