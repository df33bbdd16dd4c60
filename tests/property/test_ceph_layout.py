"""Storage clusters' pure decisions, for any nodes, labels, devices and pools."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from scloud.model.storage import Device, FaultDomain, Media, PoolSpec, StorageClusterSpec, copies_of
from scloud.reconcile.ceph import figures, layout, pools, redundancy, tuning
from scloud.reconcile.ceph.conditions import from_checks
from scloud.reconcile.ceph.layout import Site, Spot
from scloud.reconcile.ceph.pools import Wanted
from scloud.reconcile.ceph.view import Check, OsdSeen, PoolSeen, Slow, View, read, read_slow

REDUNDANCIES = st.one_of(
    st.integers(1, 9).map(lambda n: f"replica:{n}"),
    st.tuples(st.integers(2, 16), st.integers(1, 4)).map(lambda km: f"ec:{km[0]}+{km[1]}"),
)
LABELS = st.dictionaries(st.sampled_from(["rack", "datacenter", "colour"]), st.sampled_from(["a", "b", "c"]))


@st.composite
def sites(draw: st.DrawFn) -> list[Site]:
    count = draw(st.integers(1, 8))
    return [Site(f"id{number}", f"n{number}", f"10.0.0.{number}", draw(LABELS)) for number in range(count)]


@st.composite
def spots(draw: st.DrawFn) -> list[Spot]:
    return [
        Spot(site.place, draw(st.sampled_from(["ssd", "hdd"])))
        for site in draw(sites())
        for _ in range(draw(st.integers(0, 2)))
    ]


def spec(**more: Any) -> PoolSpec:
    return PoolSpec(cluster="stc-1", rados_name="scloud.p", **more)


@given(sites())
def test_monitors_are_one_or_three_and_spread(nodes: list[Site]) -> None:
    chosen = layout.choose_monitors(nodes)
    assert len(chosen) == (3 if len(nodes) >= 3 else 1) == len({site.id for site in chosen})
    racks = {site.place.get("rack", "") for site in nodes}
    datacenters = {site.place.get("datacenter", "") for site in nodes}
    if len(chosen) == 3 and len(datacenters) >= 3:
        assert len({site.place.get("datacenter", "") for site in chosen}) == 3
    elif len(chosen) == 3 and len(datacenters) == 1 and len(racks) >= 3:
        assert len({site.place.get("rack", "") for site in chosen}) == 3


@given(st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1"]), max_size=3), st.integers(1, 65535))
def test_monitors_addresses_are_read_back(addresses: list[str], port: int) -> None:
    text = layout.mon_host(addresses, port)
    assert layout.addresses_in(text) == [f"{address}:{port}" for address in addresses]


@given(sites())
def test_a_tree_without_objection_has_each_name_once(nodes: list[Site]) -> None:
    if layout.misplaced(nodes):
        return
    seen: dict[str, tuple[tuple[str, str], ...]] = {}
    for site in nodes:
        place = site.place
        for depth, (level, name) in enumerate(place.items()):
            above = tuple(list(place.items())[:depth])
            assert seen.setdefault(name, (*above, (level, name))) == (*above, (level, name))


@given(spots(), REDUNDANCIES, st.sampled_from(FaultDomain), st.sampled_from([None, *Media]))
def test_a_pool_is_refused_exactly_when_there_are_too_few_fault_domains(
    found: list[Spot], wished: str, level: FaultDomain, media: Media | None
) -> None:
    wanted = spec(redundancy=wished, fault_domain=level, media=media)
    said = redundancy.objections(wanted, "c", found)
    have = redundancy.domains(found, level, media.value if media else None)
    assert bool(said) == (len(have) < sum(copies_of(wished)) or not found)
    if said and found and "what would do" in said:
        for way in said.partition("what would do: ")[2].split(", "):
            assert way
            if way.startswith(("replica:", "ec:")):
                other = spec(redundancy=way.split(" ")[0], fault_domain=level, media=media)
                assert not redundancy.objections(other, "c", found), way
            elif way.startswith("fault domain "):
                level_there = FaultDomain(way.removeprefix("fault domain "))
                other = spec(redundancy=wished, fault_domain=level_there, media=media)
                assert not redundancy.objections(other, "c", found), way


@given(REDUNDANCIES)
def test_writes_are_never_taken_on_bytes_that_one_more_failure_loses(wished: str) -> None:
    data, more = copies_of(wished)
    least = redundancy.min_size(wished)
    assert data <= least <= data + more
    if data + more > 2:
        assert least >= data + 1
    else:
        assert redundancy.warning(wished)
    if data > 1:
        copies = redundancy.metadata_copies(wished)
        assert more < copies <= data + more and redundancy.min_size(f"replica:{copies}") >= 2


@given(REDUNDANCIES)
def test_what_one_dead_device_stops_or_leaves_without_a_copy_is_warned_of(wished: str) -> None:
    data, more = copies_of(wished)
    goes_on = redundancy.min_size(wished) < data + more
    spare = data + more - 1 - data >= 1
    assert bool(redundancy.warning(wished)) == (not goes_on or not spare)


@given(st.integers(1, 2000), REDUNDANCIES)
def test_placement_groups_are_a_power_of_two_and_not_too_many(osds: int, wished: str) -> None:
    count = redundancy.pg_num(osds, wished)
    assert count & (count - 1) == 0 and count >= 8
    if count > 8:
        assert count * sum(copies_of(wished)) / osds <= redundancy.PGS_PER_OSD


def carry_out(view: View, slow: Slow, steps: list[Any]) -> tuple[View, Slow]:
    """What a cluster would make of the commands."""
    found, rules, profiles = dict(view.pools), dict(slow.rules), set(view.profiles)
    for step in steps:
        args = dict(step.args)
        match args["prefix"]:
            case "osd crush rule create-replicated":
                rules[args["name"]] = len(rules)
            case "osd crush rule rm":
                del rules[args["name"]]
            case "osd erasure-code-profile set":
                profiles.add(args["name"])
            case "osd erasure-code-profile rm":
                profiles.discard(args["name"])
            case "osd pool create":
                erasure = args["pool_type"] == "erasure"
                if erasure:
                    rules.setdefault(args["pool"], len(rules))
                rule = rules[args["pool"] if erasure else args["rule"]]
                found[args["pool"]] = PoolSeen(args["pool"], 1, args.get("size", 0), 0, args["pg_num"], rule)
            case "osd pool delete":
                del found[args["pool"]]
            case "osd pool application enable":
                found[args["pool"]] = _with(found[args["pool"]], applications=("rbd",))
            case "osd pool application set":
                found[args["pool"]] = _with(found[args["pool"]], owner=args["value"])
            case "osd pool set":
                changes = {
                    "size": {"size": int(args["val"]) if args["val"].isdigit() else 0},
                    "min_size": {"min_size": int(args["val"]) if args["val"].isdigit() else 0},
                    "pg_num": {"pg_num": int(args["val"]) if args["val"].isdigit() else 0},
                    "allow_ec_overwrites": {"overwrites": True},
                    "pg_autoscale_mode": {"autoscale": args["val"]},
                    "crush_rule": {"rule": rules.get(args["val"], 0)},
                }
                found[args["pool"]] = _with(found[args["pool"]], **changes[args["var"]])
            case other:
                raise AssertionError(other)
    fresh = View(osds=view.osds, pools=found, profiles=frozenset(profiles))
    return fresh, Slow(rules=rules)


def _with(seen: PoolSeen, **changes: Any) -> PoolSeen:
    from dataclasses import replace

    return replace(seen, **changes)


@given(REDUNDANCIES, st.sampled_from([None, *Media]), st.integers(1, 30), st.data())
def test_pools_come_to_rest_from_whatever_was_done_of_them(
    wished: str, media: Media | None, osds: int, data: st.DataObject
) -> None:
    """Commands are cut off anywhere, twice; what is left is made up for, and then nothing more is done."""
    name = "scloud.p.data" if copies_of(wished)[0] > 1 else None
    wanted = Wanted("pol-1", spec(redundancy=wished, media=media).model_copy(update={"data_name": name}))
    view = View(osds=tuple(OsdSeen(number, str(number), True, True, media="ssd") for number in range(osds)))
    slow = Slow(rules={"replicated_rule": 0})
    for leaving in (False, True):
        wish = Wanted(wanted.id, wanted.spec, leaving)
        for _ in range(2):
            steps = pools.plan(wish, view, slow)
            view, slow = carry_out(view, slow, steps[: data.draw(st.integers(0, len(steps)))])
        for _ in range(6):
            view, slow = carry_out(view, slow, pools.plan(wish, view, slow))
        assert pools.plan(wish, view, slow) == []
        assert set(view.pools) == (set() if leaving else {"scloud.p", *([name] if name else [])})
        if not leaving:
            for seen in view.pools.values():
                assert seen.owner == "pol-1" and seen.autoscale == "off"


@given(st.sampled_from(["rgw", "cephfs"]), st.integers(0, 5), st.booleans())
def test_what_is_somebody_elses_is_never_touched(application: str, objects: int, leaving: bool) -> None:
    theirs = PoolSeen("scloud.p", 1, 3, 2, 8, 0, applications=(application,), objects=objects)
    view = View(osds=(OsdSeen(0, "u", True, True),), pools={"scloud.p": theirs})
    assert pools.plan(Wanted("pol-1", spec(), leaving), view, Slow()) == []


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 10**6)), max_size=20), st.integers(0, 10**7))
def test_a_forecast_is_of_the_days_to_come(points: list[tuple[float, int]], available: int) -> None:
    history = sorted(points)
    days = figures.full_in_days(history, available)
    assert days is None or 0 <= days < figures.FAR_DAYS


def test_a_steady_fill_is_foreseen() -> None:
    history = [(hour * 3600.0, hour * 10) for hour in range(48)]
    assert figures.full_in_days(history, 2400) == 10.0
    assert figures.full_in_days([(at, 500) for at, _ in history], 2400) is None


@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=5),
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 10**6)), min_size=3, max_size=20),
    st.integers(0, 10**4),
)
def test_new_disks_are_refused_before_writes_wait(fills: list[int], points: list[tuple[float, int]], free: int) -> None:
    osds = tuple(OsdSeen(n, str(n), True, True, total_kib=1000, used_kib=used) for n, used in enumerate(fills))
    view = View(osds=osds, total_bytes=len(osds) << 30, used_bytes=sum(fills) << 20, available_bytes=free << 20)
    seen = PoolSeen("p", 1, 3, 2, 8, 0, available=free << 20)
    for capacity in (
        figures.cluster_capacity(view, 0, sorted(points)),
        figures.pool_capacity(spec(), view, seen, 0, sorted(points)),
    ):
        refused, full = capacity.refused_in_days, capacity.full_in_days
        assert full is None or (refused is not None and refused <= full)
        assert ("refused" in figures.forecast(capacity)) == bool(refused)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30))
def test_progress_never_goes_backwards_while_less_is_left(lefts: list[int]) -> None:
    at: figures.Track | None = None
    last = -1
    for second, left in enumerate(sorted(lefts, reverse=True)):
        at = figures.track(at, float(second), left, 0.0)
        percent, words = figures.progress(at)
        assert 0 <= percent <= 100 and percent >= last and words
        last = percent


@given(st.lists(st.tuples(st.sampled_from(["OSD_DOWN", "PG_DEGRADED", "NEW_THING", "OSD_FLAGS"]), st.booleans())))
def test_every_check_has_words(checks: list[tuple[str, bool]]) -> None:
    found = from_checks(Check(code, error, "something", ("a", "b", "c", "d", "e")) for code, error in checks)
    assert len({item.name for item in found}) == len(found) == len({code for code, _ in checks})
    assert all(item.message and "{" not in item.message for item in found)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_answers_that_are_empty_or_of_another_shape_at_the_top_are_taken_for_none(rubbish: Any) -> None:
    top = rubbish if not isinstance(rubbish, dict) else {}
    if isinstance(top, list):
        top = []
    names = ("status", "health", "quorum", "osds", "tree", "df", "fill", "latency", "rates", "auth", "config", "rules")
    assert read(dict.fromkeys(names, top)) == View()
    assert read_slow(dict.fromkeys(names, top)) == Slow()


@given(st.integers(0, 23), st.integers(0, 24), st.integers(1, 365))
def test_settings_are_settled_once_they_are_set(begin: int, end: int, days: int) -> None:
    wanted = StorageClusterSpec(scrub_begin_hour=begin, scrub_end_hour=end, deep_scrub_days=days)
    present: dict[tuple[str, str], str] = {}
    for step in tuning.plan_settings(wanted, present):
        present[step.args["who"], step.args["name"]] = step.args["value"]
    assert tuning.plan_settings(wanted, present) == []
    assert 0 <= int(present["osd", "osd_scrub_end_hour"]) <= 23


def test_devices_that_leave_have_no_place() -> None:
    site = Site("id", "n1", "10.0.0.1", {})
    kept, gone = Device(node="id", path="/a"), Device(node="id", path="/b", out=True)
    assert len(layout.spots([kept, gone], {"id": site})) == 1
