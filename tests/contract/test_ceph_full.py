"""A cluster that is really full: what is said at each step, what is refused, what lets it go on. About 80 s."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from bad_luck_rig import Adopted

from scloud.drivers.storage.rbd import RadosPool, RbdStorage
from scloud.drivers.storage.rbd_cluster import Cluster, ClusterAccess
from scloud.model.errors import CloudError, ErrorKind

pytestmark = pytest.mark.engine
MIB = 1 << 20
PIECE = 4 * MIB
PAUSE_S = 0.1
"""Between two writes: the monitors notice a few seconds late that a device is full, and small ones fill quickly."""
SPARE_MIB = 80
MORE = 8
"""Pieces by which it is seen that there is room again; at the limit itself one or two get through now and then."""
MORE_DEVICES = 6
"""Enough that each of the first three is rid of most of its placement groups, however few there are and wherever these
fall: with three more, one in several times two were left nearly as full as they were."""
STEPS = {"nearfull": 0.20, "backfillfull": 0.29, "full": 0.30}
SHORT_LOGS = {"osd_min_pg_log_entries": 1, "osd_max_pg_log_entries": 1, "osd_pg_log_trim_min": 1}
"""Where there is a lot of data, a placement group's log does not reach back to its beginning, and what is to move is
copied as a whole. In this little, the log would have all of it, and what is missing by the log is not written anywhere
while one of its devices is full."""
USUAL = {"full": 0.95, "backfillfull": 0.90, "nearfull": 0.85}


class Guest:
    """Writes on and on, and counts what was written and flushed."""

    def __init__(self, adopted: Adopted, name: str, pool: str) -> None:
        self.image = adopted.opened(name, pool)
        self.pieces: list[bytes] = []
        self.since = time.monotonic()
        self._writing = asyncio.ensure_future(self._write())
        self._stop = False

    async def _write(self) -> None:
        while not self._stop:
            piece = os.urandom(64) * (PIECE // 64)
            await self.image.write(len(self.pieces) * PIECE, piece)
            self.pieces.append(piece[:64])
            self.since = time.monotonic()
            await asyncio.sleep(PAUSE_S)

    def waits(self) -> bool:
        return time.monotonic() - self.since > 3.0

    async def end(self) -> None:
        self._stop = True
        await asyncio.wait_for(self._writing, 30.0)

    async def read_all(self) -> None:
        for number, piece in enumerate(self.pieces):
            assert (await self.image.read(number * PIECE, PIECE)) == piece * (PIECE // 64)


class Filling:
    """A pool on three small devices, with limits that are soon reached, and a guest that writes until they are."""

    def __init__(self, adopted: Adopted, storage: RbdStorage) -> None:
        self.adopted, self.rig, self.storage = adopted, adopted.rig, storage
        self.began = time.monotonic()
        self.guest = Guest(adopted, "dsk-1.0", "scloud.small")

    async def step(self, name: str, path: str = "/pools/small") -> str:
        """What is said once there is this condition."""
        seen = await self.adopted.shown(
            lambda seen: name in {item["name"] for item in seen["conditions"]}, name, 90.0, path
        )
        (said,) = [item["message"] for item in seen["conditions"] if item["name"] == name]
        written = len(self.guest.pieces) * 4
        print(f"{time.monotonic() - self.began:.1f} s, {written} MiB, {path}: {name}: {said}")
        return str(said)

    async def waits(self) -> None:
        await self.adopted.cloud.eventually(_is(self.guest.waits), 30.0)

    async def goes_on(self, after: str, seconds: float = 60.0) -> None:
        since, written = time.monotonic(), len(self.guest.pieces)
        try:
            await self.adopted.cloud.eventually(_is(lambda: len(self.guest.pieces) > written + MORE), seconds)
        except TimeoutError:
            raise AssertionError(f"it waits: {self.rig.mon('status')}, {self.rig.mon('osd dump')}") from None
        print(f"goes on {time.monotonic() - since:.1f} s after {after}")


@pytest.fixture
async def filling(adopted: Adopted) -> AsyncIterator[Filling]:
    rig, admin = adopted.rig, adopted.cloud.admin
    for name, value in SHORT_LOGS.items():
        rig.mon("config set", who="osd", name=name, value=str(value))
    pool = await adopted.pool("small", redundancy="replica:3", media="ssd")
    await admin.create("disk-types", "t", pool="small")
    storage = driver(adopted, pool)
    await storage.create("dsk-1", 2048, None)
    await storage.create("dsk-2", SPARE_MIB, None)
    spare = adopted.opened("dsk-2.0", "scloud.small")
    for number in range(SPARE_MIB * MIB // PIECE):
        await spare.write(number * PIECE, os.urandom(PIECE))
    spare.image.close()
    await admin.end("PATCH", "/storage-clusters/old", {"spec": {"warn_percent": 15}})
    for name, ratio in STEPS.items():
        rig.mon(f"osd set-{name}-ratio", ratio=ratio)
    found = Filling(adopted, storage)
    try:
        yield found
    finally:
        for name, ratio in USUAL.items():
            rig.mon(f"osd set-{name}-ratio", ratio=ratio)
        await found.guest.end()
        await found.guest.read_all()
        found.guest.image.image.close()
        await storage.close()


async def test_it_fills_up_and_says_so_at_each_step(filling: Filling) -> None:
    adopted, storage, guest = filling.adopted, filling.storage, filling.guest
    assert "from 20% on it takes no new disks" in await filling.step("filling-up")
    assert "at 30% all writes would wait" in await filling.step("near-full")
    before = len(guest.pieces)
    ask = {"name": "d", "spec": {"size_mib": 64, "type": "t"}}
    problem = await adopted.cloud.alice.fail("POST", "/disks", ask, status=409, code="no_capacity")
    print(problem["detail"])
    assert "no new disks are made" in problem["detail"] and "device add" in problem["detail"]
    await adopted.cloud.eventually(_is(lambda: len(guest.pieces) > before), 30.0)
    assert "ALL WRITES WAIT" in await filling.step("full")
    assert "delete disks" in await filling.step("full", "/storage-clusters/old")
    await filling.waits()
    await guest.read_all()
    # A guest's write waits; what the product itself wants to write is refused, and what makes room is done.
    with pytest.raises(CloudError) as refused:
        async with asyncio.timeout(15.0):
            await storage.create("dsk-3", 64, None)
    assert refused.value.kind is ErrorKind.NO_CAPACITY, refused.value
    print(refused.value.message)
    assert guest.waits()
    # Whoever is dead is cut off all the same.
    async with asyncio.timeout(15.0):
        await storage.fence("n9")
        assert await storage.is_fenced("n9")
        await storage.unfence("n9")
    async with asyncio.timeout(15.0):
        await storage.delete("dsk-2")
    assert [fact.disk for fact in await storage.disks()] == ["dsk-1"]
    await filling.goes_on("a disk was deleted")
    for name, ratio in USUAL.items():
        filling.rig.mon(f"osd set-{name}-ratio", ratio=ratio)
    await adopted.shown(lambda seen: seen["accepts_new"], "it takes disks again", 60.0, "/pools/small")


async def test_devices_that_are_added_let_it_go_on(filling: Filling) -> None:
    await filling.step("full")
    await filling.waits()
    for number in range(MORE_DEVICES):
        filling.rig.add_osd(f"datacenter=d{number} rack=r{number} host=more{number}", "ssd")
    await filling.goes_on(f"{MORE_DEVICES} devices were added", 120.0)
    assert {item["name"] for item in (await filling.adopted.status())["conditions"]}.isdisjoint({"full"})


def _is(true: Any) -> Any:
    async def so() -> bool:
        return bool(true())

    return so


def driver(adopted: Adopted, pool: dict[str, Any]) -> RbdStorage:
    """As the node's agent has it, once the cluster lets it in."""
    spec, rig = pool["spec"], adopted.rig
    key = rig.mon("auth get-key", entity="client.scloud-n1")["key"]
    access = ClusterAccess("n1", "old", rig.mon_host, "scloud-n1", key)
    return RbdStorage(Cluster(access), RadosPool(spec["rados_name"], spec.get("data_name")), rig.conf)
