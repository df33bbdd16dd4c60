"""The manager, its controllers and API, on a real cluster of eight hosts in four racks of three datacenters,
all on this machine.

The cluster is adopted: its daemons are the rig's, everything else is the product's. Hosts are places in the CRUSH tree.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rbd

from scloud.agent.ceph_calls import CephCalls
from scloud.controllers.storage import controller
from scloud.drivers.ceph.control import RadosControl
from support.ceph_rig import CephRig
from support.cloud import Cloud
from support.node import ScriptedNode

FIRST_PORT = 17400
HOSTS = 8
RACK_OF = tuple(number // 2 for number in range(HOSTS))
DATACENTER_OF = tuple(min(rack, 2) for rack in RACK_OF)
PLACES = tuple(f"datacenter=d{DATACENTER_OF[n]} rack=r{RACK_OF[n]} host=h{n}" for n in range(HOSTS))
SSDS = range(5, HOSTS)
"""OSDs that are called ssd, a host each: what fills these up leaves the others alone."""


@pytest.fixture(scope="module")
def eight_hosts() -> Iterator[CephRig]:
    """A cluster of its own for each module: what they do to it does not end with a test."""
    with CephRig(FIRST_PORT, osd_gib=1, places=PLACES) as rig:
        ids = [str(number) for number in range(HOSTS)]
        rig.mon("osd crush rm-device-class", ids=ids)
        for name, chosen in (("hdd", range(SSDS.start)), ("ssd", SSDS)):
            rig.mon("osd crush set-device-class", ids=[str(number) for number in chosen], **{"class": name})
        yield rig


class Adopted:
    """`async with Adopted(cloud, rig) as adopted`: the cluster `old`, adopted by a cloud with one node, and let go."""

    def __init__(self, cloud: Cloud, rig: CephRig) -> None:
        self.cloud, self.rig = cloud, rig
        self.control = RadosControl()
        self.node: ScriptedNode

    def spec(self, key: str | None = None) -> dict[str, Any]:
        key = key or self.rig.mon("auth get-key", entity="client.admin")["key"]
        conf = f"[global]\nfsid = {self.rig.fsid}\nmon host = {self.rig.mon_host}\n"
        return {"mode": "adopted", "conf": conf, "keyring": f"[client.admin]\n\tkey = {key}\n"}

    async def join(self) -> None:
        self.node = await self.cloud.node("n1")
        self.node.answers["ceph_command"] = CephCalls(self.control).command

    async def __aenter__(self) -> Adopted:
        await self.join()
        await self.cloud.admin.create("storage-clusters", "old", **self.spec())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Other clouds begin with an empty cluster."""
        for pool in self.rig.mon("osd dump")["pools"]:
            self.rig.delete_pool(pool["pool_name"])
        await self.control.close()

    async def pool(self, name: str, **spec: Any) -> dict[str, Any]:
        return await self.cloud.admin.create("pools", name, cluster="old", **spec)

    async def status(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.cloud.admin.get("/storage-clusters/old"))["status"]
        return found

    async def shown(
        self, true: Callable[[dict[str, Any]], Any], what: str, seconds: float = 60.0, path: str = "old"
    ) -> dict[str, Any]:
        """What `show` says once something is so of it."""
        path = f"/storage-clusters/{path}" if "/" not in path else path
        seen: dict[str, Any] = {}

        async def so() -> bool:
            nonlocal seen
            seen = (await self.cloud.admin.get(path))["status"]
            return bool(true(seen))

        try:
            await self.cloud.eventually(so, seconds)
        except TimeoutError:
            raise AssertionError(f"not within {seconds:g} s: {what}: {seen}") from None
        return seen

    async def clean(self) -> None:
        await self.shown(lambda seen: _only_clean(seen["placement_groups"]), "every placement group is clean", 90.0)

    async def disk(self, name: str, type: str) -> str:
        """The id of a disk as the manager has it; what is in the cluster is the test's to make."""
        made = await self.cloud.alice.do("POST", "/disks", {"name": name, "spec": {"size_mib": 16, "type": type}})
        return str(made["resource"]["id"])

    def opened(self, name: str, pool: str) -> Image:
        self.rig.admin.wait_for_latest_osdmap()  # another test's pool had the same name
        context = self.rig.admin.open_ioctx(pool)
        return Image(rbd.Image(context, name))

    def image(self, name: str, pool: str, mib: int, data: str | None = None) -> Image:
        context = self.rig.admin.open_ioctx(pool)
        rbd.RBD().create(context, name, mib << 20, old_format=False, features=1 | 4, data_pool=data)
        return Image(rbd.Image(context, name))


def _only_clean(groups: dict[str, int]) -> bool:
    """Nothing is left to be moved, either."""
    states = [set(state.split("+")) for state in groups]
    return bool(states) and all({"active", "clean"} <= state and "remapped" not in state for state in states)


class Image:
    """An image that is written and read as a guest's disk is: in threads, for as long as it takes."""

    def __init__(self, image: Any) -> None:
        self.image = image
        self.id: str = image.id()

    async def write(self, offset: int, data: bytes) -> None:
        await asyncio.to_thread(self._write, offset, data)

    def _write(self, offset: int, data: bytes) -> None:
        self.image.write(data, offset)
        self.image.flush()

    async def read(self, offset: int, length: int) -> bytes:
        return bytes(await asyncio.to_thread(self.image.read, offset, length))


def rot(block: Path, sample: bytes) -> int:
    """Garbage over the place where a sample of what was written lies on a device; how many places there were."""
    found = 0
    with block.open("r+b") as file:
        size, offset = os.fstat(file.fileno()).st_size, 0
        while offset < size:
            try:
                offset = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), offset, os.SEEK_HOLE)
            data = os.pread(file.fileno(), end - offset, offset)
            at = data.find(sample)
            while at >= 0:
                os.pwrite(file.fileno(), os.urandom(len(sample)), offset + at)
                found += 1
                at = data.find(sample, at + len(sample))
            offset = end
        os.fsync(file.fileno())
    return found


async def pending(work: Awaitable[Any], seconds: float) -> asyncio.Task[Any]:
    """Something that must not end within so long."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait({task}, timeout=seconds)
    assert not done, f"it ended: {task.result()!r}"
    return task  # type: ignore[return-value]


@pytest.fixture
async def adopted(eight_hosts: CephRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Adopted]:
    """A cloud that has adopted the cluster; looks follow one another faster than they would."""
    for name in ("SOON_S", "MOVING_S", "CALM_S"):
        monkeypatch.setattr(controller, name, min(0.5, getattr(controller, name)))
    async with Cloud(tmp_path) as cloud, Adopted(cloud, eight_hosts) as found:
        yield found


def groups(rig: CephRig, pool: int) -> list[list[int]]:
    """The OSDs of each placement group of a pool."""
    found = [rig.mon("pg map", pgid=f"{pool}.{number:x}")["up"] for number in range(8)]
    assert found
    return found


def names(status: dict[str, Any]) -> set[str]:
    """Of a cluster's conditions."""
    return {item["name"] for item in status["conditions"]}
