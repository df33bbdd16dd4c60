"""Asking the OSDs of other machines whether this node is let in. Blocking; meant for a thread.

A node that is cut off from everything has OSDs of its own, which answer it for some seconds more; and what is asked of
one object hangs when one machine dies. So objects that OSDs elsewhere have are asked for, each of another OSD, and the
first answer counts. Which they are is asked of the monitors now and then, while they answer.
"""

from __future__ import annotations

import errno
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import rados

from scloud.drivers.storage import rbd_names as names
from scloud.drivers.storage.rbd_cluster import Session, command
from scloud.model.errors import CloudError, ErrorKind

GUESSES = 12
"""Names that are tried until `MOST` are found."""
MOST = 4
"""OSDs that are asked at once."""
FRESH_S = 10.0
"""How long it is taken for granted where an object is: OSDs come and go."""
PATIENCE_S = 5.0


@dataclass(frozen=True, eq=False)
class _Question:
    name: str
    session: Session
    context: Any


_keeping = threading.Lock()
_under_way: dict[_Question, Any] = {}
"""With its completion, which the library writes to until it has answered, whoever has lost interest."""
_answered: queue.SimpleQueue[_Question] = queue.SimpleQueue()
"""Let go of by a thread of ours: the last who holds a session ends it, which one of the library's own must not."""


def _let_go() -> None:
    with suppress(queue.Empty):
        while True:
            _under_way.pop(_answered.get_nowait(), None)


class Elsewhere:
    """Of one pool."""

    def __init__(self, pool: str, now: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._now = now
        self._looked: float | None = None
        self._epoch: int | None = None
        """Of the OSD map that was looked at last."""
        self._names: tuple[str, ...] = ()
        self._asking = threading.Lock()
        self._answers: queue.SimpleQueue[tuple[_Question, int]] = queue.SimpleQueue()
        self._asked: dict[str, _Question] = {}
        """By name, what has no answer yet, whoever asked it: it is not asked again meanwhile."""

    def due(self) -> bool:
        return self._looked is None or self._now() - self._looked >= FRESH_S

    def look(self, session: Session) -> None:
        """Ask the monitors which objects OSDs of other machines have; one question, if the OSD map is as it was."""
        self._looked = self._now()
        epoch = int(self._place(session, 0)["epoch"])
        if epoch != self._epoch:
            self._names = self._found(session)
            self._epoch = epoch

    def _found(self, session: Session) -> tuple[str, ...]:
        mine = session.address.rpartition(":")[0]
        found: dict[int, str] = {}
        own: set[int] = set()
        for number in range(GUESSES):
            osd = int(self._place(session, number)["acting_primary"])
            if osd < 0 or osd in found or osd in own:
                continue
            if _address(command(session, {"prefix": "osd find", "id": osd})) == mine:
                own.add(osd)
            else:
                found[osd] = names.probe(number)
            if len(found) == MOST:
                break
        return tuple(found.values())

    def _place(self, session: Session, number: int) -> dict[str, Any]:
        asked = {"prefix": "osd map", "pool": self._pool, "object": names.probe(number)}
        place: dict[str, Any] = command(session, asked)
        return place

    def let_in(self, session: Session) -> bool:
        """True once one of them has answered what was asked after this call began; False if it is not known whom to
        ask. `rados.Error` if the answer is that this node is cut off, `CloudError(UNAVAILABLE)` if none comes."""
        with self._asking:
            wanted = self._names
            if not wanted:
                return False
            self._asked = {name: one for name, one in self._asked.items() if one.session is session}
            mine = {self._ask(session, name) for name in wanted if name not in self._asked}
            deadline = time.monotonic() + PATIENCE_S
            while True:
                try:
                    question, code = self._answers.get(timeout=max(deadline - time.monotonic(), 0.0))
                except queue.Empty:
                    words = f"no OSD of another machine answers for pool {self._pool}"
                    raise CloudError(ErrorKind.UNAVAILABLE, words) from None
                if self._asked.get(question.name) is not question:
                    continue  # of a session that is not used any more
                del self._asked[question.name]
                if code == -errno.ETIMEDOUT or question.name not in wanted:
                    continue
                if code not in (0, -errno.ENOENT):  # none of the objects is there: to be told so is an answer, too
                    raise rados.Error("an OSD of another machine refuses this node", errno=-code)
                if question in mine:
                    return True
                mine.add(self._ask(session, question.name))  # it was asked long ago, and answers again

    def _ask(self, session: Session, name: str) -> _Question:
        context, answers = session.open(self._pool), self._answers
        self._asked[name] = question = _Question(name, session, context)

        def answered(done: Any, _size: int | None, _at: Any) -> None:
            answers.put((question, done.get_return_value()))
            _answered.put(question)

        with _keeping:
            _let_go()
            _under_way[question] = None
            _under_way[question] = context.aio_stat(name, answered)
        return question


def _address(found: dict[str, Any]) -> str:
    """The IP of what `osd find` tells of."""
    return str(found["addrs"]["addrvec"][0]["addr"]).rpartition(":")[0]
