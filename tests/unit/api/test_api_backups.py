"""Backups over the API: a real node's side of the streams on a storage in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from scloud.agent.transfers import Transfers
from scloud.controllers import moving
from scloud.controllers.moving import Amount, how_far
from scloud.drivers.storage.fake import MIB, FakeDisk, FakeStorage
from scloud.link.backup import BackupHeader, Decoder, encode
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.observed import Observed
from scloud.store import operations
from scloud.store.database import Tx
from support.cloud import Cloud
from support.node import ScriptedNode
from support.pools import close_pool, make_pool


class Server:
    """One scripted node whose disks are really kept, in memory, and its streams."""

    def __init__(self, cloud: Cloud, node: ScriptedNode) -> None:
        self.disk = FakeDisk(shared=True)
        self.storage = FakeStorage(self.disk)
        stores: Any = SimpleNamespace(of=lambda _pool: self.storage)
        usage: Any = SimpleNamespace(known=True, disk_open_by=lambda _disk: None)
        journal: Any = SimpleNamespace(desired=node.objects)

        @asynccontextmanager
        async def hold(_disks: Iterable[str]) -> AsyncIterator[None]:
            yield

        dial = lambda: cloud.listener.dial(node.id, node.conditions)  # noqa: E731
        disks: Any = SimpleNamespace(hold=hold)
        self.transfers = Transfers(dial, stores, disks, usage, journal)
        self.tasks: set[asyncio.Task[None]] = set()
        node._open = self.open  # type: ignore[method-assign]

    def open(self, params: dict[str, Any]) -> None:
        task = asyncio.get_running_loop().create_task(self.transfers.open(params["stream"], params["kind"], params))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


@pytest.fixture
async def server(cloud: Cloud) -> Server:
    node = await cloud.node()
    await cloud.store.write(lambda tx: make_pool(tx, [node.id]))
    return Server(cloud, node)


async def make(cloud: Cloud, server: Server, name: str, size_mib: int = 8) -> str:
    id = str((await cloud.alice.create("disks", name, size_mib=size_mib, type="standard"))["id"])
    await server.storage.create(id, size_mib, None)
    return id


async def keep(cloud: Cloud, server: Server, disk: str, name: str) -> str:
    id = str((await cloud.alice.create("snapshots", name, disk=disk))["id"])
    await server.storage.snapshot(disk, id)
    return id


async def save(cloud: Cloud, disk: str, **params: str) -> bytes:
    answer = await cloud.alice.ask("GET", f"/disks/{disk}/export", params=params)
    assert answer.status_code == 200, answer.text
    return answer.content


async def put(cloud: Cloud, disk: str, content: bytes) -> dict[str, Any]:
    answer = await cloud.alice.ask("PUT", f"/disks/{disk}/data", content=content)
    assert answer.status_code == 202, answer.text
    result: dict[str, Any] = answer.json()
    return result


async def test_a_disk_is_brought_back_from_a_whole_backup_and_two_of_changes(cloud: Cloud, server: Server) -> None:
    one = await make(cloud, server, "one")
    backups, last = [], ""
    for number, text in enumerate((b"first", b"second", b"third")):
        server.disk.write(one, number * 2 * MIB + 17, text)
        server.disk.write(one, 5, b"%d" % number)
        await keep(cloud, server, one, f"s{number}")
        backups.append(await save(cloud, "one", snapshot=f"s{number}", **({"since": last} if last else {})))
        last = f"s{number}"
    server.disk.write(one, 0, b"later than any backup")
    two = await make(cloud, server, "two")
    server.disk.write(two, 7 * MIB, b"what was there before")
    early = await cloud.alice.ask("PUT", "/disks/two/data", content=backups[1])
    assert early.status_code == 409 and "import the backup of that snapshot first" in early.json()["detail"]
    for backup in backups:
        assert (await put(cloud, "two", backup))["state"] == "done"
    expected = bytearray(8 * MIB)
    for number, text in enumerate((b"first", b"second", b"third")):
        expected[number * 2 * MIB + 17 : number * 2 * MIB + 17 + len(text)] = text
    expected[5:6] = b"2"
    assert server.disk.read(two, 0, 8 * MIB) == bytes(expected)
    assert (await cloud.alice.get("/disks/two"))["status"]["state"] == "ready"


async def test_after_it_was_attached_a_disk_takes_no_backup_of_changes(cloud: Cloud, server: Server) -> None:
    await cloud.image()
    one = await make(cloud, server, "one")
    await keep(cloud, server, one, "s0")
    await keep(cloud, server, one, "s1")
    await make(cloud, server, "two")
    await put(cloud, "two", await save(cloud, "one", snapshot="s0"))
    await cloud.alice.create("vms", "a", image="micro", disks=["two"])
    change = await save(cloud, "one", snapshot="s1", since="s0")
    attached = await cloud.alice.ask("PUT", "/disks/two/data", content=change)
    assert attached.status_code == 409
    await cloud.alice.end("POST", "/disks/two/actions/detach")
    problem = await cloud.alice.ask("PUT", "/disks/two/data", content=change)
    assert problem.status_code == 409 and "was not just imported" in problem.json()["detail"]


async def test_a_damaged_backup_is_noticed_and_the_disk_cannot_be_used(cloud: Cloud, server: Server) -> None:
    one = await make(cloud, server, "one")
    server.disk.write(one, 0, b"x" * 1000)
    await keep(cloud, server, one, "s0")
    good = await save(cloud, "one", snapshot="s0")
    two = await make(cloud, server, "two")
    for bad, word in ((good[:-40], "too early"), (good[:-1] + b"?", "checksum"), (good[:300] + b"?" + good[301:], "")):
        answer = await cloud.alice.ask("PUT", "/disks/two/data", content=bad)
        assert answer.status_code == 422 and word in answer.json()["detail"], answer.text
        row = await cloud.alice.get("/disks/two")
        assert row["status"]["state"] == "error" and "import it anew" in row["status"]["reason"]
        await cloud.alice.fail("POST", "/disks/two/actions/limit", {"iops": 1}, status=409, code="conflict")
    assert (await put(cloud, "two", good))["state"] == "done"
    assert server.disk.read(two, 0, 1000) == b"x" * 1000
    for content in (b"", b"no backup", good[:12]):
        answer = await cloud.alice.ask("PUT", "/disks/two/data", content=content)
        assert answer.status_code == 422, answer.text
    small = await make(cloud, server, "small", 4)
    answer = await cloud.alice.ask("PUT", f"/disks/{small}/data", content=good)
    assert answer.status_code == 422 and "resize it first" in answer.json()["detail"]


async def test_an_export_that_fails_in_the_middle_says_so_in_the_backup(cloud: Cloud, server: Server) -> None:
    one = await make(cloud, server, "one")
    await keep(cloud, server, one, "s0")
    server.disk.failing["export"] = CloudError(ErrorKind.ENGINE, "the pool is gone")
    content = await save(cloud, "one", snapshot="s0")
    parts = iter([content])

    async def read(_limit: int) -> bytes:
        return next(parts, b"")

    decoder = Decoder(read)
    await decoder.header()
    with pytest.raises(CloudError, match="the pool is gone"):
        _ = [extent async for extent in decoder.extents(8 * MIB)]


async def test_a_pool_near_full_takes_no_backup(cloud: Cloud, server: Server) -> None:
    await make(cloud, server, "one")
    disk = await make(cloud, server, "two")
    await keep(cloud, server, (await cloud.alice.get("/disks/one"))["id"], "s1")
    backup = await save(cloud, "one", snapshot="s1")
    (pool,) = cloud.rows("resource", kind="pool")
    await cloud.store.write(lambda tx: close_pool(tx, pool["id"], "86% of its fullest device is used"))
    before = cloud.dump()
    refused = await cloud.alice.ask("PUT", f"/disks/{disk}/data", content=backup)
    assert refused.status_code == 409 and "86% of its fullest device is used" in refused.json()["detail"]
    assert cloud.dump() == before


async def test_an_import_goes_down_with_its_manager_and_can_be_begun_anew(cloud: Cloud, server: Server) -> None:
    two = await make(cloud, server, "two")
    node = cloud.nodes["n1"]
    gate = asyncio.Event()

    async def extents() -> AsyncIterator[tuple[int, bytes | int]]:
        yield 0, b"begun"

    header = BackupHeader(disk="dsk-x", snapshot="snp-x", size_mib=8)
    good = b"".join([piece async for piece in encode(header, extents())])

    async def slowly() -> AsyncIterator[bytes]:
        yield good[:-10]
        await gate.wait()

    sending = asyncio.ensure_future(cloud.alice.ask("PUT", "/disks/two/data", content=slowly()))
    await cloud.until(cloud.alice, "/disks/two", "updating")
    busy = await cloud.alice.ask("PUT", "/disks/two/data", content=good)
    assert busy.status_code == 409 and "already" in busy.json()["detail"]
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    await cloud.until(cloud.alice, "/disks/two", "error")
    await cloud.store.write(lambda tx: _as_if_killed(tx, two))
    await cloud.restart()
    row = await cloud.alice.get("/disks/two")
    assert row["status"]["state"] == "error" and "restarted" in row["status"]["reason"]
    item = Observed(key=f"disk/{two}", generation=row["generation"], state="ready", settled=True)
    await node.say(item)
    assert (await put(cloud, "two", good))["state"] == "done"


async def test_an_image_is_made_of_a_disk_and_its_snapshot_goes(cloud: Cloud, server: Server) -> None:
    one = await make(cloud, server, "one")
    server.disk.write(one, 3 * MIB, b"kept")
    node = cloud.nodes["n1"]
    node.holding = True
    made = await cloud.alice.do("POST", "/disks/one/actions/image", {"name": "golden", "login_user": "ada"})
    (snapshot,) = await cloud.alice.list("/snapshots")
    refused = await cloud.alice.fail("DELETE", f"/snapshots/{snapshot['id']}", status=409, code="in_use")
    assert refused["users"] == ["image golden"]
    await server.storage.snapshot(one, snapshot["id"])
    server.disk.write(one, 3 * MIB, b"later")
    await node.release()
    await cloud.alice.wait(made)
    image = await cloud.alice.get("/images/golden")
    assert (image["status"]["size_mib"], image["spec"]["login_user"]) == (8, "ada")
    content = (await cloud.alice.ask("GET", "/images/golden/data")).content
    assert content == bytes(3 * MIB) + b"kept" + bytes(5 * MIB - 4)
    await cloud.until_gone(snapshot["id"])


async def test_an_image_of_a_disk_fails_with_its_snapshot(cloud: Cloud, server: Server) -> None:
    one = await make(cloud, server, "one")
    node = cloud.nodes["n1"]
    broken = Observed(key=f"disk/{one}", generation=2, state="error", settled=True, reason="the pool is read-only")
    node.override[f"disk/{one}"] = broken
    made = await cloud.alice.do("POST", "/disks/one/actions/image", {"name": "golden"})
    op = await cloud.alice.wait(made, "failed")
    assert "read-only" in op["message"]
    del node.override[f"disk/{one}"]
    await cloud.alice.end("DELETE", "/images/golden")

    async def gone() -> bool:
        return not await cloud.alice.list("/snapshots")

    await cloud.eventually(gone)
    await cloud.image()
    await cloud.alice.create("vms", "a", image="micro", disk_type="standard")
    body = {"name": "of-a"}
    problem = await cloud.alice.fail("POST", "/vms/a/actions/image", body, status=409, code="conflict")
    assert "stop it first" in problem["detail"]


async def follow(cloud: Cloud, server: Server, move: dict[str, Any]) -> None:
    """What the node does of itself: makes the new disk and takes the snapshot."""
    new = move["resource"]["id"]
    await server.storage.create(new, 8, None)
    for row in await cloud.alice.list("/snapshots"):
        await server.storage.snapshot(row["spec"]["disk"], row["id"])


async def moved_to(cloud: Cloud, server: Server, type_: str) -> dict[str, Any]:
    """The disk `one`, after it was moved."""
    node = cloud.nodes["n1"]
    node.holding = True
    move = await cloud.alice.do("POST", "/disks/one/actions/move", {"type": type_})
    await follow(cloud, server, move)
    await node.release()
    await cloud.alice.wait(move)
    found: dict[str, Any] = await cloud.alice.get("/disks/one")
    return found


def test_a_move_says_how_far_it_is() -> None:
    assert how_far(Amount(400, exact=True), 100 * MIB, 2.0) == (23, "100 of 400 MiB copied, 50 MiB a second, 6 s to go")
    assert how_far(Amount(1000, exact=False), 100 * MIB, 4.0) == (9, "100 of at most 1000 MiB copied, 25 MiB a second")
    assert how_far(Amount(10, exact=True), 30 * MIB, 1.0) == (95, "30 of 30 MiB copied, 30 MiB a second")
    assert how_far(Amount(0, exact=True), 0, 0.0) == (0, "0 of 0 MiB copied")


async def test_a_disk_moves_to_another_pool_and_the_old_one_waits_in_the_trash(
    cloud: Cloud, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "TELL_EVERY_S", 0.0)
    told: list[str] = []
    progress = operations.progress

    def note(tx: Tx, op_id: str, percent: int, message: str) -> None:
        told.append(message)
        progress(tx, op_id, percent, message)

    monkeypatch.setattr(operations, "progress", note)
    await cloud.image()
    node = cloud.nodes["n1"]
    other = await cloud.store.write(lambda tx: make_pool(tx, [node.id], "fast"))
    one = await make(cloud, server, "one")
    server.disk.write(one, 5 * MIB, b"moved")
    await cloud.alice.create("vms", "a", image="micro", disks=["one"])
    problem = await cloud.alice.fail("POST", "/disks/one/actions/move", {"type": "fast"}, status=409, code="conflict")
    assert "cannot be moved" in problem["detail"]
    await cloud.alice.end("POST", "/vms/a/actions/stop", {"force": True})
    moved = await moved_to(cloud, server, "fast")
    assert (moved["spec"]["pool"], moved["spec"]["type"]) == (other, "fast") and moved["id"] != one
    assert server.disk.read(moved["id"], 5 * MIB, 5) == b"moved"
    assert any("MiB copied" in message for message in told), told
    await cloud.alice.end("POST", "/vms/a/actions/start")
    assert {row["name"] for row in await cloud.alice.list("/disks", vm="a")} == {"a-system", "one"}
    (old,) = await cloud.alice.list("/disks", state="trashed")
    assert old["id"] == one and old["spec"]["former_name"] == "one"


async def test_a_disk_that_has_moved_keeps_its_schedule(cloud: Cloud, server: Server) -> None:
    node = cloud.nodes["n1"]
    await cloud.store.write(lambda tx: make_pool(tx, [node.id], "fast"))
    one = await make(cloud, server, "one")
    await cloud.alice.end("POST", "/disks/one/actions/schedule", {"schedule": {"every_s": 3600, "keep": 2}})
    due = (await cloud.alice.get("/disks/one"))["status"]["next_snapshot_at"]
    moved = await moved_to(cloud, server, "fast")
    assert moved["id"] != one and moved["spec"]["schedule"] == {"every_s": 3600, "keep": 2}
    assert moved["status"]["next_snapshot_at"] == due
    assert (await cloud.alice.get(f"/disks/{one}"))["status"]["next_snapshot_at"] is None, "it waits in the trash"
    cloud.clock.advance(3601)
    await cloud.restart()

    async def taken() -> bool:
        return [row["spec"]["scheduled"] for row in await cloud.alice.list("/snapshots", disk=moved["id"])] == [True]

    await cloud.eventually(taken)


async def test_a_disk_of_a_node_moves_into_a_pool(cloud: Cloud, server: Server) -> None:
    await cloud.image()
    one = str((await cloud.alice.create("disks", "one", size_mib=8))["id"])
    await cloud.alice.create("vms", "a", image="micro", disks=["one"])
    await server.storage.create(one, 8, None)
    server.disk.write(one, 5 * MIB, b"moved")
    await cloud.alice.end("POST", "/vms/a/actions/stop", {"force": True})
    moved = await moved_to(cloud, server, "standard")
    assert moved["spec"]["type"] == "standard" and moved["spec"]["pool"] and moved["id"] != one
    assert server.disk.read(moved["id"], 5 * MIB, 5) == b"moved"
    await cloud.until_gone(one)
    await cloud.alice.end("POST", "/vms/a/actions/start")
    assert {row["name"] for row in await cloud.alice.list("/disks", vm="a")} == {"a-system", "one"}
    assert [row["disk_mib"] for row in cloud.rows("node_usage", node=moved["spec"]["pool"])] == [8]


async def test_a_move_ends_with_the_new_disk(cloud: Cloud, server: Server) -> None:
    node = cloud.nodes["n1"]
    await cloud.store.write(lambda tx: make_pool(tx, [node.id], "fast"))
    await make(cloud, server, "one")
    node.holding = True
    move = await cloud.alice.do("POST", "/disks/one/actions/move", {"type": "fast"})
    refused = await cloud.alice.fail("DELETE", "/disks/one", status=409, code="in_use")
    assert refused["users"] == [f"disk {move['resource']['name']}"]
    deletion = await cloud.alice.do("DELETE", f"/disks/{move['resource']['id']}")
    await cloud.alice.wait(move, "failed")
    await node.release()
    await cloud.alice.wait(deletion)

    async def as_before() -> bool:
        return not await cloud.alice.list("/snapshots") and len(await cloud.alice.list("/disks")) == 1

    await cloud.eventually(as_before)


async def test_a_move_of_a_disk_that_was_used_meanwhile_is_given_up(cloud: Cloud, server: Server) -> None:
    await cloud.image()
    node = cloud.nodes["n1"]
    await cloud.store.write(lambda tx: make_pool(tx, [node.id], "fast"))
    one = await make(cloud, server, "one")
    await cloud.alice.create("vms", "a", image="micro")
    node.holding = True
    move = await cloud.alice.do("POST", "/disks/one/actions/move", {"type": "fast"})
    await follow(cloud, server, move)
    await cloud.alice.do("POST", "/disks/one/actions/attach", {"vm": "a"})
    await node.release()
    op = await cloud.alice.wait(move, "failed")
    assert "changed meanwhile" in op["message"]
    await cloud.until_gone(move["resource"]["id"])
    assert (await cloud.alice.get("/disks/one"))["id"] == one

    async def none_left() -> bool:
        return not await cloud.alice.list("/snapshots")

    await cloud.eventually(none_left)


def _as_if_killed(tx: Any, disk: str) -> None:
    """What the database has while an import is under way."""
    from scloud.controllers import imports
    from scloud.store.resources import find

    row = find(tx, disk)
    assert row is not None
    imports.begin(tx, row)
