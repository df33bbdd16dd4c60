"""Storage clusters' pure parts: real answers of Ceph 16.2.15, and what is made of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scloud.model.kinds import State
from scloud.model.storage import Device, OsdStatus, PoolSpec, Recovery, StorageClusterSpec, StorageClusterStatus
from scloud.reconcile.ceph import auth, devices, tuning
from scloud.reconcile.ceph.auth import Entity
from scloud.reconcile.ceph.commands import Command, waves
from scloud.reconcile.ceph.conditions import appeared, dated, from_checks, vanished, waiting
from scloud.reconcile.ceph.conf import read_adopted
from scloud.reconcile.ceph.figures import cluster_capacity, forecast, fullness, pool_capacity, raw_factor, sooner
from scloud.reconcile.ceph.layout import Site, Spot
from scloud.reconcile.ceph.pools import Wanted, rule_of
from scloud.reconcile.ceph.pools import plan as plan_pool
from scloud.reconcile.ceph.removal import no_room, refusal
from scloud.reconcile.ceph.view import Check, OsdSeen, PoolSeen, Slow, View, damaged_objects, read, read_slow

ANSWERS: dict[str, Any] = json.loads((Path(__file__).parent / "ceph_answers.json").read_text())
FSID = "941620dc-12d4-4ca1-895e-b8740192dcf8"
KEY = "AQBSdFhnAAAAABAAQ1ihzvQ8gmv7PCPDBNPIBA=="


def test_real_answers_are_read() -> None:
    view = read(ANSWERS)
    assert (view.quorum, view.monitors, view.leader, view.manager) == (("a",), ("a",), "a", True)
    assert [osd.number for osd in view.osds] == [0, 1, 2, 3, 4, 5] and all(osd.up and osd.taken_in for osd in view.osds)
    first = view.osds[0]
    assert first.place == {"datacenter": "dc1", "rack": "rack1", "host": "host1"} and first.media == "hdd"
    assert (first.total_kib, first.used_kib, first.pgs, first.commit_ms) == (4194304, 35268, 11, 3.0)
    assert view.osd(first.uuid) is first and view.osd("none") is None
    assert view.hosts["host2"] == {"datacenter": "dc2", "rack": "rack2"} and view.empty_buckets == ()
    assert view.noout == {"host1"} and view.pg_states == {"active+clean": 33} and view.settled and not view.forming
    replicated, coded = view.pools["scloud.p1"], view.pools["scloud.e.data"]
    assert (replicated.owner, replicated.applications, replicated.stored) == ("pol-123", ("rbd",), 20_000_000)
    assert coded.erasure_coded and coded.overwrites and coded.autoscale == "off" and coded.rule == 2
    assert view.profiles == {"default", "scloud.e"}
    slow = read_slow(ANSWERS)
    assert slow.version == "16.2.15" and slow.rules["scloud-host-hdd"] == 1
    assert slow.config == {("osd", "osd_max_backfills"): "1"}
    wanted = Entity("client.scloud-n1", "KEY", auth.client_caps(["scloud.p1", "scloud.e.data"]))
    assert slow.auth["client.scloud-n1"][1]["mon"] == "profile rbd"
    (step,) = auth.plan([wanted], ["mgr.gone"], slow.auth)  # it has no mgr capability yet
    assert "caps mgr = " in step.data and "KEY" not in repr(step)
    (condition,) = from_checks(view.checks)
    assert (condition.name, condition.level) == ("maintenance", "info") and "host1" in condition.message


def test_what_has_new_nodes_or_less_than_all_is_settled_only_when_clean() -> None:
    assert not View(pg_states={"active+clean": 3, "active+remapped+backfilling": 1}).settled
    assert View(pg_states={"active+clean": 3, "active+clean+scrubbing+deep": 1}).settled
    assert View(pg_states={"creating+peering": 1}).forming


def test_groups_that_wait_are_told_of_at_once_and_those_that_only_agree_are_not() -> None:
    states = {"active+clean": 3, "undersized+degraded+peered": 2, "peering": 1, "creating+peering": 1, "down": 1}
    view = View(pg_states=states, pgs=8)
    assert view.waiting == 3
    said = waiting(view.waiting, view.pgs)
    assert (said.name, said.level) == ("data-unavailable", "error") and said.message.startswith("3 of 8 ")


def test_what_the_manager_adds_up_is_ahead_of_what_the_monitors_know() -> None:
    summary = {"total_kb": 3072, "total_kb_used": 1024, "total_kb_avail": 2048}
    view = read({**ANSWERS, "fill": {**ANSWERS["fill"], "summary": summary}})
    assert (view.total_bytes, view.used_bytes, view.available_bytes) == (3 << 20, 1 << 20, 2 << 20)
    old = read({name: answer for name, answer in ANSWERS.items() if name != "fill"})
    assert old.total_bytes == ANSWERS["df"]["stats"]["total_bytes"]


def test_a_pool_that_is_full_says_that_writes_wait() -> None:
    spec = PoolSpec(cluster="c", redundancy="replica:3")
    seen = PoolSeen("p", 1, 3, 2, 8, 0, used_fraction=0.96, full=True)
    accepts, (said,) = fullness(spec, View(), seen, 0.8, True)
    assert not accepts and said.name == "full" and "ALL WRITES WAIT" in said.message and "--now" in said.message
    accepts, (said,) = fullness(spec, View(), replace(seen, over_quota=True), 0.8, True)
    assert not accepts and said.name == "full" and "quota" in said.message and "device" not in said.message


def test_a_share_of_a_pool_is_not_taken_for_the_fill_of_a_device() -> None:
    """Ceph's share is 1 at the full ratio; here the pool alone fills devices to 0.76, which is 0.8 of 0.95."""
    osds = (OsdSeen(0, "0", True, True, total_kib=1000, used_kib=760),)
    seen = PoolSeen("p", 1, 3, 2, 8, 0, stored=5, used_fraction=0.8)
    assert fullness(PoolSpec(cluster="c"), View(osds=osds), seen, 0.8, True) == (True, [])
    accepts, (said,) = fullness(PoolSpec(cluster="c"), View(osds=osds), replace(seen, full=True), 0.8, True)
    assert not accepts and "76% of its fullest device" in said.message
    accepts, (said,) = fullness(PoolSpec(cluster="c"), View(), replace(seen, used_fraction=0.9), 0.8, True)
    assert not accepts and "86% of its fullest device" in said.message and "at 95%" in said.message


def test_what_does_not_need_each_other_goes_at_the_same_time() -> None:
    def step(why: str, beside: str = "") -> Command:
        return Command({}, why, beside=beside)

    steps = [step("1"), step("2", "a"), step("3", "a"), step("4"), step("5"), step("6", "b")]
    assert [[one.why for one in wave] for wave in waves(steps)] == [["1"], ["2", "3"], ["4"], ["5"], ["6"]]
    wanted = Wanted("pol-1", PoolSpec(cluster="c", redundancy="ec:2+1", rados_name="p", data_name="p.data"))
    made = [[one.args["prefix"] for one in wave] for wave in waves(plan_pool(wanted, View(), Slow()))]
    assert made == [["osd crush rule create-replicated", "osd erasure-code-profile set"], ["osd pool create"] * 2]
    pools = {name: PoolSeen(name, 1, 3, 1, 8, 0) for name in ("p", "p.data")}
    *_, last = waves(plan_pool(wanted, View(pools=pools), Slow(rules={rule_of(wanted.spec): 0})))
    assert [one.args["prefix"] for one in last] == ["osd pool application set"] * 2


def test_damaged_objects_are_found_in_the_log() -> None:
    log = [
        {"message": "3.1 shard 2 soid 3:8a7c9e11:::rbd_data.ab.0001:head : candidate had a read error"},
        {"message": "3.1 shard 2 soid 3:8a7c9e11:::rbd_data.ab.0001:head : data_digest 0x1 != 0x2"},
        {"message": "3.2 shard 2 soid 3:8a7c9e11:::rbd_data.cd.0001:head : candidate had a read error"},
        {"message": "3.1 deep-scrub 0 missing, 1 inconsistent objects"},
    ]
    assert damaged_objects(log, ("3.1",)) == {"3.1": ("rbd_data.ab.0001",)}


def test_conditions_have_a_time_and_are_told_of_once() -> None:
    checks = [
        Check("OSD_DOWN", False, "1 osds down", ("osd.3 (root=default,host=n2) is down",)),
        Check("X_Y", True, "odd"),
    ]
    fresh = from_checks(
        [*checks, Check("POOL_NO_REDUNDANCY", False, "said otherwise"), Check("Z", True, "", muted=True)]
    )
    assert [(item.name, item.level) for item in fresh] == [("x-y", "error"), ("osd-down", "warning")]
    assert "osd.3" in fresh[1].message and "device replace" in fresh[1].message
    first = dated(10.0, fresh, ())
    again = dated(20.0, fresh, first)
    assert [item.since for item in again] == [10.0, 10.0]
    assert appeared(again, first) == [] and len(appeared(first, ())) == 2
    assert [item.name for item in vanished((), first)] == ["x-y", "osd-down"]


@pytest.mark.parametrize(
    ("conf", "keyring", "field", "said"),
    [
        ("", "", "conf", "fsid"),
        (f"[global]\nfsid = {FSID}", "", "conf", "mon_host"),
        (f"[global]\nfsid = {FSID}\nmon host = a", "", "keyring", "must have a client"),
        (f"[global]\nfsid = {FSID}\nmon host = a", "[client.admin]\nkey = x", "keyring", "no valid key"),
    ],
)
def test_what_is_missing_for_an_adoption_is_named(conf: str, keyring: str, field: str, said: str) -> None:
    with pytest.raises(ValueError) as raised:
        read_adopted(conf, keyring)
    assert raised.value.args[0] == field and said in raised.value.args[1]


def test_conf_and_keyring_are_read_as_ceph_reads_them() -> None:
    conf = (
        f"; made by hand\n[global]\n\tFSID={FSID.upper()}\n mon_host = [v2:10.0.0.1:3300] # one\n[osd]\nmon host = x\n"
    )
    found = read_adopted(conf, f"[client.bob]\nkey={KEY}\n[client.admin]\n\tkey = {KEY}\n")
    assert (found.fsid, found.mon_host, found.user, found.key) == (FSID, "[v2:10.0.0.1:3300]", "admin", KEY)
    assert read_adopted(conf, f"[client.bob]\nkey={KEY}\n").user == "bob"


def moves(view: View, *sites: Site) -> list[str]:
    steps = devices.plan_tree({site.id: site for site in sites}, view)
    return [f"{step.args['prefix']} {step.args['name']} {step.args.get('args', '')}".strip() for step in steps]


def test_hosts_follow_their_labels_and_what_is_empty_goes() -> None:
    site = Site("id1", "n1", "10.0.0.1", {"rack": "r2", "datacenter": "d1"})
    root = {"root": "default"}
    buckets = {"default": {}, "r1": root, "n1": {**root, "rack": "r1"}, "n9": {**root, "rack": "r1"}}
    assert moves(View(empty_buckets=("n9",), buckets=buckets), site) == [
        "osd crush move n1 ['root=default', 'datacenter=d1', 'rack=r2']",
        "osd crush rm n9",
    ]
    # One that is not in the tree yet is put there by its first OSD.
    assert moves(View(buckets={"default": {}}), site) == []


def test_what_is_below_no_root_is_brought_there_from_above() -> None:
    """Ceph leaves a bucket where it is when something is moved into it; without a root, no data can be placed in it."""
    site = Site("id1", "n1", "10.0.0.1", {"rack": "r1", "datacenter": "d1"})
    placed = {"root": "default", "datacenter": "d1"}
    adrift = {"default": {}, "d1": {}, "r1": {"datacenter": "d1"}, "n1": {"datacenter": "d1", "rack": "r1"}}
    assert moves(View(buckets=adrift), site) == [
        "osd crush move d1 ['root=default']",
        "osd crush move r1 ['root=default', 'datacenter=d1']",
        "osd crush move n1 ['root=default', 'datacenter=d1', 'rack=r1']",
    ]
    right = {"default": {}, "d1": {"root": "default"}, "r1": placed, "n1": {**placed, "rack": "r1"}}
    assert moves(View(buckets=right), site) == []


def test_monitors_leave_one_by_one_and_only_when_their_successors_are_there() -> None:
    before = View(monitors=("a", "b", "c"), quorum=("a", "b", "c"))
    assert devices.plan_monitors(["a", "b", "d"], before) == []
    (step,) = devices.plan_monitors(["a", "d"], View(monitors=("a", "b", "c", "d"), quorum=("a", "c", "d")))
    assert step.args["name"] == "b"


def test_only_what_is_away_is_flagged() -> None:
    view = View(hosts={"n1": {}, "n2": {}}, noout=frozenset({"n2", "theirs"}))
    steps = tuning.plan_noout({"n1": True, "n2": False, "n3": True}, view)
    assert [(step.args["prefix"], step.args["who"]) for step in steps] == [
        ("osd set-group", ["n1"]),
        ("osd unset-group", ["n2"]),
    ]


def osd(number: int, used: int) -> OsdStatus:
    return OsdStatus(osd=number, uuid=f"u{number}", node="n", media="ssd", up=True, used_mib=used, total_mib=100)


def test_removing_is_refused_for_want_of_domains_or_room_and_only_then() -> None:
    pool = ("p", PoolSpec(cluster="c", redundancy="replica:2"))
    spots = [Spot({"host": f"n{number}"}, "ssd") for number in range(3)]
    status = StorageClusterStatus(state="ready", osds=tuple(osd(number, 50) for number in range(3)))  # type: ignore[arg-type]
    assert refusal("c", [pool], spots, spots[:2], status, {"u2"}) is None
    refused = refusal("c", [pool], spots, spots[:1], status, {"u1", "u2"})
    assert refused is not None and refused.kind == "conflict" and "'p' would lose redundancy" in refused.message
    full = StorageClusterStatus(state="ready", osds=tuple(osd(number, 60) for number in range(3)))  # type: ignore[arg-type]
    refused = refusal("c", [pool], spots, spots[:2], full, {"u2"})
    assert refused is not None and refused.kind == "no_capacity"
    # What is short of domains already loses nothing more by it.
    short = [Spot({"host": "n0"}, "ssd")] * 2
    assert refusal("c", [pool], short, short[:1], status, {"u2"}) is None


def placed(host: int, number: int, used: int, **more: Any) -> OsdStatus:
    place = {"host": f"n{host}"}
    name = f"{host}.{number}"
    plain = {"osd": 10 * host + number, "uuid": name, "node": "", "media": "ssd", "up": True, "total_mib": 100}
    return OsdStatus.model_validate(plain | {"used_mib": used, "place": place} | more)


def cluster(*osds: OsdStatus, degraded: int = 0) -> StorageClusterStatus:
    return StorageClusterStatus(state=State.READY, osds=osds, recovery=Recovery(degraded=degraded))


def test_what_leaves_a_device_must_fit_where_it_can_go() -> None:
    three = [("p", PoolSpec(cluster="c", redundancy="replica:3"))]
    pairs = cluster(*(placed(host, number, 60) for host in (1, 2, 3) for number in (0, 1)))
    refused = no_room("c", three, pairs, {"1.0"})
    assert refused is not None and refused.kind == "no_capacity"
    assert "stay in host n1 have 100 MiB, and 120 MiB would be on them" in refused.message
    # What needs not every host goes elsewhere, and there is room.
    assert no_room("c", [("p", PoolSpec(cluster="c", redundancy="replica:2"))], pairs, {"1.0"}) is None
    assert no_room("c", [], pairs, {"1.0"}) is None
    # A host that goes altogether has its share go to each of the others, the small one too.
    uneven = cluster(placed(1, 0, 40), placed(2, 0, 40), placed(3, 0, 40), placed(4, 0, 24, total_mib=50))
    refused = no_room("c", three, uneven, {"1.0"})
    assert refused is not None and "stay in host n4 have 50 MiB, and 48 MiB would be on them" in refused.message
    # One that is dead and out has nothing to be moved away.
    dead = placed(1, 0, 60, up=False, taken_in=False)
    assert no_room("c", three, cluster(dead, *pairs.osds[1:]), {"1.0"}) is None


@pytest.mark.parametrize("seen", [{}, {"taken_in": False}, {"taken_in": False, "up": False}])
def test_what_is_on_its_way_already_needs_room_too(seen: dict[str, bool]) -> None:
    """Whether the first removal is seen in the cluster yet or not; and of a device that died and is rebuilt."""
    two = [("p", PoolSpec(cluster="c", redundancy="replica:2"))]
    osds = [placed(host, 0, 50) for host in (1, 2, 3, 4)]
    assert no_room("c", two, cluster(*osds), {"1.0"}) is None
    osds[0] = placed(1, 0, 50, **seen)
    refused = no_room("c", two, cluster(*osds, degraded=9), {"2.0"}, {"1.0"})
    assert refused is not None and refused.kind == "no_capacity" and "100 MiB would be on them" in refused.message


@pytest.mark.parametrize(
    ("used", "accepted", "accepts", "names"),
    [
        (0.5, True, True, []),
        (0.81, True, True, ["filling-up"]),
        (0.86, True, False, ["near-full"]),
        (0.83, False, False, ["near-full"]),
        (0.83, True, True, ["filling-up"]),
        (0.79, False, True, []),
    ],
)
def test_a_pool_is_as_full_as_its_fullest_device(used: float, accepted: bool, accepts: bool, names: list[str]) -> None:
    osds = tuple(
        OsdSeen(number, str(number), True, True, media="ssd", total_kib=1000, used_kib=int(1000 * part))
        for number, part in enumerate((0.1, used))
    )
    other = OsdSeen(9, "9", True, True, media="hdd", total_kib=1000, used_kib=999)
    seen = PoolSeen("p", 1, 3, 2, 8, 0, stored=5)
    spec = PoolSpec(cluster="c", media="ssd")  # type: ignore[arg-type]
    got, conditions = fullness(spec, View(osds=(*osds, other)), seen, 0.8, accepted)
    assert (got, [item.name for item in conditions]) == (accepts, names)


def test_capacity_is_as_users_see_it() -> None:
    seen = PoolSeen("p", 1, 3, 2, 8, 0, stored=3 << 20, available=7 << 20)
    capacity = pool_capacity(PoolSpec(cluster="c"), View(), seen, 20, [])
    assert (capacity.total_mib, capacity.used_mib, capacity.available_mib, capacity.provisioned_mib) == (10, 3, 7, 20)
    assert (raw_factor("replica:3"), raw_factor("ec:4+2")) == (3.0, 1.5)


def filled(*parts: float, media: str = "ssd") -> View:
    """Devices of 1000 MiB."""
    osds = tuple(
        OsdSeen(number, str(number), True, True, media=media, total_kib=1000 << 10, used_kib=int(part * 1000) << 10)
        for number, part in enumerate(parts)
    )
    used = sum(osd.used_kib for osd in osds) << 10
    total = len(osds) * 1000 << 20
    return View(osds=osds, total_bytes=total, used_bytes=used, available_bytes=total - used)


def test_the_forecast_is_of_the_fullest_device() -> None:
    history = [(hour * 3600.0, hour * 10) for hour in range(48)]  # 240 MiB a day
    capacity = cluster_capacity(filled(0.5, 0.6), 0, history)
    # All fill alike: 1100 MiB are used, of which 0.85/0.6 and 0.95/0.6 can be.
    assert (capacity.refused_in_days, capacity.full_in_days) == (1.9, 2.7)
    assert forecast(capacity) == "; at this rate new disks are refused in 1.9 days and all writes wait in 2.7 days"
    assert forecast(cluster_capacity(filled(0.5, 0.6), 0, [])) == ""
    late = cluster_capacity(filled(0.5, 0.9), 0, history)
    assert late.refused_in_days == 0 and "refused" not in forecast(late) and "all writes wait in" in forecast(late)

    seen = PoolSeen("p", 1, 3, 2, 8, 0, stored=300 << 20, available=200 << 20)
    spec = PoolSpec(cluster="c")
    own = pool_capacity(spec, filled(0.75, 0.5), seen, 0, history)
    # Half of what can be written until 95 % can be until 85 %.
    assert (own.refused_in_days, own.full_in_days) == (0.4, 0.8)
    shared = sooner(own, capacity.model_copy(update={"refused_in_days": None, "full_in_days": 0.5}))
    assert (shared.refused_in_days, shared.full_in_days) == (0.4, 0.5)
    for used, name in ((0.81, "filling-up"), (0.86, "near-full")):
        _, (said,) = fullness(spec, filled(used), seen, 0.8, True, forecast(own))
        assert said.name == name and forecast(own) in said.message


def test_what_recovers_gives_way_as_asked() -> None:
    slow, fast = (
        tuning.settings(StorageClusterSpec(recovery_profile=profile))  # type: ignore[arg-type]
        for profile in ("client", "recovery")
    )
    assert int(slow["osd", "osd_max_backfills"]) < int(fast["osd", "osd_max_backfills"])
    assert float(slow["osd", "osd_recovery_sleep_ssd"]) > float(fast["osd", "osd_recovery_sleep_ssd"])


@pytest.mark.parametrize(
    ("osds", "wanted"),
    [
        ("1", ("osd", 1)),
        ("2", ("osd", 1)),
        ("3", ("osd", 2)),
        ("1 1", ("osd", 1)),
        ("3 1", ("osd", 1)),
        ("2 2", ("osd", 2)),
        ("1 1 1", ("host", 2)),
        ("2 2 2 2", ("host", 2)),
    ],
)
def test_whoever_is_left_may_call_a_host_dead(osds: str, wanted: tuple[str, int]) -> None:
    counts = [int(count) for count in osds.split()]
    devices = [
        Device(node=f"n{host}", path=f"/dev/{host}-{number}")
        for host, count in enumerate(counts)
        for number in range(count)
    ]
    assert tuning.reporters(devices) == wanted
    level, enough = wanted
    if len(counts) > 1:
        left = len(counts) - 1 if level == "host" else min(counts)
        assert enough <= left, "all others of any host can say that it is dead"
    leaving = Device(node="n9", path="/dev/x", out=True)
    assert tuning.reporters([*devices, leaving]) == wanted
    spec = StorageClusterSpec(devices=tuple(devices))
    assert tuning.settings(spec)["mon", "mon_osd_min_down_reporters"] == str(enough)
