"""Two devices of an erasure-coded pool that die at once, and a wrong key; on a real cluster. About 65 s."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Literal

import pytest
from bad_luck_rig import Adopted, groups, names, pending

from scloud.model.desired import DesiredStore
from scloud.model.observed import Observed
from support.ceph_rig import CephRig
from support.cloud import Cloud

pytestmark = pytest.mark.engine
MIB = 1 << 20
PIECE = 4 * MIB


async def test_two_hosts_of_an_erasure_coded_pool_die(adopted: Adopted) -> None:
    """What is on four chunks of six waits, and goes on once one is back or rebuilt on another host; nothing is lost."""
    rig = adopted.rig
    await adopted.pool("wide", redundancy="ec:4+2")
    image = adopted.image("disk", "scloud.wide", 128, "scloud.wide.data")
    data = [os.urandom(PIECE) for _ in range(8)]
    for number, piece in enumerate(data):
        await image.write(number * PIECE, piece)
    (pool,) = [item for item in rig.mon("osd dump")["pools"] if item["pool_name"] == "scloud.wide.data"]
    dead = groups(rig, pool["pool"])[0][:2]

    async def everything() -> None:
        for number, piece in enumerate(data):
            assert await image.read(number * PIECE, PIECE) == piece
            await image.write((8 + number) * PIECE, piece)

    await wait_with_two_dead(adopted, dead)
    working = await pending(everything(), 2.0)
    try:
        began = time.monotonic()
        rig.start_osd(dead[0])
        await asyncio.wait_for(asyncio.shield(working), 60.0)
        print(f"one back, everything read and written {time.monotonic() - began:.1f} s after")
    finally:
        for number in dead:
            if not rig.is_up(number):
                rig.start_osd(number)
    await adopted.clean()
    # And again, with both gone for good.
    try:
        await wait_with_two_dead(adopted, dead)
        working = await pending(everything(), 2.0)
        began = time.monotonic()
        # What the monitors do by themselves after ten minutes.
        rig.mon("osd out", ids=[str(number) for number in dead])
        await asyncio.wait_for(asyncio.shield(working), 60.0)
        print(f"rebuilt elsewhere, everything read and written {time.monotonic() - began:.1f} s after")
        await adopted.shown(lambda seen: "data-unavailable" not in names(seen), "nothing waits")
    finally:
        for number in dead:
            if not rig.is_up(number):
                rig.start_osd(number)
        rig.mon("osd in", ids=[str(number) for number in dead])
    for number, piece in enumerate(data):
        assert await image.read((8 + number) * PIECE, PIECE) == piece
    image.image.close()
    await adopted.cloud.admin.end("DELETE", "/pools/wide")


async def wait_with_two_dead(adopted: Adopted, dead: list[int]) -> None:
    """They die, and `show` says what waits."""
    began = time.monotonic()
    for number in dead:
        adopted.rig.kill_osd(number)
    seen = await adopted.shown(lambda seen: "data-unavailable" in names(seen), "some data waits", 30.0)
    print(f"noticed after {time.monotonic() - began:.1f} s")
    (said,) = [item["message"] for item in seen["conditions"] if item["name"] == "data-unavailable"]
    assert "nothing is lost" in said and "rebuilt on other hosts" in said


async def test_a_key_that_is_not_the_clusters_is_refused_and_nothing_is_left(
    eight_hosts: CephRig, tmp_path: Path
) -> None:
    async with Cloud(tmp_path) as cloud:
        made = Adopted(cloud, eight_hosts)
        await made.join()
        made.node.stores = gone
        users = {entry["entity"] for entry in eight_hosts.mon("auth ls")["auth_dump"]}
        spec = made.spec("AQBSdFhnAAAAABAAQ1ihzvQ8gmv7PCPDBNPIBA==")
        op = await cloud.admin.end("POST", "/storage-clusters", {"name": "wrong", "spec": spec}, state="failed")
        assert "does not take the key" in op["message"]
        assert {entry["entity"] for entry in eight_hosts.mon("auth ls")["auth_dump"]} == users
        await cloud.admin.end("DELETE", "/storage-clusters/wrong")
        assert await cloud.admin.list("/storage-clusters") == []
        await made.control.close()


def gone(item: DesiredStore) -> Observed:
    state: Literal["absent", "ready"] = "absent" if item.absent else "ready"
    return Observed(key=f"store/{item.id}", generation=item.generation, state=state, settled=True)
