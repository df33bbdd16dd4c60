"""Keys of storage clusters, and how full they were."""

from __future__ import annotations

import random
import struct
import uuid
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest

from scloud.store import samples, secrets, tables
from scloud.store.database import Store, open_sqlite
from scloud.store.schema import migrate


class Clock:
    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Iterator[Store]:
    made = Store("sqlite://", clock=clock, rng=random.Random(1), inline=True)
    tables.metadata.create_all(made.engine)
    yield made
    made.close()


def test_secrets_are_kept_replaced_and_forgotten(store: Store) -> None:
    store.write_now(lambda tx: secrets.put(tx, "stc-1", "mon.", "a"))
    store.write_now(lambda tx: secrets.put(tx, "stc-1", "mon.", "b"))
    store.write_now(lambda tx: secrets.put(tx, "stc-1", "admin", "c"))
    store.write_now(lambda tx: secrets.put(tx, "stc-2", "mon.", "d"))
    assert store.read_now(lambda tx: secrets.secrets_of(tx, "stc-1")) == {"mon.": "b", "admin": "c"}
    store.write_now(lambda tx: secrets.forget(tx, "stc-1", "mon."))
    assert store.read_now(lambda tx: secrets.secrets_of(tx, "stc-1")) == {"admin": "c"}
    store.write_now(lambda tx: secrets.forget(tx, "stc-1"))
    assert store.read_now(lambda tx: secrets.secrets_of(tx, "stc-1")) == {}
    assert store.read_now(lambda tx: secrets.secrets_of(tx, "stc-2")) == {"mon.": "d"}


def test_keys_are_as_cephx_wants_them_and_never_the_same(store: Store, clock: Clock) -> None:
    keys = {store.write_now(secrets.cephx_key) for _ in range(20)}
    assert len(keys) == 20
    for key in keys:
        kind, seconds, nanoseconds, length = struct.unpack("<hiih", b64decode(key)[:12])
        assert (kind, seconds, nanoseconds, length) == (1, int(clock.now), 0, 16)
        assert len(b64decode(key)) == 12 + 16


def test_uuids_are_random_ones(store: Store) -> None:
    made = {store.write_now(secrets.uuid4) for _ in range(20)}
    assert len(made) == 20
    for text in made:
        assert str(uuid.UUID(text)) == text and uuid.UUID(text).version == 4
        assert uuid.UUID(text).variant == uuid.RFC_4122


def test_a_history_has_a_sample_now_and_then_and_an_end(store: Store, clock: Clock) -> None:
    for number in range(10):
        store.write_now(lambda tx, number=number: samples.add(tx, "pol-1", number))  # type: ignore[misc]
        clock.now += samples.EVERY_S / 2
    history = store.read_now(lambda tx: samples.history(tx, "pol-1"))
    assert [used for _, used in history] == [0, 2, 4, 6, 8]
    clock.now += samples.KEPT_S
    store.write_now(lambda tx: samples.add(tx, "pol-1", 99))
    assert [used for _, used in store.read_now(lambda tx: samples.history(tx, "pol-1"))] == [99]
    store.write_now(lambda tx: samples.forget(tx, "pol-1"))
    assert store.read_now(lambda tx: samples.history(tx, "pol-1")) == []


def test_the_database_with_the_keys_is_nobody_elses_to_read(tmp_path: Path) -> None:
    path = tmp_path / "scloud.db"
    path.touch(mode=0o644)
    store = open_sqlite(path, clock=Clock())
    migrate(store)
    store.write_now(lambda tx: secrets.put(tx, "stc-1", "mon.", "a"))
    modes = {file.name: file.stat().st_mode & 0o077 for file in tmp_path.iterdir()}
    assert path.name in modes and set(modes.values()) == {0}
    store.close()
