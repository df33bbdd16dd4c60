"""One at a time, among all threads of all nodes: for work that would otherwise be done several times over.

It only saves work. Who is slow may lose its turn, so whoever relies on being alone needs another way. Blocking.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import rados

from scloud.drivers.storage.sparse import Stopped

LEASE_S = 10
"""A turn whose holder is not heard of for so long is over."""
RENEW_S = 3.0
_ASK_AGAIN_S = 0.3
_LOCK = "turn"
_RENEW = 1


class Turn:
    """`hold` is to be called often while the turn is used."""

    def __init__(self, context: Any, name: str, cookie: str) -> None:
        self._context = context
        self._name = name
        self._cookie = cookie
        self._until = 0.0

    def hold(self) -> None:
        now = time.monotonic()
        if now >= self._until:
            with suppress(rados.ObjectBusy):
                self._lock()

    def take(self) -> bool:
        """False if it is another's."""
        try:
            self._lock()
        except rados.ObjectBusy:
            return False
        return True

    def _lock(self) -> None:
        self._context.lock_exclusive(self._name, _LOCK, self._cookie, "", LEASE_S, _RENEW)
        self._until = time.monotonic() + RENEW_S

    def end(self) -> None:
        with suppress(rados.ObjectNotFound):
            self._context.unlock(self._name, _LOCK, self._cookie)


@contextmanager
def turn(context: Any, name: str, cookie: str, done: Callable[[], bool], stop: Callable[[], bool]) -> Iterator[Turn]:
    """Wait for the turn, or until what it is for is `done` by another. Raises Stopped."""
    mine = Turn(context, name, cookie)
    while not done() and not mine.take():
        if stop():
            raise Stopped
        time.sleep(_ASK_AGAIN_S)
    try:
        yield mine
    finally:
        mine.end()
