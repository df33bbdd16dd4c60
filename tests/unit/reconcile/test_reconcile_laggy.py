"""Leases of placement groups: what waits too long begins anew, what only flickers does not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scloud.reconcile.ceph import laggy

LOOKS = st.lists(
    st.tuples(st.floats(0.1, 20.0), st.dictionaries(st.sampled_from(["1.0", "1.1", "2.0"]), st.integers(0, 3))),
    max_size=30,
)


@given(LOOKS)
def test_only_what_was_laggy_in_every_look_for_so_long_is_stuck(looks: list[tuple[float, dict[str, int]]]) -> None:
    since: dict[str, float] = {}
    history: list[tuple[float, dict[str, int]]] = []
    now = 0.0
    for pause, seen in looks:
        now += pause
        history.append((now, seen))
        since = laggy.follow(since, seen, now)
        expected = {}
        for group, osd in seen.items():
            first = now
            for at, had in reversed(history):
                if group not in had:
                    break
                first = at
            if now - first >= laggy.STUCK_S:
                expected[group] = osd
        assert laggy.stuck(since, seen, now) == expected


def test_each_osd_begins_anew_once() -> None:
    steps = laggy.plan({"1.0": 2, "1.1": 2, "2.0": 0})
    assert [step.args["ids"] for step in steps] == [["0"], ["2"]]
    assert laggy.plan({}) == []


def test_what_is_said_of_a_cluster_that_is_not_ours_leaves_the_change_to_its_people() -> None:
    said = laggy.condition({"1.0": 2}, ours=False).message
    assert "1 placement group answers nobody, after a pause of osd.2" in said and "`ceph osd down` for osd.2" in said
    assert "begin anew" in laggy.condition({"1.0": 2}, ours=True).message
