"""Disks of a pool: made at once, served by one node at a time, attached to any VM in turn."""

from __future__ import annotations

from typing import Any

from scloud.model.desired import DesiredDisk, key_of
from scloud.model.observed import Observed
from scloud.store import operations
from support.cloud import Cloud
from support.node import ScriptedNode
from support.pools import close_pool, make_pool


async def pool_of(cloud: Cloud, *names: str) -> str:
    """Nodes of these names, and a pool that they reach with the disk type `standard`."""
    ids = [(await cloud.node(name)).id for name in names]
    await cloud.image()
    return await cloud.store.write(lambda tx: make_pool(tx, ids))


def told(cloud: Cloud, disk: str) -> list[str]:
    """The nodes that are told of a disk."""
    return [node.name for node in cloud.nodes.values() if f"disk/{disk}" in node.objects]


def provisioned(cloud: Cloud, holder: str) -> int:
    return sum(row["disk_mib"] for row in cloud.rows("node_usage", node=holder))


def of(node: ScriptedNode, disk: str) -> DesiredDisk:
    item = node.objects[f"disk/{disk}"]
    assert isinstance(item, DesiredDisk)
    return item


async def test_it_is_made_at_once_and_counts_against_its_pool(cloud: Cloud) -> None:
    pool = await pool_of(cloud, "n1")
    disk = await cloud.alice.create("disks", "data", size_mib=100, type="standard")
    assert (disk["spec"]["type"], disk["spec"]["pool"], disk["status"]["state"]) == ("standard", pool, "ready")
    assert of(cloud.nodes["n1"], disk["id"]).pool == pool
    assert (provisioned(cloud, pool), provisioned(cloud, cloud.nodes["n1"].id)) == (100, 0)
    await cloud.alice.end("POST", "/disks/data/actions/resize", {"size_mib": 150})
    assert provisioned(cloud, pool) == 150
    await cloud.alice.create("disks", "clone", image="micro", type="standard")
    await cloud.store.write(lambda tx: close_pool(tx, pool, "pool p-standard is 91 % full; add devices"))
    await cloud.alice.end("POST", "/disks/data/actions/flatten", {})  # depends on nothing, and grows by nothing
    for path, body in (
        ("/disks", {"name": "more", "spec": {"size_mib": 1, "type": "standard"}}),
        ("/disks/data/actions/resize", {"size_mib": 151}),
        ("/disks/clone/actions/flatten", {}),
        ("/vms", {"name": "a", "spec": {"image": "micro", "disk_type": "standard"}}),
    ):
        before = cloud.dump()
        problem = await cloud.alice.fail("POST", path, body, status=409, code="no_capacity")
        assert "91 % full" in problem["detail"]
        assert cloud.dump() == before
    for name in ("data", "clone"):
        await cloud.alice.end("DELETE", f"/disks/{name}?now=true")
    node = cloud.nodes["n1"]
    await node.until(lambda: not node.objects.keys() & {f"disk/{disk['id']}"})
    assert provisioned(cloud, pool) == 0 and not node.existing


async def test_a_pool_that_has_disks_is_not_deleted(cloud: Cloud) -> None:
    await pool_of(cloud, "n1")
    await cloud.alice.create("disks", "data", size_mib=10, type="standard")
    await cloud.alice.create("vms", "a", image="micro", disk_type="standard")
    await cloud.alice.end("DELETE", "/disks/data")
    await cloud.admin.end("DELETE", "/disk-types/standard")
    used = await cloud.admin.fail("DELETE", "/pools/p-standard", status=409, code="in_use")
    assert used["users"] == ["disk data (in the trash)", "disk a-system"]


async def test_a_data_disk_can_begin_with_an_images_bytes(cloud: Cloud) -> None:
    await pool_of(cloud, "n1")
    image = await cloud.image("mine", account=cloud.alice.account, size_mib=50)
    disk = await cloud.alice.create("disks", "data", type="standard", image="mine")
    assert (disk["spec"]["size_mib"], disk["spec"]["image"], disk["spec"]["vm"]) == (50, image, None)
    wish = of(cloud.nodes["n1"], disk["id"])
    assert (wish.image, wish.size_mib) == (image, 50) and wish.image_sha256 is not None
    problem = await cloud.alice.fail("DELETE", "/images/mine", status=409, code="in_use")
    assert problem["users"] == ["disk data"]
    for spec, words in (
        ({"image": "mine", "size_mib": 49, "type": "standard"}, "at least the image's 50 MiB"),
        ({"image": "nobody", "type": "standard"}, "names no image"),
        ({"type": "standard"}, "is required unless"),
    ):
        problem = await cloud.alice.fail("POST", "/disks", {"name": "more", "spec": spec}, status=422, code="invalid")
        assert words in str(problem)
    local = await cloud.alice.create("disks", "local", image="mine", size_mib=60)
    assert local["status"]["node"] is None
    await cloud.alice.create("vms", "v", image="micro")
    await cloud.alice.end("POST", "/disks/local/actions/attach", {"vm": "v"})
    assert of(cloud.nodes["n1"], local["id"]).image == image


async def test_an_unknown_disk_type_is_named(cloud: Cloud) -> None:
    body = {"name": "x", "spec": {"size_mib": 1, "type": "golden"}}
    problem = await cloud.alice.fail("POST", "/disks", body, status=422, code="invalid")
    assert problem["fields"][0]["field"] == "spec.type"


async def test_it_goes_to_any_vm_in_turn_and_is_told_to_one_node_at_a_time(cloud: Cloud) -> None:
    await pool_of(cloud, "n1", "n2")
    disk = (await cloud.alice.create("disks", "data", size_mib=100, type="standard"))["id"]
    for turn in range(4):
        node = f"n{turn % 2 + 1}"
        await cloud.alice.create("vms", f"v{turn}", image="micro", node=node)
        await cloud.alice.end("POST", "/disks/data/actions/attach", {"vm": f"v{turn}"})
        assert told(cloud, disk) == [node]
        await cloud.alice.end("POST", "/disks/data/actions/detach")
    await cloud.alice.create("vms", "w", image="micro", node="n1", disks=["data"])
    assert told(cloud, disk) == ["n1"]


async def test_no_other_node_is_told_until_the_one_that_has_it_open_lets_go(cloud: Cloud) -> None:
    await pool_of(cloud, "n1", "n2")
    disk = (await cloud.alice.create("disks", "data", size_mib=100, type="standard"))["id"]
    await cloud.alice.create("vms", "a", image="micro", node="n1")
    await cloud.alice.create("vms", "b", image="micro", node="n2")
    await cloud.alice.end("POST", "/disks/data/actions/attach", {"vm": "a"})
    one = cloud.nodes["n1"]
    busy = Observed(key=f"disk/{disk}", generation=99, state="ready", settled=False, reason="being detached from a")
    one.override[f"disk/{disk}"] = busy
    await cloud.alice.end("POST", "/disks/data/actions/detach")
    asked = await cloud.alice.do("POST", "/disks/data/actions/attach", {"vm": "b"})
    row = await cloud.alice.get("/disks/data")
    assert told(cloud, disk) == ["n1"] and "waiting for node n1" in row["status"]["reason"]
    await cloud.lose(one)
    await cloud.until(cloud.admin, "/nodes/n1", "down")
    assert (await cloud.alice.get("/disks/data"))["status"]["node"] == "n1"  # its VM may still be writing there
    del one.override[f"disk/{disk}"]
    await one.start()
    await cloud.alice.wait(asked)
    await cloud.until(cloud.alice, "/disks/data", "ready")
    assert (await cloud.alice.get("/disks/data"))["status"]["node"] == "n2"
    await one.until(lambda: f"disk/{disk}" not in one.objects)


async def test_another_node_serves_it_when_its_own_is_gone(cloud: Cloud) -> None:
    await pool_of(cloud, "n1", "n2")
    disk = (await cloud.alice.create("disks", "data", size_mib=100, type="standard"))["id"]
    (first,) = told(cloud, disk)
    other = cloud.nodes["n2" if first == "n1" else "n1"]
    await cloud.lose(cloud.nodes[first])
    await other.until(lambda: f"disk/{disk}" in other.objects)
    await cloud.alice.end("POST", "/disks/data/actions/resize", {"size_mib": 200})
    await cloud.alice.end("DELETE", "/disks/data?now=true")
    await cloud.nodes[first].start()
    await cloud.nodes[first].until(lambda: f"disk/{disk}" not in cloud.nodes[first].objects)


async def test_a_disk_asked_for_while_no_node_is_ready_is_made_when_one_is(cloud: Cloud) -> None:
    await pool_of(cloud, "n1")
    node = cloud.nodes["n1"]
    await cloud.lose(node)
    await cloud.until(cloud.admin, "/nodes/n1", "down")
    made = await cloud.alice.do("POST", "/disks", {"name": "data", "spec": {"size_mib": 10, "type": "standard"}})
    assert "no node of its storage cluster is ready" in made["resource"]["status"]["reason"]
    await cloud.alice.do("POST", "/disks", {"name": "never", "spec": {"size_mib": 10, "type": "standard"}})
    await cloud.alice.end("DELETE", "/disks/never")  # nothing was ever made
    await cloud.restart_manager()
    await node.start()
    await cloud.alice.wait(made)


async def test_a_vm_on_a_pool_is_placed_on_its_nodes_only_and_is_not_pinned(cloud: Cloud) -> None:
    pool = await pool_of(cloud, "n1", "n2")
    await cloud.node("n3")
    vms = [await cloud.alice.create("vms", f"v{n}", image="micro", disk_type="standard") for n in range(4)]
    assert {vm["status"]["node"] for vm in vms} == {"n1", "n2"}
    assert provisioned(cloud, pool) == 40
    spec = {"image": "micro", "disk_type": "standard", "node": "n3"}
    op = await cloud.alice.end("POST", "/vms", {"name": "far", "spec": spec}, state="failed")
    assert "storage cluster" in op["message"]
    answer = await cloud.alice.ask("POST", "/vms?dry_run=true", json={"name": "x", "spec": {**spec, "node": None}})
    reasons = {item["node"]: item["fits"] for item in answer.json()["candidates"]}
    assert reasons == {"n1": True, "n2": True, "n3": False}
    await cloud.alice.end("DELETE", "/vms/far")
    assert provisioned(cloud, pool) == 40
    await cloud.alice.create("disks", "data", size_mib=10, type="standard")
    await cloud.alice.create("vms", "plain", image="micro", node="n3")
    body = {"vm": "plain"}
    problem = await cloud.alice.fail("POST", "/disks/data/actions/attach", body, status=409, code="conflict")
    assert "n3" in problem["detail"]


async def test_a_lost_nodes_vms_start_elsewhere_with_their_disks(cloud: Cloud) -> None:
    await pool_of(cloud, "n1", "n2")
    vm = await cloud.alice.create("vms", "a", image="micro", disk_type="standard", node=None)
    disk = f"disk/{(await cloud.alice.get('/disks/a-system'))['id']}"
    lost = cloud.nodes[vm["status"]["node"]]
    other = cloud.nodes["n2" if lost.name == "n1" else "n1"]
    await cloud.lose(lost)
    await cloud.until(cloud.admin, f"/nodes/{lost.name}", "down")
    await cloud.admin.end("DELETE", f"/nodes/{lost.name}?force=true")
    assert "runs on another node" in (await cloud.alice.get("/vms/a"))["status"]["reason"]
    await cloud.alice.end("POST", "/vms/a/actions/start")
    assert disk in other.objects and (await cloud.alice.get("/vms/a"))["status"]["node"] == other.name


async def test_a_node_that_leaves_hands_on_what_it_only_serves(cloud: Cloud) -> None:
    await pool_of(cloud, "n1", "n2")
    disk = (await cloud.alice.create("disks", "data", size_mib=100, type="standard"))["id"]
    (first,) = told(cloud, disk)
    other = cloud.nodes["n2" if first == "n1" else "n1"]
    await cloud.admin.end("DELETE", f"/nodes/{first}")
    await other.until(lambda: f"disk/{disk}" in other.objects)
    assert (await cloud.alice.get("/disks/data"))["status"]["node"] == other.name


# --- the trash


async def test_a_deleted_disk_waits_in_the_trash_and_can_be_had_back(cloud: Cloud) -> None:
    pool = await pool_of(cloud, "n1")
    disk = (await cloud.alice.create("disks", "data", size_mib=100, type="standard"))["id"]
    await cloud.alice.end("DELETE", "/disks/data")
    assert await cloud.alice.list("/disks") == []
    (kept,) = await cloud.alice.list("/disks", state="trashed")
    assert kept["spec"]["former_name"] == "data" and kept["id"] == disk
    assert told(cloud, disk) == ["n1"] and provisioned(cloud, pool) == 100
    await cloud.alice.create("disks", "data", size_mib=1, type="standard")  # the name is free
    taken = await cloud.alice.fail("POST", f"/disks/{disk}/actions/restore", {}, status=409, code="conflict")
    assert "choose another name" in taken["detail"]
    for action, body in (("attach", {"vm": "a"}), ("resize", {"size_mib": 200}), ("flatten", None)):
        path = f"/disks/{disk}/actions/{action}"
        problem = await cloud.alice.fail("POST", path, body, status=409, code="conflict")
        assert "in the trash" in problem["detail"]
    await cloud.alice.end("POST", "/disks/data/actions/restore", {"name": "again"})
    back = await cloud.alice.get("/disks/again")
    assert (back["id"], back["status"]["state"], back["spec"]["purge_at"]) == (disk, "ready", None)


async def test_the_trash_is_emptied_when_its_time_is_up_whoever_the_manager_is(cloud: Cloud) -> None:
    pool = await pool_of(cloud, "n1")
    disk = (await cloud.alice.create("disks", "data", size_mib=100, type="standard"))["id"]
    await cloud.alice.end("DELETE", "/disks/data")
    await cloud.restart()
    assert cloud.rows("resource", id=disk)
    cloud.clock.advance(24 * 3600 + 1)
    await cloud.restart()
    await cloud.until_gone(disk)
    assert provisioned(cloud, pool) == 0 and f"disk/{disk}" not in cloud.nodes["n1"].existing


async def test_several_of_one_name_are_told_apart_by_id(cloud: Cloud) -> None:
    await pool_of(cloud, "n1")
    ids = []
    for _ in range(2):
        ids.append((await cloud.alice.create("disks", "data", size_mib=1, type="standard"))["id"])
        await cloud.alice.end("DELETE", "/disks/data")
    problem = await cloud.alice.fail("POST", "/disks/data/actions/restore", {}, status=409, code="conflict")
    assert all(id in problem["detail"] for id in ids)
    await cloud.alice.end("POST", f"/disks/{ids[0]}/actions/restore", {})
    await cloud.alice.end("DELETE", f"/disks/{ids[1]}?now=true")
    assert not cloud.rows("resource", id=ids[1])
    await cloud.alice.fail("POST", "/disks/other/actions/restore", {}, status=404, code="not_found")


async def test_a_vms_system_disk_is_kept_only_if_asked(cloud: Cloud) -> None:
    await pool_of(cloud, "n1")
    for name in ("a", "b"):
        await cloud.alice.create("vms", name, image="micro", disk_type="standard")
    await cloud.alice.end("DELETE", "/vms/a?keep_disks=true")
    await cloud.alice.end("DELETE", "/vms/b")
    (kept,) = await cloud.alice.list("/disks", state="trashed")
    assert kept["spec"]["former_name"] == "a-system" and not kept["spec"]["system"]
    await cloud.alice.end("POST", "/disks/a-system/actions/restore", {})
    await cloud.alice.create("vms", "c", image="micro", disks=["a-system"])
    await cloud.alice.create("vms", "local", image="micro")
    problem = await cloud.alice.fail("DELETE", "/vms/local?keep_disks=true", status=409, code="conflict")
    assert "local-system" in problem["detail"]


# --- snapshots


async def test_snapshots_are_taken_listed_rolled_back_to_cloned_and_deleted(cloud: Cloud) -> None:
    await pool_of(cloud, "n1", "n2")
    disk = (await cloud.alice.create("disks", "data", size_mib=100, type="standard"))["id"]
    await cloud.alice.create("snapshots", "s1", disk="data")
    await cloud.alice.end("POST", "/disks/data/actions/resize", {"size_mib": 200})
    two = await cloud.alice.create("snapshots", "s2", disk="data")
    rows = await cloud.alice.list("/snapshots", disk="data")
    assert [(row["name"], row["status"]["size_mib"]) for row in rows][1] == ("s2", 200)
    small = {"name": "c", "spec": {"snapshot": "s2", "size_mib": 199}}
    await cloud.alice.fail("POST", "/disks", small, status=422, code="invalid")
    clone = await cloud.alice.create("disks", "clone", snapshot="s2")
    (node,) = (cloud.nodes[name] for name in told(cloud, clone["id"]))
    assert of(node, clone["id"]).origin == (disk, two["id"]) and clone["spec"]["size_mib"] == 200
    for path in ("/snapshots/s2", "/disks/data", "/disks/data?now=true"):
        problem = await cloud.alice.fail("DELETE", path, status=409, code="in_use")
        assert problem["users"] == ["disk clone"]
    await cloud.alice.end("POST", "/disks/data/actions/rollback", {"snapshot": "s1"})
    (server,) = (cloud.nodes[name] for name in told(cloud, disk))
    assert of(server, disk).rollbacks == 1
    await cloud.alice.end("POST", "/disks/clone/actions/flatten")
    assert (await cloud.alice.get("/disks/clone"))["spec"]["snapshot"] is None, "it has nothing of it any more"
    await node.until(lambda: of(node, clone["id"]).origin is None)
    await cloud.alice.end("DELETE", "/snapshots/s2")
    await server.until(lambda: [kept.id for kept in of(server, disk).snapshots] == [rows[0]["id"]])
    await cloud.alice.end("DELETE", "/disks/data?now=true")
    assert await cloud.alice.list("/snapshots") == []


async def test_a_roll_back_needs_the_disk_closed(cloud: Cloud) -> None:
    await pool_of(cloud, "n1")
    await cloud.alice.create("vms", "a", image="micro", disk_type="standard")
    await cloud.alice.create("snapshots", "s1", disk="a-system")
    path, body = "/disks/a-system/actions/rollback", {"snapshot": "s1"}
    problem = await cloud.alice.fail("POST", path, body, status=409, code="conflict")
    assert "stop the VM first" in problem["detail"]
    await cloud.alice.end("POST", "/vms/a/actions/stop", {"force": True})
    await cloud.alice.end("POST", path, body)
    problem = await cloud.alice.fail("POST", "/vms/a/actions/rebuild", {}, status=409, code="in_use")
    assert problem["users"] == ["snapshot s1"]
    await cloud.alice.create("disks", "other", size_mib=1, type="standard")
    await cloud.alice.fail("POST", "/disks/other/actions/rollback", body, status=422, code="invalid")


async def test_a_disk_that_was_just_detached_is_rolled_back_once_its_node_lets_go(cloud: Cloud) -> None:
    await pool_of(cloud, "n1")
    await cloud.alice.create("vms", "a", image="micro")
    disk = (await cloud.alice.create("disks", "data", size_mib=1, type="standard"))["id"]
    await cloud.alice.create("snapshots", "s1", disk="data")
    await cloud.alice.end("POST", "/disks/data/actions/attach", {"vm": "a"})
    node, key = cloud.nodes["n1"], f"disk/{disk}"
    node.override[key] = Observed(key=key, generation=99, state="ready", settled=False, reason="being detached from a")
    await cloud.alice.end("POST", "/disks/data/actions/detach")
    assert (await cloud.alice.get("/disks/data"))["status"]["held"]
    asked = await cloud.alice.do("POST", "/disks/data/actions/rollback", {"snapshot": "s1"})
    await node.until(lambda: of(node, disk).rollbacks == 1)
    del node.override[key]
    await node.stop()
    await node.start()
    await cloud.alice.wait(asked)
    await cloud.until(cloud.alice, "/disks/data", "ready")


async def test_a_snapshot_that_fails_says_why_and_can_be_deleted(cloud: Cloud) -> None:
    await pool_of(cloud, "n1")
    node = cloud.nodes["n1"]
    disk = (await cloud.alice.create("disks", "data", size_mib=100, type="standard"))["id"]
    key = f"disk/{disk}"
    failed: dict[str, Any] = {"key": key, "generation": 2, "state": "error", "settled": True}
    node.override[key] = Observed(**failed, reason="the pool is read-only")
    made = await cloud.alice.do("POST", "/snapshots", {"name": "s1", "spec": {"disk": "data"}})
    op = await cloud.alice.wait(made, "failed")
    assert "read-only" in op["message"]
    assert (await cloud.alice.get("/snapshots/s1"))["status"]["state"] == "error"
    node.override[key] = Observed(**{**failed, "generation": 3, "snapshots": ()}, reason="the pool is read-only")
    await cloud.alice.end("DELETE", "/snapshots/s1")


async def test_a_snapshot_whose_node_is_silent_is_gone_for_its_owner_in_time(cloud: Cloud) -> None:
    await pool_of(cloud, "n1")
    node = cloud.nodes["n1"]
    await cloud.alice.create("disks", "data", size_mib=100, type="standard")
    row = await cloud.alice.create("snapshots", "s1", disk="data")
    await cloud.lose(node)
    gone = await cloud.alice.do("DELETE", "/snapshots/s1")
    cloud.clock.advance(61)
    await cloud.alice.wait(gone)
    assert await cloud.alice.list("/snapshots") == [] and cloud.rows("resource", id=row["id"])
    await cloud.alice.do("POST", "/snapshots", {"name": "s1", "spec": {"disk": "data"}})
    await node.start()
    await cloud.until_gone(row["id"])


async def test_a_schedule_takes_snapshots_and_keeps_the_newest(cloud: Cloud) -> None:
    await pool_of(cloud, "n1")
    disk = (await cloud.alice.create("disks", "data", size_mib=100, type="standard"))["id"]
    await cloud.alice.create("snapshots", "by-hand", disk="data")
    schedule = {"schedule": {"every_s": 3600, "keep": 2}}
    await cloud.alice.end("POST", "/disks/data/actions/schedule", schedule)

    async def taken(number: int) -> None:
        async def there() -> bool:
            rows = await cloud.alice.list("/snapshots", disk="data")
            ready = [row for row in rows if row["spec"]["scheduled"] and row["status"]["state"] == "ready"]
            return len(ready) == number == len(rows) - 1

        await cloud.eventually(there)

    seen: set[str] = set()
    for hour, expected in ((1, 1), (1, 2), (1, 2), (5, 2)):
        cloud.clock.advance(hour * 3600 + 1)
        before = (await cloud.alice.get("/disks/data"))["status"]["next_snapshot_at"]
        await cloud.restart()

        async def done(before: float = before) -> bool:
            return bool((await cloud.alice.get("/disks/data"))["status"]["next_snapshot_at"] > before)

        await cloud.eventually(done)
        await taken(expected)
        fresh = {row["id"] for row in await cloud.alice.list("/snapshots", disk="data")} - seen
        assert len(fresh) == (2 if not seen else 1)  # however many were missed, one is made up for
        seen |= fresh
    await cloud.alice.end("POST", "/disks/data/actions/schedule", {"schedule": None})
    assert (await cloud.alice.get("/disks/data"))["status"]["next_snapshot_at"] is None
    assert key_of(of(cloud.nodes["n1"], disk)) == f"disk/{disk}"


async def test_a_schedule_that_keeps_one_has_a_ready_one_at_any_moment(cloud: Cloud) -> None:
    await pool_of(cloud, "n1")
    node = cloud.nodes["n1"]
    disk = (await cloud.alice.create("disks", "data", size_mib=100, type="standard"))["id"]
    await cloud.alice.end("POST", "/disks/data/actions/schedule", {"schedule": {"every_s": 3600, "keep": 1}})

    async def an_hour_later() -> None:
        cloud.clock.advance(3601)
        await cloud.store.write(lambda tx: operations.enqueue(tx, f"schedule/{disk}"))

    async def until(*states: str) -> list[str]:
        """Their ids, oldest first, once snapshots in exactly these states are there."""
        rows: list[dict[str, Any]] = []

        async def so() -> bool:
            nonlocal rows
            rows = sorted(await cloud.alice.list("/snapshots", disk="data"), key=lambda row: row["id"])
            return [row["status"]["state"] for row in rows] == list(states)

        await cloud.eventually(so)
        return [row["id"] for row in rows]

    await an_hour_later()
    (first,) = await until("ready")
    node.holding = True
    await an_hour_later()
    assert (await until("ready", "creating"))[0] == first
    await node.release()
    (second,) = await until("ready")
    assert second != first
    # The next one fails: the one before stays, and the failed one goes when its successor is taken.
    key, generation = f"disk/{disk}", of(node, disk).generation
    failed: dict[str, Any] = {"key": key, "generation": generation + 1, "state": "error", "settled": True}
    node.override[key] = Observed(**failed, snapshots=((second, 100),), reason="the pool is read-only")
    await an_hour_later()
    assert (await until("ready", "error"))[0] == second
    del node.override[key]
    await an_hour_later()
    (third,) = await until("ready")
    assert third not in (first, second)


# --- limits


async def test_limits_are_told_and_what_is_not_given_stays(cloud: Cloud) -> None:
    await pool_of(cloud, "n1")
    disk = (await cloud.alice.create("disks", "data", size_mib=100, type="standard"))["id"]
    await cloud.alice.end("POST", "/disks/data/actions/limit", {"iops": 500})
    await cloud.alice.end("POST", "/disks/data/actions/limit", {"kib_per_s": 1024})
    limits = of(cloud.nodes["n1"], disk).limits
    assert (limits.iops, limits.kib_per_s) == (500, 1024)
    await cloud.alice.fail("POST", "/disks/data/actions/limit", {"iops": -1}, status=422, code="invalid")


async def test_what_a_disk_occupies_is_unknown_if_its_node_cannot_tell(cloud: Cloud) -> None:
    await pool_of(cloud, "n1")
    node = cloud.nodes["n1"]
    disk = (await cloud.alice.create("disks", "data", size_mib=100, type="standard"))["id"]
    ready: dict[str, Any] = {"key": f"disk/{disk}", "generation": 9, "state": "ready", "settled": True}

    async def used(wanted: int | None, **fields: Any) -> None:
        async def so() -> bool:
            return bool((await cloud.alice.get("/disks/data"))["status"]["used_mib"] == wanted)

        await node.say(Observed(**{**ready, **fields}))
        await cloud.eventually(so)

    await used(12, used_mib=12, snapshots=())
    await used(None, used_mib=None, snapshots=())
    await used(13, used_mib=13, snapshots=())
    away = Observed(**{**ready, "state": "working", "settled": False}, reason="the cluster does not answer")
    await node.say(away)

    async def told() -> bool:
        return bool((await cloud.alice.get("/disks/data"))["status"]["reason"] == away.reason)

    await cloud.eventually(told)
    assert (await cloud.alice.get("/disks/data"))["status"]["used_mib"] == 13, "who sees nothing tells nothing"


# --- the audit


async def test_the_audit_knows_disks_snapshots_and_bases_of_pools(cloud: Cloud) -> None:
    await pool_of(cloud, "n1", "n2")
    image = cloud.rows("resource", kind="image")[0]["id"]
    disk = (await cloud.alice.create("disks", "data", size_mib=100, type="standard"))["id"]
    snapshot = (await cloud.alice.create("snapshots", "s1", disk="data"))["id"]
    await cloud.alice.create("disks", "gone", size_mib=100, type="standard")
    await cloud.alice.end("DELETE", "/disks/gone")
    (server,) = (cloud.nodes[name] for name in told(cloud, disk))
    other = cloud.nodes["n2" if server.name == "n1" else "n1"]
    other.in_pools += [f"disk/{disk}", f"image/{image}"]  # it sees what others serve
    assert (await cloud.admin.get("/audit"))["clean"]
    stray = ["disk/dsk-0000000000000000", "snapshot/snp-0000000000000000", "image/img-0000000000000000"]
    server.in_pools += stray
    other.in_pools += stray
    report = await cloud.admin.get("/audit")
    assert sorted(item["key"] for item in report["findings"]) == sorted(stray)
    server.in_pools.clear()
    other.in_pools.clear()
    server.existing.pop(f"disk/{disk}")
    server.answers["inventory"] = lambda _: {}
    found = {item["key"]: item["message"] for item in (await cloud.admin.get("/audit"))["findings"]}
    assert "no bytes in its pool" in found[f"disk/{disk}"] and "not in its pool" in found[f"snapshot/{snapshot}"]


async def test_an_images_bases_go_with_it_as_soon_as_a_node_can(cloud: Cloud) -> None:
    pool = await pool_of(cloud, "n1")
    node = cloud.nodes["n1"]
    asked: list[dict[str, Any]] = []
    node.answers["delete_image"] = lambda params: asked.append(params)
    image = await cloud.image("mine", account=cloud.alice.account)
    await cloud.lose(node)
    await cloud.alice.end("DELETE", "/images/mine")
    await node.start()

    async def done() -> bool:
        return asked == [{"pool": pool, "image": image}] and not cloud.rows("work", key=f"base/{image}")

    await cloud.eventually(done, 15.0)
