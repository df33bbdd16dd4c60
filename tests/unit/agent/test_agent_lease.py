"""How long a node lets VMs with disks of a storage cluster run without hearing that it may."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import cast

import pytest
from agent_clock import VirtualLoop, run
from agent_node import POOL

from scloud.agent.journal import MemoryJournal
from scloud.agent.lease import MANAGER_S, Leases
from scloud.agent.stores import Stores
from scloud.model.desired import DesiredDisk, DesiredStore, StorePool
from scloud.model.errors import CloudError, ErrorKind

LEASE_S = 4.0
CUT_OFF = CloudError(ErrorKind.CONFLICT, "node is cut off from this storage")


class Cluster:
    """Answers of a pool's disks and of the monitors: a value, an error, or none ever (None)."""

    def __init__(self, disks: bool | CloudError | None, monitors: bool | CloudError | None) -> None:
        self.disks, self.monitors = disks, monitors

    def of(self, pool: str | None) -> Cluster:
        assert pool == POOL
        return self

    async def is_refused(self) -> bool:
        return await self._say(self.disks)

    async def is_cut_off(self) -> bool:
        return await self._say(self.monitors)

    @staticmethod
    async def _say(answer: bool | CloudError | None) -> bool:
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, CloudError):
            raise answer
        return bool(answer)


class Guests:
    def __init__(self) -> None:
        self.given_up: list[tuple[float, str]] = []

    async def switch_off(self, disks: Iterable[str], why: str) -> list[str]:
        assert list(disks) == ["dsk-1"]
        self.given_up.append((asyncio.get_running_loop().time(), why))
        return []


async def watched(
    cluster: Cluster, *, manager: bool, seconds: float = 30.0, lease_s: float = LEASE_S
) -> list[tuple[float, str]]:
    """When guests were given up within so many seconds, and why."""
    journal, guests = MemoryJournal(), Guests()
    pool = StorePool(id=POOL, name="p")
    store = DesiredStore(
        id="sto-1.n1",
        generation=1,
        cluster="sto-1",
        fsid="f",
        mon_host="192.0.2.1:6789",
        client="scloud-n1",
        lease_s=lease_s,
        pools=(pool,),
    )
    disk = DesiredDisk(id="dsk-1", generation=1, size_mib=8, image=None, image_sha256=None, pool=POOL)
    await journal.apply([store, disk], [])

    async def answers() -> bool:
        if not manager:
            await asyncio.sleep(MANAGER_S)
        return manager

    began = asyncio.get_running_loop().time()
    leases = Leases(cast(Stores, cluster), journal, guests, answers)
    task = asyncio.ensure_future(leases.run())
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return [(at - began, why) for at, why in guests.given_up]


@pytest.mark.parametrize(("disks", "monitors"), [(False, None), (None, False), (False, False)])
def test_whoever_of_the_cluster_answers_keeps_the_lease(disks: bool | None, monitors: bool | None) -> None:
    """A node has died with its OSDs or the leading monitor, and the manager with it: that is no reason to stop."""
    assert run(watched(Cluster(disks, monitors), manager=False)) == []


def test_without_anybody_guests_are_given_up_when_the_lease_is_over() -> None:
    given_up = run(watched(Cluster(None, None), manager=False))
    assert given_up and LEASE_S <= given_up[0][0] <= LEASE_S + 1.0
    assert "neither their storage cluster nor the manager" in given_up[0][1]
    assert run(watched(Cluster(None, None), manager=True)) == [], "the manager answers: it is not cut off"


class NodeDied(Cluster):
    """As after the silent death of a node with the leading monitor, 5 s after this was made: disks go on to answer for
    three seconds, monitors are silent from one second before that until they have elected another."""

    def __init__(self) -> None:
        super().__init__(None, None)
        self.died = asyncio.get_running_loop().time() + 5.0

    async def is_refused(self) -> bool:
        return await self._say(False if asyncio.get_running_loop().time() < self.died + 3.0 else None)

    async def is_cut_off(self) -> bool:
        now = asyncio.get_running_loop().time()
        if self.died + 2.0 < now < self.died + 4.8:
            await asyncio.sleep(self.died + 4.8 - now)
        return False


def test_monitors_are_asked_anew_while_nobody_else_answers() -> None:
    """What they answer after their election was asked before it, and says nothing of now."""

    async def one() -> list[tuple[float, str]]:
        return await watched(NodeDied(), manager=False)

    assert run(one()) == []


@pytest.mark.parametrize("pause_s", [3.0, 60.0])
def test_an_agent_that_stood_still_asks_before_it_gives_up(pause_s: float) -> None:
    """Its process was stopped, or its machine had no time for it: everybody else is well."""

    async def one() -> list[tuple[float, str]]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        for at in (7.3, 7.9, 12.05):
            loop.call_later(at, lambda: setattr(loop, "now", loop.now + pause_s))
        return await watched(Cluster(False, False), manager=True, seconds=300.0)

    assert run(one()) == []


@pytest.mark.parametrize("lease_s", [2.2, 3.3, 4.1, 7.7])
def test_a_lease_of_any_length_ends_in_its_time(lease_s: float) -> None:
    given_up = run(watched(Cluster(None, None), manager=False, lease_s=lease_s))
    assert lease_s <= given_up[0][0] <= lease_s + 1.0


@pytest.mark.parametrize(("disks", "monitors"), [(None, True), (True, None), (CUT_OFF, None), (CUT_OFF, False)])
def test_who_was_cut_off_gives_its_guests_up_at_once(
    disks: bool | CloudError | None, monitors: bool | CloudError | None
) -> None:
    given_up = run(watched(Cluster(disks, monitors), manager=True))
    assert given_up and given_up[0][0] <= 2.0
    assert "was cut off" in given_up[0][1]
