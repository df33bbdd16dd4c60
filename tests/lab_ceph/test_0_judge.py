"""What a watch calls two copies, and what it does not; needs no engine."""

from __future__ import annotations

from lab_ceph.judge import Judge, Several, Twice
from lab_ceph.on_the_way import Reading, Word

VM, DISK = "vm-1", "dsk-1"
PAIR = ["n1", "n2"]
HERE = Word("n1")
WAY = Word("n1", 1, frozenset(PAIR))
THERE = Word("n2", 1, leaving=frozenset({"n1"}))
CLEAN = Word("n2", 1)


def told(judge: Judge, *words: Word) -> Judge:
    """One each half second."""
    for n, word in enumerate(words):
        judge.said(Reading(n * 0.5, n * 0.5 + 0.1, {VM: word}))
    return judge


def seen(
    *words: Word,
    processes: tuple[float, float],
    disk_open: tuple[float, float] | None = None,
    nodes: list[str] = PAIR,
    owners: tuple[str, str] = (VM, VM),
    both: bool = False,
    still: frozenset[str] = frozenset(),
) -> list[Twice]:
    """A process on each node in one time, each started with the disk, and the disk open on both in another; looked at
    four times a second."""
    judge = Judge()
    for look in range(round(processes[0] * 4), round(processes[1] * 4)):
        for node, vm in zip(nodes, owners, strict=True):
            judge.started_with(look / 4, vm, node, [DISK])
        if owners[0] == owners[1]:
            judge.looked(Several(look / 4, VM, nodes, both, still))
    for look in range(*(round(end * 4) for end in disk_open or (0, 0))):
        judge.opened(look / 4 + 0.05, DISK, nodes)
    told(judge, *words)
    judge.close()
    return judge.twice()


def test_a_migration_is_none() -> None:
    assert seen(HERE, *[WAY] * 6, THERE, THERE, *[CLEAN] * 9, processes=(0.75, 4.25), disk_open=(1.0, 4.5)) == []


def test_a_second_process_and_its_disk_are_told_once_each_with_when_that_began() -> None:
    found = seen(*[HERE] * 12, processes=(1.0, 4.0), disk_open=(1.5, 4.0))
    assert found == [(1.0, VM, PAIR), (1.6, DISK, PAIR)]
    assert [what for _, what, _ in seen(*[CLEAN] * 12, processes=(1.0, 4.0), disk_open=(1.5, 4.0))] == [VM, DISK]


def test_one_that_stays_after_a_migration_is_told_when_its_excuse_is_over() -> None:
    """And so is its disk, though nothing has changed since it was excused."""
    words = (HERE, *[WAY] * 4, *[THERE] * 40)
    found = seen(*words, processes=(0.75, 15.0), disk_open=(0.75, 15.0))
    assert [what for _, what, _ in found] == [VM, DISK] and all(5.0 < at < 7.0 for at, _, _ in found), found
    assert seen(*words, processes=(0.75, 15.0), disk_open=(0.75, 15.0), still=frozenset({"n1"})) == []


def test_two_that_run_are_two_whatever_is_said() -> None:
    assert seen(HERE, *[WAY] * 12, processes=(1.0, 4.0), both=True) == [(1.0, VM, PAIR)]


def test_another_node_than_those_of_its_way_has_no_excuse() -> None:
    found = seen(HERE, *[WAY] * 12, processes=(1.0, 4.0), disk_open=(1.0, 4.0), nodes=["n1", "n3"])
    assert [what for _, what, _ in found] == [VM, DISK]


def test_a_disk_of_two_vms_is_none_of_theirs_way() -> None:
    found = seen(HERE, *[WAY] * 12, processes=(1.0, 4.0), disk_open=(1.0, 4.0), owners=(VM, "vm-2"))
    assert [what for _, what, _ in found] == [DISK]


def test_a_watch_that_a_dead_process_left_behind_is_not_told() -> None:
    assert seen(*[HERE] * 20, processes=(1.0, 1.25), disk_open=(2.0, 9.0)) == [(1.0, VM, PAIR)]


def test_nothing_is_told_before_the_cloud_was_asked_again() -> None:
    judge = told(Judge(), HERE, HERE)
    judge.looked(Several(0.75, VM, PAIR))
    assert judge.twice() == []
    judge.said(Reading(1.0, 1.1, {VM: HERE}))
    assert judge.twice() == [(0.8, VM, PAIR)]
    unanswered = told(Judge(), HERE)
    unanswered.looked(Several(0.75, VM, PAIR))
    unanswered.close()
    assert len(unanswered.twice()) == 1, "nor is it forgotten if there is no more answer"
