"""What one manager does with the lease, on a database that answers, or does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scloud.standby import leadership as leadership_module
from scloud.standby.aside import SETTLE_S
from scloud.standby.leadership import LEASE_S, Leadership
from scloud.store.database import Store, open_sqlite
from scloud.store.lease import Holder, LeaseLost, announce, read_lease
from scloud.store.schema import migrate

ONE, OTHER = (Holder(id=name, api="127.0.0.1:1", link="127.0.0.1:2") for name in ("one", "other"))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """SQLite has no rivals and no locks on rows: what proves the lease in each write is PostgreSQL's to test."""
    monkeypatch.setattr(leadership_module, "guard_of", lambda epoch: None)
    made = open_sqlite(tmp_path / "db", clock=time.time)
    migrate(made)
    yield made
    made.close()


async def led_for(store: Store, seconds: float) -> Leadership:
    """One that has gained the lease so long ago, and renews it from now on."""
    found = Leadership(store, ONE)
    assert await found.gain(lambda: 0) == 1
    found._gained_at -= seconds
    return found


async def test_the_lease_counts_from_when_it_was_gained_however_long_loading_took(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    leading = await led_for(store, LEASE_S - 0.1)

    async def hang(_: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(store, "write", hang)
    async with asyncio.timeout(LEASE_S / 2):
        with pytest.raises(LeaseLost, match="its lease has run out"):
            await leading.keep(lambda: 1)


async def test_the_lease_goes_to_a_standby_that_more_nodes_reach_and_to_no_other(store: Store) -> None:
    leading = await led_for(store, SETTLE_S)
    third = OTHER.model_copy(update={"id": "third"})
    store.write_now(lambda tx: announce(tx, OTHER, LEASE_S, epoch=1, stranded=2))
    store.write_now(lambda tx: announce(tx, third, LEASE_S, epoch=1))
    with pytest.raises(LeaseLost, match=r"epoch 1, and another leads now \(epoch 2\)"):
        async with asyncio.timeout(10):
            await leading.keep(lambda: 1)
    lease = store.read_now(read_lease)
    assert lease is not None and (lease.holder, lease.epoch) == (OTHER, 2) and lease.left_s > 0
    assert await Leadership(store, OTHER).gain(lambda: 0) == 2, "it leads as soon as it looks"


@pytest.mark.parametrize(("epoch", "stranded", "heard"), [(1, 2, 2), (7, 2, 0), (1, 0, 0)])
async def test_it_stays_where_that_helps_nobody_or_the_word_is_about_another_leader(
    store: Store, monkeypatch: pytest.MonkeyPatch, epoch: int, stranded: int, heard: int
) -> None:
    monkeypatch.setattr(leadership_module, "RENEW_S", 0.01)
    leading = await led_for(store, SETTLE_S)
    asked = asyncio.Event()
    turns = 0

    def heard_now() -> int:
        nonlocal turns
        turns += 1
        if turns == 3:
            asked.set()
        return heard

    store.write_now(lambda tx: announce(tx, OTHER, LEASE_S, epoch=epoch, stranded=stranded))
    keeping = asyncio.create_task(leading.keep(heard_now))
    await asyncio.wait([keeping, asyncio.create_task(asked.wait())], timeout=10, return_when=asyncio.FIRST_COMPLETED)
    assert asked.is_set() and not keeping.done()
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    lease = store.read_now(read_lease)
    assert lease is not None and (lease.holder, lease.epoch) == (ONE, 1)
