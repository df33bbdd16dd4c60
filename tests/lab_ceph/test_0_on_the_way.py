"""What excuses a VM that has two processes, and what does not; needs no engine."""

from __future__ import annotations

import pytest

from lab_ceph.on_the_way import AFTER_S, Reading, Word, excused, known, word

VM = "vm-1"
PAIR = ("n1", "n2")
BOTH = frozenset(PAIR)
HERE = Word("n1")
WAY = Word("n1", 1, BOTH)
THERE = Word("n2", 1, leaving=frozenset({"n1"}))
CLEAN = Word("n2", 1)


def read(*words: Word | None, every: float = 0.5) -> list[Reading]:
    """One each half second, each answered a tenth of a second later."""
    return [Reading(n * every, n * every + 0.1, {VM: one} if one else {}) for n, one in enumerate(words)]


def test_a_vm_that_never_migrates_has_no_excuse() -> None:
    assert not excused(VM, PAIR, 1.2, read(*[HERE] * 6))
    assert not excused(VM, PAIR, 1.2, read(*[HERE] * 6), still={"n2"})
    assert not excused(VM, PAIR, 1.2, [])


def test_nor_has_one_that_has_migrated_before() -> None:
    """Its process was started to take it over, and says so for as long as it runs."""
    assert not excused(VM, PAIR, 20.2, read(HERE, WAY, WAY, THERE, *[CLEAN] * 60))
    assert not excused(VM, PAIR, 20.2, read(HERE, WAY, WAY, THERE, *[CLEAN] * 60), still={"n1"})


@pytest.mark.parametrize("nodes", [("n1", "n3"), ("n2", "n3"), ("n1", "n1"), ("n1", "n2", "n3"), ("n1", "n1", "n2")])
def test_one_on_its_way_may_be_on_just_these_two_nodes_once_each(nodes: tuple[str, ...]) -> None:
    readings = read(HERE, *[WAY] * 6)
    assert excused(VM, PAIR, 1.7, readings) and excused(VM, PAIR[::-1], 1.7, readings)
    assert not excused(VM, nodes, 1.7, readings)
    assert not excused("vm-2", PAIR, 1.7, readings), "another VM's way is no excuse"


def test_the_moments_of_change_are_between_two_readings() -> None:
    readings = read(HERE, HERE, WAY, WAY, HERE, HERE)
    assert excused(VM, PAIR, 0.7, readings), "begun after the reading at 0.5 s"
    assert not excused(VM, PAIR, 0.45, readings), "the reading at 0.5 s says that it was not begun"
    assert excused(VM, PAIR, 1.8, readings), "ended before the reading at 2 s"
    assert not excused(VM, PAIR, 2.2, readings), "the reading at 2 s says that it had ended, and has left nowhere"
    slow = [Reading(0.0, 0.1, {VM: HERE}), Reading(0.5, 9.0, {VM: WAY}), Reading(9.5, 9.6, {VM: HERE})]
    assert excused(VM, PAIR, 5.0, slow), "what took long to answer may have been so at any time until then"


def test_one_that_began_and_ended_between_two_readings_is_known_by_their_number() -> None:
    assert excused(VM, PAIR, 0.3, read(HERE, THERE, CLEAN))
    assert excused(VM, PAIR, 0.3, read(HERE, CLEAN, CLEAN))
    assert excused(VM, PAIR, 0.3, read(HERE, Word("n1", 1, leaving=frozenset({"n2"})), HERE)), "it stayed"
    assert not excused(VM, ("n2", "n3"), 0.3, read(HERE, THERE, CLEAN))
    assert not excused(VM, PAIR, 0.3, read(Word("n1"), Word("n2"))), "given to another node without a migration"
    assert not excused(VM, PAIR, 0.3, read(None, CLEAN)), "how many there were before is not known"


def test_what_it_has_left_is_excused_for_a_moment_and_then_only_if_it_is_still() -> None:
    readings = read(HERE, WAY, WAY, *[THERE] * 60)
    assert excused(VM, PAIR, 1.7 + AFTER_S - 0.5, readings)
    assert not excused(VM, PAIR, 1.7 + AFTER_S + 0.5, readings)
    assert excused(VM, PAIR, 1.7 + AFTER_S + 0.5, readings, still={"n1"})
    assert not excused(VM, PAIR, 1.7 + AFTER_S + 0.5, readings, still={"n2"}), "that is where it lives"
    assert not excused(VM, ("n2", "n3"), 1.7, readings, still={"n3"})
    gone = read(HERE, WAY, WAY, THERE, *[CLEAN] * 10)
    assert not excused(VM, PAIR, 2.2, gone, still={"n1"}), "n1 has said that nothing of it is there"


def test_a_look_is_judged_once_the_cloud_has_been_asked_after_it() -> None:
    assert known(read(HERE, HERE), 0.5) and not known(read(HERE, HERE), 0.6) and not known([], 0.0)


def test_words_are_of_a_vm_as_the_api_shows_it() -> None:
    names = {"nod-a": "n1", "nod-b": "n2"}
    status = {"node": "n1", "migrations": 3, "migration": None, "leaving": ["nod-b"]}
    assert word({"status": status}, names) == Word("n1", 3, leaving=frozenset({"n2"}))
    status |= {"migration": {"source": "nod-a", "target": "nod-b", "number": 3}, "leaving": []}
    assert word({"status": status}, names) == Word("n1", 3, BOTH)
