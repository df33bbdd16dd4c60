"""A cluster that is really full: what is said at each step, what is refused, what lets it go on. About 50 s."""

from __future__ import annotations

import asyncio
import os
import time
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
STEPS = {"nearfull": 0.20, "backfillfull": 0.29, "full": 0.30}
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


async def test_it_fills_up_and_says_so_at_each_step(adopted: Adopted) -> None:
    rig, admin = adopted.rig, adopted.cloud.admin
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
    began = time.monotonic()
    guest = Guest(adopted, "dsk-1.0", "scloud.small")

    async def step(name: str, path: str = "/pools/small") -> str:
        seen = await adopted.shown(lambda seen: name in {item["name"] for item in seen["conditions"]}, name, 90.0, path)
        (said,) = [item["message"] for item in seen["conditions"] if item["name"] == name]
        print(f"{time.monotonic() - began:.1f} s, {len(guest.pieces) * 4} MiB, {path}: {name}: {said}")
        return str(said)

    async def goes_on(after: str) -> None:
        since, written = time.monotonic(), len(guest.pieces)
        try:
            await adopted.cloud.eventually(_is(lambda: len(guest.pieces) > written + MORE), 60.0)
        except TimeoutError:
            raise AssertionError(f"it waits: {rig.mon('status')}, {rig.mon('osd dump')}") from None
        print(f"goes on {time.monotonic() - since:.1f} s after {after}")

    try:
        assert "from 20% on it takes no new disks" in await step("filling-up")
        assert "at 30% all writes would wait" in await step("near-full")
        before = len(guest.pieces)
        ask = {"name": "d", "spec": {"size_mib": 64, "type": "t"}}
        problem = await adopted.cloud.alice.fail("POST", "/disks", ask, status=409, code="no_capacity")
        print(problem["detail"])
        assert "no new disks are made" in problem["detail"] and "device add" in problem["detail"]
        await adopted.cloud.eventually(_is(lambda: len(guest.pieces) > before), 30.0)
        assert "ALL WRITES WAIT" in await step("full")
        assert "delete disks" in await step("full", "/storage-clusters/old")
        await adopted.cloud.eventually(_is(guest.waits), 30.0)
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
        await goes_on("a disk was deleted")
    finally:
        for name, ratio in USUAL.items():
            rig.mon(f"osd set-{name}-ratio", ratio=ratio)
        await guest.end()
    await guest.read_all()
    guest.image.image.close()
    await adopted.shown(lambda seen: seen["accepts_new"], "it takes disks again", 60.0, "/pools/small")
    await storage.close()


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
