"""Who has a VM after a migration, whatever both nodes say in whatever order."""

from __future__ import annotations

import pytest

from scloud.model.migrations import DiskCopy, Migration, MoveSeen
from scloud.reconcile.migration import (
    Ask,
    Copy,
    Moved,
    Stays,
    Wait,
    judge,
    without_both,
    without_source,
    without_target,
)

MOVE = Migration(number=3, source="a", target="b", phase="copying", address="192.0.2.1:9")


def source(state: str, number: int = 3, reason: str = "") -> MoveSeen:
    return MoveSeen.model_validate({"number": number, "state": state, "reason": reason})


def target(state: str, asked: int = 0, number: int = 3) -> MoveSeen:
    return MoveSeen.model_validate({"number": number, "state": state, "asked": asked, "address": "192.0.2.1:9"})


def at(**update: object) -> Migration:
    return MOVE.model_copy(update=update)


def test_the_source_begins_when_the_target_and_every_switch_are_ready() -> None:
    preparing = at(phase="preparing", target_seen=target("ready"))
    assert judge(preparing) == Wait()
    assert judge(preparing, network_ready=True) == Copy("192.0.2.1:9")
    assert judge(at(phase="preparing", target_seen=target("ready", number=2)), network_ready=True) == Wait()
    assert isinstance(judge(at(phase="preparing", cancel=True, target_seen=target("ready")), True), Stays)


def test_the_source_says_how_it_ended() -> None:
    assert judge(at(source_seen=source("left"))) == Moved()
    assert judge(at(source_seen=source("stays", reason="full"))) == Stays("full")
    assert judge(at(source_seen=source("stays"), cancel=True)) == Stays("cancelled", cancelled=True)
    assert judge(at(source_seen=source("left", number=2))) == Wait(), "that was another migration"


def test_a_target_that_runs_proves_nothing_while_the_source_is_silent() -> None:
    assert judge(at(target_seen=target("arrived", asked=1))) == Wait()
    assert judge(at(source_seen=source("copying"), target_seen=target("arrived", asked=1))) == Wait()


@pytest.mark.parametrize("state", ["held", "gone"])
def test_where_the_source_cannot_know_the_target_is_asked_anew(state: str) -> None:
    unsure = at(source_seen=source(state), target_seen=target("ready"))
    assert judge(unsure) == Ask(), "what it said before may be out of date"
    asked = unsure.model_copy(update={"asked": 1})
    assert judge(asked) == Wait()
    for came in ("complete", "arrived"):
        assert judge(asked.model_copy(update={"target_seen": target(came, asked=1)})) == Moved()
    for came in ("ready", "arriving"):
        assert isinstance(judge(asked.model_copy(update={"target_seen": target(came, asked=1)})), Stays)


def test_when_the_source_is_dead_the_target_decides() -> None:
    assert without_source(MOVE) == Ask()
    assert without_source(at(asked=1, target_seen=target("arrived"))) == Wait()
    assert without_source(at(asked=1, target_seen=target("arrived", asked=1))) == Moved()
    assert isinstance(without_source(at(asked=1, target_seen=target("arriving", asked=1))), Stays)


def test_when_the_target_is_dead_the_source_keeps_only_what_it_knows_to_be_its_own() -> None:
    assert isinstance(without_target(at(phase="preparing")), Stays)
    assert without_target(MOVE) == Wait(), "the source has not said anything"
    assert without_target(at(source_seen=source("copying"))) == Wait(), "it will break off"
    assert isinstance(without_target(at(source_seen=source("stays"))), Stays)
    for ended in ("left", "held", "gone"):
        assert without_target(at(source_seen=source(ended))) == Moved(), "it may have run there: it is recovered"


COPIES = (DiskCopy(disk="d", size_mib=8),)


def test_disks_that_are_there_twice_wait_for_whoever_can_say_which_count() -> None:
    """The target may have died with half a copy, or with what the guest has written since."""
    for ended in ("held", "gone"):
        unsure = at(copies=COPIES, source_seen=source(ended), asked=1)
        assert without_target(unsure) == Wait()
        assert isinstance(without_target(unsure, removed=True), Stays), "the source's are all there is"
    assert without_target(at(copies=COPIES, source_seen=source("left"))) == Moved(), "the source knows"
    assert isinstance(without_target(at(copies=COPIES, source_seen=source("stays"))), Stays)


def test_when_both_are_dead_disks_in_pools_are_recovered_and_copied_ones_wait() -> None:
    assert isinstance(without_both(MOVE), Stays)
    assert without_both(at(copies=COPIES)) == Ask()
    assert without_both(at(copies=COPIES, asked=1)) == Wait()
    assert without_both(at(copies=COPIES, asked=1, target_seen=target("arrived", asked=1))) == Moved()
    assert isinstance(without_both(at(copies=COPIES, asked=1), removed=True), Stays)


SEEN = (None, "ready", "arriving", "complete", "arrived")


@pytest.mark.parametrize("here", [None, "copying", "left", "stays", "held", "gone"])
@pytest.mark.parametrize("there", SEEN)
@pytest.mark.parametrize("asked", [0, 1])
def test_whoever_runs_it_keeps_it(here: str | None, there: str | None, asked: int) -> None:
    """Every combination: a source that runs keeps it, one that does not is given it only where the target never ran."""
    seen = at(
        asked=asked,
        source_seen=source(here) if here else None,
        target_seen=target(there, asked=asked) if there else None,
    )
    verdict = judge(seen)
    if here in (None, "copying"):
        assert verdict == Wait()
    elif here == "stays":
        assert isinstance(verdict, Stays)
    elif here == "left":
        assert verdict == Moved()
    elif isinstance(verdict, Stays):
        assert asked and there in ("ready", "arriving")
    else:
        assert verdict == (Moved() if asked and there in ("complete", "arrived") else Ask() if not asked else Wait())
