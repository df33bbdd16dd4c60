"""The writer: grouped commits whose writes fail each by itself; and the schema."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import insert, select, text

from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import Kind, State
from scloud.model.specs import VpcSpec
from scloud.model.statuses import Status
from scloud.store import tables
from scloud.store.database import Store, Tx, open_sqlite
from scloud.store.resources import Resource, create, find
from scloud.store.schema import migrate
from support.clock import Clock


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = open_sqlite(tmp_path / "db" / "scloud.db", clock=Clock())
    migrate(made)
    yield made
    made.close()


def vpc(name: str):  # type: ignore[no-untyped-def]
    return lambda tx: create(tx, Kind.VPC, "acc", name, VpcSpec(vni=1), Status(state=State.READY))


def names(store: Store) -> list[str]:
    query = select(tables.resource.c.name).order_by(tables.resource.c.id)
    return [row.name for row in store.read_now(lambda tx: list(tx.conn.execute(query)))]


async def test_what_one_write_does_wrong_is_its_own(store: Store) -> None:
    commits: list[list[str]] = []
    store.listeners.append(lambda keys: commits.append(list(keys)))
    started, go_on = threading.Event(), threading.Event()

    def slow(tx: Tx) -> None:
        started.set()
        assert go_on.wait(10)

    def wrong(tx: Tx) -> None:
        vpc("half")(tx)
        raise CloudError(ErrorKind.CONFLICT, "no")

    first = asyncio.create_task(store.write(slow))
    await asyncio.to_thread(started.wait, 10)
    # All of these are waiting while the first is at work, so they share the next commit.
    rest = [
        asyncio.create_task(store.write(fn)) for fn in (vpc("a"), wrong, vpc("b"), vpc("a"), lambda tx: 1 / 0, vpc("c"))
    ]
    await asyncio.sleep(0)
    go_on.set()
    await first
    results = await asyncio.gather(*rest, return_exceptions=True)
    kinds = [result.kind if isinstance(result, CloudError) else type(result).__name__ for result in results]
    assert kinds == ["Resource", "conflict", "Resource", "conflict", "ZeroDivisionError", "Resource"]
    assert names(store) == ["a", "b", "c"]
    assert len(commits) == 1 and len(commits[0]) == 3


async def test_a_full_disk_undoes_one_write_and_no_other(store: Store) -> None:
    """SQLite then ends the transaction by itself: what shares the commit is neither lost nor half done."""
    await store.write(vpc("a"))
    await store.write(lambda tx: tx.conn.execute(text("PRAGMA max_page_count = 100")))
    started, go_on = threading.Event(), threading.Event()

    def slow(tx: Tx) -> None:
        started.set()
        assert go_on.wait(10)

    def big(tx: Tx) -> None:
        for number in range(2000):
            vpc(f"{number}-{'x' * 50}")(tx)

    first = asyncio.create_task(store.write(slow))
    await asyncio.to_thread(started.wait, 10)
    rest = [asyncio.create_task(store.write(fn)) for fn in (vpc("b"), big, vpc("c"))]
    await asyncio.sleep(0)
    go_on.set()
    await first
    before, failed, after = await asyncio.gather(*rest, return_exceptions=True)
    assert isinstance(before, Resource) and isinstance(after, Resource)
    assert isinstance(failed, CloudError) and failed.kind is ErrorKind.UNAVAILABLE
    assert "full" in failed.message and "nothing was done" in failed.message
    assert names(store) == ["a", "b", "c"]
    await store.write(lambda tx: tx.conn.execute(text("PRAGMA max_page_count = 1073741823")))
    await store.write(vpc("d"))
    assert names(store) == ["a", "b", "c", "d"]


async def test_a_caller_that_gives_up_does_not_undo_its_write(store: Store) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(tx: Tx) -> None:
        started.set()
        assert go_on.wait(10)
        vpc("kept")(tx)

    writing = asyncio.create_task(store.write(slow))
    await asyncio.to_thread(started.wait, 10)
    writing.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await writing
    await store.write(vpc("after"))
    assert names(store) == ["kept", "after"]


async def test_a_read_sees_the_last_commit_and_not_what_is_being_written(store: Store) -> None:
    started, go_on = threading.Event(), threading.Event()

    def slow(tx: Tx) -> None:
        vpc("new")(tx)
        started.set()
        assert go_on.wait(10)

    writing = asyncio.create_task(store.write(slow))
    await asyncio.to_thread(started.wait, 10)
    assert names(store) == []
    go_on.set()
    await writing
    assert names(store) == ["new"]


async def test_what_is_committed_is_there_for_the_next_process(store: Store, tmp_path: Path) -> None:
    made = await store.write(vpc("a"))
    again = open_sqlite(tmp_path / "db" / "scloud.db", clock=Clock())
    migrate(again)  # a second time changes nothing
    found = again.read_now(lambda tx: find(tx, made.id))
    again.close()
    assert found == made


def test_commits_are_flushed_to_the_disk(store: Store) -> None:
    def pragmas(tx: Tx) -> tuple[object, object]:
        ask = lambda name: tx.conn.execute(text(f"PRAGMA {name}")).scalar()  # noqa: E731
        return ask("journal_mode"), ask("synchronous")

    assert store.write_now(pragmas) == ("wal", 2)


def test_migrations_lead_to_the_tables_as_declared(store: Store) -> None:
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, tables.metadata) == []


def test_a_database_of_another_kind_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "scloud.db"
    path.write_bytes(b"this is no database" * 100)
    broken = open_sqlite(path, clock=Clock())
    with pytest.raises(Exception, match="not a database"):
        migrate(broken)
    broken.close()
    assert path.read_bytes().startswith(b"this is no database")


def test_two_processes_take_turns(store: Store, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "db" / "scloud.db", timeout=10)
    store.write_now(vpc("a"))
    other.execute("BEGIN IMMEDIATE")
    waiting = threading.Thread(target=lambda: store.write_now(vpc("b")))
    waiting.start()
    other.execute("UPDATE resource SET name = 'z'")
    other.commit()
    waiting.join(10)
    other.close()
    assert names(store) == ["z", "b"]


def test_ids_sort_by_time_and_differ(store: Store) -> None:
    ids = [store.write_now(lambda tx: tx.new_id("vm")) for _ in range(200)]
    assert ids == sorted(ids) and len(set(ids)) == 200


def test_a_listener_hears_of_no_write_that_failed(store: Store) -> None:
    heard: list[str] = []
    store.listeners.append(heard.extend)

    def wrong(tx: Tx) -> None:
        vpc("a")(tx)
        tx.conn.execute(insert(tables.counter), [{"name": None, "value": 1}])

    with pytest.raises(Exception, match="NOT NULL"):
        store.write_now(wrong)
    assert heard == [] and names(store) == []
