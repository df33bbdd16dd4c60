"""When the manager collects cyclic garbage, and what must not become any."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from scloud import garbage
from scloud.controllers.sessions import Session
from support.cloud import Cloud


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.callbacks[:] = [each for each in gc.callbacks if each.__module__ != garbage.__name__]
    gc.unfreeze()
    gc.enable()


class Knot:
    """In a cycle with itself."""

    def __init__(self) -> None:
        self.self = self


def grow_old() -> None:
    """As what a manager has had for long: the collector looks at it no more, and sees only what comes from now on."""
    gc.collect()
    gc.freeze()
    gc.disable()


def test_what_has_been_looked_at_once_is_not_looked_at_again() -> None:
    garbage.begin()
    knot = Knot()
    gc.collect()
    assert not any(each is knot for each in gc.get_objects())
    lost = weakref.ref(Knot())
    gc.collect()
    assert lost() is None


def test_older_garbage_is_found_while_that_takes_but_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    garbage.begin()
    knot = Knot()
    gc.collect()
    lost = weakref.ref(knot)
    del knot
    monkeypatch.setattr(garbage, "A_MOMENT", 1)
    assert not garbage.collect_everything()
    assert lost() is not None
    monkeypatch.setattr(garbage, "A_MOMENT", 1 << 30)
    assert garbage.collect_everything()
    assert lost() is None


async def test_the_session_of_a_node_that_has_left_is_freed_though_it_was_old(tmp_path: Path) -> None:
    async with Cloud(tmp_path) as cloud:
        node = await cloud.node()
        session = cloud.manager.sessions.get(node.id)
        assert session is not None
        lost: weakref.ref[Session] = weakref.ref(session)
        del session
        grow_old()
        await node.stop()

        async def freed() -> bool:
            gc.collect()
            return lost() is None

        await cloud.eventually(freed)
