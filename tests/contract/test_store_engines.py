"""The store on SQLite and on a real PostgreSQL: the same suite."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import insert, select

from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import Kind, State
from scloud.model.specs import DiskSpec, VpcSpec
from scloud.model.statuses import DiskStatus, Status
from scloud.store import operations, tables
from scloud.store.database import Store, Tx, open_postgres, open_sqlite
from scloud.store.disk_use import DiskUse, disk_use
from scloud.store.lease import Holder, LeaseLost, give_up_lease, guard_of, read_lease, take_lease
from scloud.store.resources import Resource, claim_value, create, find, page, remove
from scloud.store.schema import migrate
from support.clock import Clock
from support.postgres import Server, running

Opener = Callable[[], Store]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.engine)])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Opens the same database each time, as another process would."""
    made: list[Store] = []
    clock = Clock()
    url = request.getfixturevalue("server").database() if request.param == "postgres" else None

    def open_() -> Store:
        store = open_postgres(url, clock=clock) if url else open_sqlite(tmp_path / "scloud.db", clock=clock)
        migrate(store)
        made.append(store)
        return store

    yield open_
    for store in made:
        store.close()


@pytest.fixture
def store(opener: Opener) -> Store:
    return opener()


def vpc(name: str) -> Callable[[Tx], Resource]:
    return lambda tx: create(tx, Kind.VPC, "acc", name, VpcSpec(vni=1), Status(state=State.READY))


def names(store: Store) -> list[str]:
    query = select(tables.resource.c.name).order_by(tables.resource.c.name)
    return [row.name for row in store.read_now(lambda tx: list(tx.conn.execute(query)))]


def holder(name: str) -> Holder:
    return Holder(id=name, api="127.0.0.1:1", link="127.0.0.1:2")


async def test_writes_that_share_a_commit_fail_each_by_itself(store: Store) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(tx: Tx) -> None:
        started.set()
        assert go_on.wait(10)

    def wrong(tx: Tx) -> None:
        vpc("half")(tx)
        raise CloudError(ErrorKind.CONFLICT, "no")

    def broken(tx: Tx) -> None:
        vpc("none")(tx)
        tx.conn.execute(insert(tables.counter), [{"name": None, "value": 1}])

    first = asyncio.create_task(store.write(slow))
    await asyncio.to_thread(started.wait, 10)
    functions = (vpc("a"), wrong, vpc("b"), vpc("a"), broken, vpc("c"))
    rest = [asyncio.create_task(store.write(fn)) for fn in functions]
    await asyncio.sleep(0)
    go_on.set()
    await first
    results = await asyncio.gather(*rest, return_exceptions=True)
    failed = [isinstance(result, Exception) for result in results]
    assert failed == [False, True, False, True, True, False]
    assert names(store) == ["a", "b", "c"]


async def test_what_is_written_is_read_back_by_another_process(opener: Opener) -> None:
    one, other = opener(), opener()
    made = await one.write(vpc("a"))
    assert await other.read(lambda tx: find(tx, made.id)) == made


async def test_pages_follow_one_another(store: Store) -> None:
    made = [(await store.write(vpc(f"n{number}"))).id for number in range(7)]
    first, cursor = store.read_now(lambda tx: page(tx, Kind.VPC, "acc", limit=4, after=None, filters={}))
    second, end = store.read_now(lambda tx: page(tx, Kind.VPC, "acc", limit=4, after=cursor, filters={}))
    assert [row.id for row in (*first, *second)] == made and end is None


async def test_what_is_claimed_is_nobody_elses(store: Store) -> None:
    one, other = await store.write(vpc("a")), await store.write(vpc("b"))
    assert await store.write(lambda tx: claim_value(tx, "vni", "7", one.id))
    assert not await store.write(lambda tx: claim_value(tx, "vni", "7", other.id))
    await store.write(lambda tx: remove(tx, one))
    assert await store.write(lambda tx: claim_value(tx, "vni", "7", other.id))


async def test_work_is_due_when_it_is_due(store: Store) -> None:
    await store.write(lambda tx: operations.enqueue(tx, "vm/1", delay=10))
    await store.write(lambda tx: operations.enqueue(tx, "vm/2", delay=-1))
    due = await store.read(lambda tx: operations.due(tx))
    assert [item.key for item in due] == ["vm/2"]


async def test_a_write_that_does_not_fit_the_tables_says_so_and_changes_nothing(store: Store) -> None:
    heard: list[str] = []
    store.listeners.append(heard.extend)

    def wrong(tx: Tx) -> None:
        vpc("a")(tx)
        tx.conn.execute(insert(tables.counter), [{"name": None, "value": 1}])

    with pytest.raises(Exception, match=r"(?i)not.null"):
        store.write_now(wrong)
    assert heard == [] and names(store) == []


def test_migrations_lead_to_the_tables_as_declared(store: Store) -> None:
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, tables.metadata) == []


def test_the_lease_changes_hands_only_when_it_has_run_out_or_is_given_up(opener: Opener) -> None:
    one, other = opener(), opener()
    assert one.write_now(lambda tx: take_lease(tx, holder("one"), 600)) == 1
    assert one.write_now(lambda tx: take_lease(tx, holder("one"), 600)) == 1
    assert other.write_now(lambda tx: take_lease(tx, holder("other"), 600)) is None
    found = other.read_now(read_lease)
    assert found is not None and found.holder == holder("one") and 0 < found.left_s <= 600
    one.write_now(lambda tx: give_up_lease(tx, 1))
    assert other.write_now(lambda tx: take_lease(tx, holder("other"), 600)) == 2
    one.write_now(lambda tx: give_up_lease(tx, 1))
    assert one.write_now(lambda tx: take_lease(tx, holder("one"), 600)) is None


@pytest.mark.engine
async def test_an_old_leader_writes_nothing_more(server: Server) -> None:
    """Whatever it believes, and however many writes are waiting; what it has in hand is done before the next leads."""
    url = server.database()
    old, new = open_postgres(url, clock=Clock()), open_postgres(url, clock=Clock())
    try:
        migrate(old)
        epoch = old.write_now(lambda tx: take_lease(tx, holder("old"), 0))
        assert epoch == 1
        old.guard = guard_of(epoch)
        await old.write(vpc("a"))
        started, go_on = threading.Event(), threading.Event()

        def slow(tx: Tx) -> None:
            started.set()
            assert go_on.wait(10)
            vpc("in hand")(tx)

        writing = asyncio.create_task(old.write(slow))
        await asyncio.to_thread(started.wait, 10)
        rest = [asyncio.create_task(old.write(vpc(name))) for name in ("b", "c")]
        taking = asyncio.create_task(asyncio.to_thread(new.write_now, lambda tx: take_lease(tx, holder("new"), 600)))
        done, _ = await asyncio.wait([taking], timeout=0.3)
        assert not done, "it leads while the old one is in the middle of a commit"
        go_on.set()
        await writing
        assert await taking == 2
        results = await asyncio.gather(*rest, old.write(vpc("d")), return_exceptions=True)
        assert isinstance(results[-1], LeaseLost)
        assert names(new) == sorted(
            ["a", "in hand"] + [n for n, r in zip("bc", results, strict=False) if isinstance(r, Resource)]
        )
        with pytest.raises(LeaseLost):
            old.write_now(vpc("e"))
    finally:
        old.close()
        new.close()


def test_disks_are_summed_up_by_account_type_and_pool(store: Store) -> None:
    def make(tx: Tx) -> None:
        for number, (account, pool, used, state) in enumerate(
            (
                ("a", "pol-1", 30, State.READY),
                ("a", "pol-1", 4, State.TRASHED),
                ("a", None, None, State.READY),
                ("b", "pol-1", None, State.PENDING),
            )
        ):
            spec = DiskSpec(size_mib=100 + number, type="fast" if pool else None, pool=pool)
            create(tx, Kind.DISK, account, f"d{number}", spec, DiskStatus(state=state, used_mib=used))

    store.write_now(make)
    assert store.read_now(disk_use) == {
        ("a", "fast", "pol-1"): DiskUse(disks=2, provisioned_mib=201, used_mib=34, trashed=1, trashed_mib=4),
        ("a", None, None): DiskUse(disks=1, provisioned_mib=102),
        ("b", "fast", "pol-1"): DiskUse(disks=1, provisioned_mib=103),
    }
    assert list(store.read_now(lambda tx: disk_use(tx, "b"))) == [("b", "fast", "pol-1")]
