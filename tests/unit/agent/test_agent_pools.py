"""The whole agent on a fake node with a pool: disks that other nodes see too, their snapshots and limits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agent_clock import run
from agent_node import IMAGE, NODE, POOL, SHA, Node, disk, one_vm, running_node, vm_id

from scloud.drivers.hypervisor.protocol import DiskFigures
from scloud.drivers.storage.fake import FakeBytes, FakeDisk, FakePools, FakeStorage, FakeVolume
from scloud.drivers.storage.place import FilePlace, secret_of
from scloud.drivers.storage.protocol import StillOpen
from scloud.model.desired import DesiredDisk, DesiredSnapshot, DesiredStore, StorePool, VmDisk
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.snapshots import DiskLimits

CLUSTER = "sc-0000000000000001"
STORE = f"store/{CLUSTER}.{NODE}"
VM = vm_id(1)
KEY = f"vm/{VM}"
DATA = "dsk-0000000000000009"


def store(**fields: Any) -> DesiredStore:
    values: dict[str, Any] = {
        **{"id": f"{CLUSTER}.{NODE}", "generation": 1, "cluster": CLUSTER, "fsid": "f", "mon_host": "10.0.0.1"},
        **{"client": "scloud-n1", "client_key": "key-1", "pools": (StorePool(id=POOL, name="rbd"),), **fields},
    }
    return DesiredStore.model_validate(values)


def shared(number: int = 9, **fields: Any) -> DesiredDisk:
    return disk(number, image=False).model_copy(update={"pool": POOL, **fields})


def snapshots(*names: str, absent: tuple[str, ...] = ()) -> tuple[DesiredSnapshot, ...]:
    return tuple(DesiredSnapshot(id=name, absent=name in absent) for name in (*names, *absent))


def with_data() -> tuple[VmDisk, ...]:
    return VmDisk(id="dsk-0000000000000001", system=True), VmDisk(id=DATA, system=False)


def test_a_disk_waits_for_its_pool_to_be_known_and_is_then_made() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(*one_vm(disks=with_data()), shared())
            await node.until(lambda: f"disk/{DATA}" in node.boss.heard)
            heard = node.boss.heard[f"disk/{DATA}"]
            assert (heard.state, heard.settled) == ("working", False)
            assert "waiting for the storage cluster" in heard.reason
            await node.boss.want(store(client_key=""))
            await asyncio.sleep(100)
            assert node.boss.heard[f"disk/{DATA}"].state == "working", "not an error however long it takes"
            assert VM not in node.host.domains
            assert "waiting for the storage cluster" in node.boss.heard[KEY].reason
            await node.boss.change(STORE, client_key="key-1")
            await node.settled(KEY, "running")
            await node.settled(f"disk/{DATA}", "ready")
            assert set(node.host.domains[VM].disks) >= {DATA}
            assert node.host.secrets == {secret_of(CLUSTER, "scloud-n1"): "key-1"}
            assert DATA in node.pools[POOL].volumes and DATA not in node.disk.volumes

    run(main())


def test_a_disk_that_was_just_made_is_ready_without_another_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pool a look costs as much as the making."""
    asked: list[str] = []

    class Counted(FakeStorage):
        async def _enter(self, method: str) -> None:
            asked.append(method)
            await super()._enter(method)

    async def main() -> None:
        async with running_node() as node:
            monkeypatch.setattr("scloud.drivers.storage.fake.FakeStorage", Counted)
            await node.boss.want(store(), shared())
            await node.settled(f"disk/{DATA}", "ready")
            assert asked == ["show", "create"]
            assert node.boss.heard[f"disk/{DATA}"].used_mib == 0
            asked.clear()
            await node.boss.want(*one_vm(disks=with_data()))
            await node.settled(KEY, "running")
            assert asked.count("locate") == 1 and asked.count("show") <= 3, asked

    run(main())


def test_a_slow_storage_cluster_is_part_of_the_nodes_load() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(store(), shared())
            await node.settled(f"disk/{DATA}", "ready")
            node.pools[POOL].answer_s = 0.25
            before = node.boss.heartbeats
            while node.boss.load.storage_ms != 250.0 and node.boss.heartbeats < before + 10:
                await asyncio.sleep(0.1)
            assert node.boss.load.storage_ms == 250.0

    run(main())


def test_a_disk_that_was_said_to_be_free_is_not_attached_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The manager may have given it to another node since: simulation seed 760."""
    looking, go_on = asyncio.Event(), asyncio.Event()

    class Slow(FakeStorage):
        async def locate(self, disk: str, beside: str | None = None) -> FilePlace:
            if disk == DATA:
                looking.set()
                await go_on.wait()
            return await super().locate(disk, beside)

    async def main() -> None:
        async with running_node() as node:
            monkeypatch.setattr("scloud.drivers.storage.fake.FakeStorage", Slow)
            await node.boss.want(store(), shared(), *one_vm())
            await node.settled(KEY, "running")
            await node.boss.change(KEY, disks=with_data())
            await looking.wait()
            await node.boss.change(KEY, disks=with_data()[:1])
            await node.boss.change(f"disk/{DATA}")
            await node.settled(f"disk/{DATA}", "ready")
            go_on.set()
            await node.settled(KEY, "running")
            assert not [call for call in node.host.calls if call[0] == "attach_disk"]

    run(main())


def test_a_restarted_agent_knows_its_pools_from_its_journal() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(store(), *one_vm(disks=with_data()), shared())
            await node.settled(KEY, "running")
            await node.kill()
            await node.listener.stop()
            node.host.crash(VM)
            node.host.secrets.clear()
            node.start()
            await node.until(lambda: node.host.domains[VM].running)
            assert node.host.secrets

    run(main())


def test_the_first_disk_of_an_image_fetches_it_and_the_others_are_clones() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(store(), shared(image=IMAGE, image_sha256=SHA))
            await node.settled(f"disk/{DATA}", "ready")
            node.images.missing.add(IMAGE)
            await node.boss.want(shared(10, image=IMAGE, image_sha256=SHA))
            await node.settled("disk/dsk-0000000000000010", "ready")
            assert node.pools[POOL].volumes["dsk-0000000000000010"].origin == f"image/{IMAGE}"
            reply = await node.boss.call("inventory")
            assert isinstance(reply.result, dict)
            assert set(reply.result["pool_disks"]) == {
                f"disk/{DATA}",
                "disk/dsk-0000000000000010",
                f"image/{IMAGE}",
            }

    run(main())


def test_snapshots_are_taken_reported_and_deleted() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(store(), shared(snapshots=snapshots("snp-1", "snp-2")))
            await node.settled(f"disk/{DATA}", "ready")
            assert node.boss.heard[f"disk/{DATA}"].snapshots == (("snp-1", 1024), ("snp-2", 1024))
            await node.boss.want(shared(10, origin=(DATA, "snp-1")))
            await node.settled("disk/dsk-0000000000000010", "ready")
            await node.boss.change(f"disk/{DATA}", snapshots=snapshots("snp-2", absent=("snp-1",)))
            await node.settled(f"disk/{DATA}", "error")
            assert "disk/dsk-0000000000000010" in node.boss.heard[f"disk/{DATA}"].reason
            await node.boss.change("disk/dsk-0000000000000010", flattened=True)
            await node.settled(f"disk/{DATA}", "ready")
            assert node.boss.heard[f"disk/{DATA}"].snapshots == (("snp-2", 1024),)

    run(main())


def test_a_roll_back_waits_until_the_disk_is_closed_and_holds_up_the_next_start() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(store(), *one_vm(disks=with_data()), shared(snapshots=snapshots("snp-1")))
            await node.settled(KEY, "running")
            await node.settled(f"disk/{DATA}", "ready")
            node.pools[POOL].write(DATA, 0, b"to be undone")
            await node.boss.change(f"disk/{DATA}", rollbacks=1, rollback_to="snp-1")
            await node.until(lambda: "to be rolled back" in node.boss.heard[f"disk/{DATA}"].reason)
            assert node.pools[POOL].read(DATA, 0, 5) == b"to be"
            assert node.host.domains[VM].running
            await node.boss.change(KEY, power="off")
            await node.settled(f"disk/{DATA}", "ready")
            assert node.pools[POOL].read(DATA, 0, 5) == bytes(5)
            node.pools[POOL].failing["roll_back"] = CloudError(ErrorKind.ENGINE, "an OSD is away")
            await node.boss.change(f"disk/{DATA}", rollbacks=2)
            await node.boss.change(KEY, power="on", starts=2)
            await asyncio.sleep(30)
            assert not node.host.domains[VM].running, "it would see the bytes that are to be undone"
            del node.pools[POOL].failing["roll_back"]
            await node.settled(KEY, "running")
            assert node.pools[POOL].volumes[DATA].rolled_back == 2

    run(main())


@pytest.mark.parametrize(
    ("method", "change"),
    [("roll_back", {"rollbacks": 1, "rollback_to": "snp-1"}), ("delete", {"absent": True})],
)
def test_a_disk_that_one_who_died_has_open_is_waited_for(method: str, change: dict[str, Any]) -> None:
    """Ceph forgets who died with it open after 30 s; whoever has it open for longer is alive."""

    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(store(), shared(snapshots=snapshots("snp-1")))
            await node.settled(f"disk/{DATA}", "ready")
            node.pools[POOL].failing[method] = StillOpen(DATA, ["10.0.0.9:0/1"], "changed")
            await node.boss.change(f"disk/{DATA}", **change)
            await asyncio.sleep(40)
            heard = node.boss.heard[f"disk/{DATA}"]
            assert (heard.state, heard.settled) == ("working", False)
            assert "is open (10.0.0.9:0/1)" in heard.reason
            await asyncio.sleep(60)
            assert node.boss.heard[f"disk/{DATA}"].state == "error"
            del node.pools[POOL].failing[method]
            await node.until(lambda: node.boss.heard[f"disk/{DATA}"].state in ("ready", "absent"))

    run(main())


@pytest.mark.parametrize(
    ("method", "change"), [("delete", {"absent": True}), ("clear", {"incarnation": 1, "generation": 2})]
)
def test_what_a_killed_agent_was_removing_is_removed_before_its_disk_is_said_to_be_done(
    method: str, change: dict[str, Any]
) -> None:
    async def main() -> None:
        async with running_node() as node:
            pool = node.pools.setdefault(POOL, FakeDisk(shared=True))
            pool.half_removed[DATA] = 64
            pool.failing[method] = StillOpen(DATA, ["10.0.0.9:0/1"], "removed")
            if method == "clear":  # the new version was made, and the old one was on its way out
                pool.volumes[DATA] = FakeVolume(DATA, 1, FakeBytes(1024, None, 0), 1)
            await node.boss.want(store(), shared(**change))
            await node.until(lambda: f"disk/{DATA}" in node.boss.heard)
            await node.until(lambda: "is open (10.0.0.9:0/1)" in node.boss.heard[f"disk/{DATA}"].reason)
            assert not node.boss.heard[f"disk/{DATA}"].settled
            del pool.failing[method]
            await node.settled(f"disk/{DATA}", "absent" if method == "delete" else "ready")
            assert not pool.half_removed

    run(main())


def test_what_a_dead_process_has_spoilt_is_mended_while_no_vm_has_the_disk() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(store(), shared(), *one_vm(disks=with_data()))
            await node.settled(KEY, "running")
            pool = node.pools[POOL]
            pool.locked[DATA] = "10.0.0.9:0/1"
            pool.unmeasured.add(DATA)
            await node.until(lambda: node.boss.heard[f"disk/{DATA}"].used_mib is None)
            assert node.boss.heard[f"disk/{DATA}"].settled
            await asyncio.sleep(200)
            assert pool.locked and pool.unmeasured, "a guest has it open"
            pool.failing["mend"] = CloudError(ErrorKind.ENGINE, "an OSD is away")
            await node.boss.change(KEY, power="off")
            await node.settled(KEY, "stopped")
            await asyncio.sleep(200)
            assert node.boss.heard[f"disk/{DATA}"].state == "ready", "it is as good as it was"
            assert [left["locks"] for left in await lefts(node)] == [[[f"disk/{DATA}", "10.0.0.9:0/1"]]]
            del pool.failing["mend"]
            await node.until(lambda: node.boss.heard[f"disk/{DATA}"].used_mib == 0)
            assert not pool.locked and [left["locks"] for left in await lefts(node)] == [[]]

    run(main())


async def lefts(node: Node) -> list[dict[str, Any]]:
    reply = await node.boss.call("inventory")
    assert isinstance(reply.result, dict)
    found: list[dict[str, Any]] = reply.result["pool_left"]
    return found


def test_limits_are_told_to_the_storage_and_to_the_running_guest() -> None:
    async def main() -> None:
        async with running_node() as node:
            limits = DiskLimits(iops=100, kib_per_s=1024)
            await node.boss.want(store(), *one_vm(disks=with_data()), shared(limits=limits))
            await node.settled(KEY, "running")
            assert node.host.domains[VM].disks[DATA].limits == limits
            more = DiskLimits(iops=500)
            await node.boss.change(f"disk/{DATA}", limits=more)
            await node.settled(f"disk/{DATA}", "ready")
            assert node.host.domains[VM].disks[DATA].limits == more
            assert node.pools[POOL].volumes[DATA].limits == more
            calls = [method for method, _ in node.host.calls].count("limit_disk")
            await node.kill()
            node.start()
            await asyncio.sleep(100)
            assert [method for method, _ in node.host.calls].count("limit_disk") == calls
            await node.boss.change(f"disk/{DATA}", limits=DiskLimits())
            await node.settled(f"disk/{DATA}", "ready")
            assert node.host.domains[VM].disks[DATA].limits == DiskLimits()

    run(main())


def test_a_disk_that_goes_to_another_node_is_left_as_it_is() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(store(), shared())
            await node.settled(f"disk/{DATA}", "ready")
            making = node.pools[POOL].volumes[DATA].making
            await node.boss.want(drop=[f"disk/{DATA}"])
            await asyncio.sleep(100)
            assert node.pools[POOL].volumes[DATA].making == making
            await node.boss.want(shared())
            await node.settled(f"disk/{DATA}", "ready")
            assert node.pools[POOL].volumes[DATA].making == making

    run(main())


def test_another_way_to_a_cluster_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    first = FakePools.open

    def open_pool(self: FakePools, known: DesiredStore, pool: StorePool) -> Any:
        opened.append(f"{known.mon_host} {known.client_key}")
        return first(self, known, pool)

    monkeypatch.setattr(FakePools, "open", open_pool)

    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(store(), shared())
            await node.settled(f"disk/{DATA}", "ready")
            await node.boss.change(STORE, daemons=())
            await asyncio.sleep(100)
            assert opened == ["10.0.0.1 key-1"], "nothing that concerns disks has changed"
            await node.boss.change(STORE, mon_host="10.0.0.2", client_key="key-2")
            await node.until(lambda: len(opened) == 2)
            assert opened[1] == "10.0.0.2 key-2"
            assert node.host.secrets == {secret_of(CLUSTER, "scloud-n1"): "key-2"}

    run(main())


def test_a_cluster_that_is_away_harms_no_vm_on_it_nor_any_other() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(store(), *one_vm(disks=with_data()), shared())
            await node.settled(KEY, "running")
            away = CloudError(ErrorKind.UNAVAILABLE, "the storage cluster does not answer")
            for method in ("show", "locate", "create", "limit"):
                node.pools[POOL].failing[method] = away
            await node.boss.want(*one_vm(2))
            await node.settled(f"vm/{vm_id(2)}", "running")
            await asyncio.sleep(300)
            assert node.host.domains[VM].running and node.boss.settled(f"disk/{DATA}", "ready")
            await node.boss.change(KEY, cpus=2)
            await node.settled(KEY, "running")
            assert node.boss.heard[KEY].cpus == 2, "a running VM is worked on without its disk being looked at"
            await node.boss.change(KEY, power="off")
            await node.settled(KEY, "stopped")
            await node.boss.change(KEY, power="on", starts=2)
            await node.until(lambda: "does not answer" in node.boss.heard[KEY].reason)
            assert node.boss.heard[KEY].state == "working"
            node.pools[POOL].failing.clear()
            await node.settled(KEY, "running")
            await node.boss.change(f"disk/{DATA}", size_mib=2048)
            await node.settled(f"disk/{DATA}", "ready")
            assert node.host.domains[VM].sizes_mib[DATA] == 2048

    run(main())


async def _figures(node: Node) -> Any:
    return (await node.boss.call("disk_figures", vm=VM)).result


def test_figures_of_disks_are_told_without_the_nocloud_disk() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(store(), *one_vm(disks=with_data()), shared())
            await node.settled(KEY, "running")
            node.host.domains[VM].figures[DATA] = DiskFigures(
                disk=DATA, reads=1, writes=2, read_bytes=3, written_bytes=4, read_ns=5, write_ns=6, flush_ns=7
            )
            told = await _figures(node)
            assert [item["disk"] for item in told] == ["dsk-0000000000000001", DATA]
            assert told[1]["written_bytes"] == 4
            node.host.crash(VM)
            reply = await node.boss.call("disk_figures", vm="vm-unknown")
            assert reply.error is not None and reply.error[0] == "not_found"

    run(main())
