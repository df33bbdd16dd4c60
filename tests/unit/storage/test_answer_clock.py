"""How long a storage cluster takes to answer, as a node's load has it."""

from __future__ import annotations

import contextlib

from scloud.drivers.storage.answer_clock import KEPT_S, AnswerClock


class Time:
    def __init__(self) -> None:
        self.at = 5.0

    def __call__(self) -> float:
        return self.at


def test_the_last_answer_counts_and_one_that_is_waited_for_if_that_is_longer() -> None:
    time = Time()
    clock = AnswerClock(time)
    assert clock.seconds() == 0.0
    with clock.request():
        time.at += 0.25
    assert clock.seconds() == 0.25
    with clock.request():
        time.at += 0.125
        assert clock.seconds() == 0.25
        with contextlib.suppress(OSError), clock.request():  # another, which fails
            time.at += 0.5
            raise OSError
        assert clock.seconds() == 0.625, "the one before is still waited for"
    assert clock.seconds() == 0.625


def test_what_was_long_ago_says_nothing_of_now() -> None:
    """A node that once was slow, and has no disks there any more, would never get any again."""
    time = Time()
    clock = AnswerClock(time)
    with clock.request():
        time.at += 3.0
    time.at += KEPT_S
    assert clock.seconds() == 3.0
    time.at += 1.0
    assert clock.seconds() == 0.0
