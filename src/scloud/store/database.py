"""The database and its one writer.

Writes are functions of a transaction. They are run one after another by one thread, several to a commit when several
are waiting, and answered only after the commit: durable, and as fast as the disk's flushes allow. When one of several
fails, all of them are run again, each in a savepoint, so that its failure is its own: a write must be fit to be run
more than once. Reads see the last commit.
"""

from __future__ import annotations

import asyncio
import queue
import random
import re
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import StaticPool

from scloud.model.errors import CloudError, ErrorKind
from scloud.model.ids import RANDOM_BITS, make_id
from scloud.store.memory import Memory

T = TypeVar("T")
POSTGRES = {
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 8000,
    "options": "-c statement_timeout=30000 -c lock_timeout=15000 -c idle_in_transaction_session_timeout=5000",
}
"""A server that is gone, and a manager that hangs or is cut off while it writes, are both noticed within seconds (the
latter no later than its lease runs out: the lease's row is locked until a commit, and its successor waits for that)."""
MAX_BATCH = 128
"""Writes to one commit; bounds how long the first of them waits for the last."""


class Tx:
    """One transaction: the connection, the time, new ids, and what was changed (told to listeners after the commit)."""

    def __init__(self, conn: Connection, now: float, rng: random.Random, memory: Memory | None = None) -> None:
        self.conn = conn
        self.now = now
        self._rng = rng
        self.memory = Memory() if memory is None else memory
        self.has_rivals = conn.dialect.name != "sqlite"
        """Whether other processes may write to this database at the same time."""
        self.touched: dict[str, None] = {}

    def new_id(self, prefix: str) -> str:
        return make_id(prefix, int(self.now * 1000), self._rng.getrandbits(RANDOM_BITS))

    def random_bits(self, bits: int) -> int:
        return self._rng.getrandbits(bits)

    def touch(self, key: str) -> None:
        """Note a change to `kind/id`."""
        self.touched[key] = None
        self.memory.touched(key)


class _Job:
    __slots__ = ("fn", "future")

    def __init__(self, fn: Callable[[Tx], Any], future: asyncio.Future[Any]) -> None:
        self.fn = fn
        self.future = future


_Outcome = tuple[asyncio.Future[Any], Any, BaseException | None]
"""Who waits for a write, what it answered, or how it failed."""


class _BatchLost(Exception):
    """The database has undone the whole transaction, with all writes in it, because of one."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _root_of(error: BaseException) -> Exception:
    """What happened first: the failure to go back to a savepoint tells nothing."""
    while error.__context__ is not None and "savepoint" in str(error):
        error = error.__context__
    return error if isinstance(error, Exception) else RuntimeError(str(error))


class Store:
    """Opens a database by URL. `inline` runs writes on the caller's thread: for the simulator and unit tests."""

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float],
        rng: random.Random | None = None,
        inline: bool = False,
        connect_args: dict[str, Any] | None = None,
    ) -> None:
        self.clock = clock
        self.rng = rng or random.SystemRandom()
        self.listeners: list[Callable[[Iterable[str]], None]] = []
        self.guard: Callable[[Connection], None] | None = None
        """Asked at the beginning of each transaction that writes; what it raises is what the writes fail with."""
        self._inline = inline
        self._in_memory = url in ("sqlite://", "sqlite:///:memory:")
        self._sqlite = url.startswith("sqlite")
        self._remembered = Memory(lasting=self._sqlite)
        extra: dict[str, Any] = {"poolclass": StaticPool} if self._in_memory else {}
        arguments = dict(connect_args or {})
        if self._sqlite:
            arguments.setdefault("check_same_thread", False)
            arguments.setdefault("timeout", 30.0)
        else:
            arguments = POSTGRES | arguments
            extra = {"pool_pre_ping": True, "pool_timeout": 10.0}
        self.engine = create_engine(url, connect_args=arguments, **extra)
        self.reader: Engine = self.engine if self._in_memory else create_engine(url, connect_args=arguments)
        if self._sqlite:
            _tune_sqlite(self.engine, "BEGIN IMMEDIATE", memory=self._in_memory)
            if self.reader is not self.engine:
                _tune_sqlite(self.reader, "BEGIN", memory=False)
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._read_connection: Connection | None = None

    @property
    def has_rivals(self) -> bool:
        """Whether other processes may write to this database at the same time."""
        return not self._sqlite

    # --- writing

    async def write(self, fn: Callable[[Tx], T]) -> T:
        """Run `fn` in a transaction; returns its result once it is durable."""
        if self._inline:
            return self.write_now(fn)
        loop = asyncio.get_running_loop()
        if self._thread is None:
            self._loop = loop
            self._thread = threading.Thread(target=self._write_forever, name="store-writer", daemon=True)
            self._thread.start()
        future: asyncio.Future[T] = loop.create_future()
        self._queue.put(_Job(fn, future))
        # A caller that is cancelled does not undo a write that is already on its way.
        return await asyncio.shield(future)

    def write_now(self, fn: Callable[[Tx], T]) -> T:
        """Run `fn` on this thread, in a transaction of its own. For start-up, migrations and the inline mode."""
        result, touched = self.transact(fn)
        self._notify(touched)
        return result

    def transact(self, fn: Callable[[Tx], T]) -> tuple[T, dict[str, None]]:
        """`write_now` without telling the listeners: what `fn` answers, and the keys of what it has changed."""
        try:
            with self._begin() as conn:
                tx = Tx(conn, self.clock(), self.rng, self._remembered)
                return fn(tx), tx.touched
        except BaseException:
            self._remembered.forget()
            raise

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        with self.engine.begin() as conn:
            if self.guard is not None:
                self.guard(conn)
            yield conn

    def _write_forever(self) -> None:
        while True:
            job = self._queue.get()
            if job is None:
                return
            batch = [job]
            while len(batch) < MAX_BATCH:
                try:
                    more = self._queue.get_nowait()
                except queue.Empty:
                    break
                if more is None:
                    self._queue.put(None)
                    break
                batch.append(more)
            self._commit(batch)

    def _commit(self, batch: list[_Job]) -> None:
        """All in one transaction, or else each by itself within one, or else each in one of its own."""
        touched: dict[str, None] = {}
        try:
            outcomes = self._run_together(batch, touched)
        except Exception as error:
            self._remembered.forget()
            touched.clear()
            if len(batch) == 1:
                outcomes = [(batch[0].future, None, _database_error(_root_of(error)))]
            else:
                try:
                    outcomes = self._run_apart(batch, touched)
                except _BatchLost:
                    self._remembered.forget()
                    for job in batch:
                        self._commit([job])
                    return
                except Exception as failed:
                    self._remembered.forget()
                    touched.clear()
                    outcomes = [(job.future, None, _database_error(failed)) for job in batch]
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        try:
            loop.call_soon_threadsafe(self._deliver, outcomes, touched)
        except RuntimeError:
            return  # the loop was closed meanwhile: nobody is waiting any more

    def _run_together(self, batch: list[_Job], touched: dict[str, None]) -> list[_Outcome]:
        """The usual case: nothing fails, and nothing is paid for what might."""
        outcomes: list[_Outcome] = []
        with self._begin() as conn:
            for job in batch:
                tx = Tx(conn, self.clock(), self.rng, self._remembered)
                outcomes.append((job.future, job.fn(tx), None))
                touched.update(tx.touched)
        return outcomes

    def _run_apart(self, batch: list[_Job], touched: dict[str, None]) -> list[_Outcome]:
        """One transaction, each write in a savepoint of its own."""
        outcomes: list[_Outcome] = []
        with self._begin() as conn:
            for job in batch:
                tx = Tx(conn, self.clock(), self.rng, self._remembered)
                try:
                    with conn.begin_nested():
                        result = job.fn(tx)
                except Exception as error:
                    self._remembered.forget()
                    if self._rolled_back(conn):
                        raise _BatchLost(_root_of(error)) from error
                    outcomes.append((job.future, None, _database_error(error)))
                else:
                    outcomes.append((job.future, result, None))
                    touched.update(tx.touched)
        return outcomes

    def _rolled_back(self, conn: Connection) -> bool:
        """SQLite ends the whole transaction by itself when the disk is full or fails; savepoints are gone with it.

        So they are when the connection to a server breaks.
        """
        if not self._sqlite:
            return conn.invalidated
        return not conn.connection.dbapi_connection.in_transaction  # type: ignore[union-attr]

    def _deliver(self, outcomes: list[_Outcome], touched: dict[str, None]) -> None:
        for future, result, error in outcomes:
            if future.done():
                continue
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        self._notify(touched)

    def _notify(self, touched: Iterable[str]) -> None:
        keys = list(touched)
        if keys:
            for listener in self.listeners:
                listener(keys)

    # --- reading

    async def read(self, fn: Callable[[Tx], T]) -> T:
        """Run `fn` on the last committed state.

        SQLite answers from memory in well under a millisecond, so it runs right here; a server over a network would
        hold up the event loop, so it runs in a thread.
        """
        if self._sqlite:
            return self._read_here(fn)
        return await asyncio.to_thread(self.read_now, fn)

    def read_now(self, fn: Callable[[Tx], T]) -> T:
        """Run `fn` on the last committed state, on this thread."""
        with self.reader.connect() as conn:
            return fn(Tx(conn, self.clock(), self.rng))

    def _read_here(self, fn: Callable[[Tx], T]) -> T:
        """The event loop's own connection, kept: taking one from the pool costs more than a small query."""
        if self._in_memory:
            return self.read_now(fn)
        if self._read_connection is None:
            self._read_connection = self.reader.connect()
        try:
            return fn(Tx(self._read_connection, self.clock(), self.rng))
        finally:
            self._read_connection.rollback()

    def close(self, patience_s: float = 30.0) -> None:
        """Let waiting writes finish, for so long, then end."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout=patience_s)
            self._thread = None
        if self._read_connection is not None:
            self._read_connection.close()
            self._read_connection = None
        self.engine.dispose()
        self.reader.dispose()


def open_sqlite(path: Path, *, clock: Callable[[], float], rng: random.Random | None = None) -> Store:
    """The embedded database in a file, made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.chmod(0o600)  # keys of storage clusters are in it; its log gets the same mode
    return Store(f"sqlite:///{path}", clock=clock, rng=rng)


def open_postgres(url: str, *, clock: Callable[[], float], rng: random.Random | None = None) -> Store:
    """A PostgreSQL server's database, `postgresql://USER:PASSWORD@HOST:PORT/NAME`, which must be there."""
    return Store(re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url), clock=clock, rng=rng)


def _database_error(error: Exception) -> Exception:
    if isinstance(error, OperationalError | sqlite3.Error | OSError):
        return CloudError(ErrorKind.UNAVAILABLE, f"the manager's database cannot be written: {error}; nothing was done")
    return error


def _tune_sqlite(engine: Engine, begin: str, *, memory: bool) -> None:
    """WAL with synchronous=FULL: a commit is on the disk when it returns; readers never wait for the writer."""

    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # SQLAlchemy's BEGIN below is the only one
        cursor = connection.cursor()
        if not memory:
            cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA temp_store=MEMORY")
        cursor.execute("PRAGMA cache_size=-32768")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)
