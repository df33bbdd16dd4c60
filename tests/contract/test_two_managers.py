"""Two managers, each a process of its own, on one real PostgreSQL; nodes are real agents on fake drivers."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from scloud.client.contexts import Context
from scloud.client.http import Client
from scloud.standby.aside import SETTLE_S
from scloud.standby.leadership import LEASE_S
from scloud.store.database import Store, Tx, open_postgres
from scloud.store.lease import Holder, guard_of, take_lease
from scloud.store.schema import migrate
from support.figures import Figures
from support.managers import ManagerProcess, Pair, until
from support.postgres import Server, running

pytestmark = pytest.mark.engine
TAKEOVER_S = 30.0
"""Far more than the aim of 10 s, which is measured and told: this machine may be busy."""
ENDS_S = LEASE_S + 20.0
"""In which a leader that has lost the lease has ended; one that waited for its database took half a minute more."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as started:
        yield started


@pytest.fixture
def pair(server: Server, tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path, server.database())
    try:
        made.start()
        yield made
    finally:
        made.stop()


def test_a_standby_takes_over_from_a_leader_that_dies_and_from_one_that_hangs(pair: Pair, figures: Figures) -> None:
    pair.furnish()
    one, other = pair.one, pair.other
    pair.make_vm("before", one)
    until(lambda: pair.runs("before", other), "the VM runs, as both managers say")
    until(lambda: list((other.root / "images").glob("*.raw")), "the standby has a copy of the image")
    assert (other.root / "images").glob("*.raw").__next__().read_bytes()[:6] == b"scloud"
    roles = {manager["role"]: manager["api"] for manager in pair.get("/managers")["items"]}
    assert roles == {"leader": f"127.0.0.1:{one.api}", "standby": f"127.0.0.1:{other.api}"}

    # Killed while it has work in hand.
    operation = pair.make_vm("during", one)
    one.signal(signal.SIGKILL)
    one.end()
    took = until(lambda: pair.answers(other), "the standby answers as leader")
    assert other.role() == "leader"
    until(lambda: pair.runs("during", other), "what was in hand is finished")
    assert pair.get(f"/operations/{operation}", other)["state"] == "done"
    assert pair.runs("before", other)
    figures.note(f"two managers: the leader killed, the other answers {took:.1f} s after")

    # The one that was killed comes back as a standby; then the leader hangs.
    one.start()
    until(lambda: one.role() == "standby", "the first stands by now")
    other.signal(signal.SIGSTOP)
    took = until(lambda: one.role() == "leader" and pair.answers(one), "the first leads again")
    until(lambda: pair.get("/status", one)["connected"] == 2, "both nodes have come over")
    figures.note(f"two managers: the leader hangs, the other answers {took:.1f} s after")
    pair.make_vm("after", one)
    until(lambda: pair.runs("after", one), "VMs are made as ever")

    # The one that hung goes on where it was: it writes nothing, and ends.
    other.signal(signal.SIGCONT)
    assert other.end() == 3, (other.root / "log").read_text()[-500:]
    # A node that came over later than the new leader's patience was "down" for a moment, and its VMs unknown.
    until(
        lambda: all(pair.runs(name, one) for name in ("before", "during", "after")) and len(pair.vms(one)) == 3,
        "all three VMs run",
    )


def test_while_nobody_leads_a_standby_says_so(pair: Pair) -> None:
    pair.one.signal(signal.SIGSTOP)
    pair.other.signal(signal.SIGSTOP)
    pair.one.signal(signal.SIGKILL)
    pair.one.end()
    pair.other.signal(signal.SIGCONT)
    answers: list[httpx.Response] = []

    def led() -> bool:
        answers.append(pair.request("GET", "/vms", via=pair.other))
        return answers[-1].is_success

    until(led, "the standby leads")
    refused = [answer for answer in answers if not answer.is_success]
    assert refused, "nobody asked while nobody led"
    for answer in refused:
        assert answer.status_code == 503 and answer.json()["code"] == "unavailable"
        assert answer.headers["retry-after"] and "takes over" in answer.json()["detail"]


def test_a_leader_that_is_told_to_end_hands_over_at_once(pair: Pair) -> None:
    pair.one.signal(signal.SIGTERM)
    assert pair.one.end() == 0
    assert until(lambda: pair.other.role() == "leader" and pair.answers(pair.other), "the other leads") < TAKEOVER_S


def test_a_leader_that_is_cut_off_from_the_database_ends_and_the_other_finishes_its_work(
    pair: Pair, figures: Figures
) -> None:
    pair.furnish()
    one, other = pair.one, pair.other
    pair.make_vm("before", one)
    until(lambda: pair.runs("before", one), "the VM runs")
    operation = pair.make_vm("during", one)
    one.to_database.cut()
    began = time.monotonic()
    with pytest.raises(httpx.TransportError):
        # It cannot be written, and is not promised: its connection ends with the leader, and not before.
        pair.request("POST", "/vpcs", {"name": "late"}, via=one)
    assert one.end() == 3
    ended = time.monotonic() - began
    assert ended < ENDS_S, (one.root / "log").read_text()[-2000:]
    until(lambda: other.role() == "leader" and pair.answers(other), "the other leads")
    took = time.monotonic() - began
    figures.note(f"two managers: the leader cut off from the database ends {ended:.1f} s after")
    figures.note(f"two managers: the leader cut off from the database, the other answers {took:.1f} s after")
    until(lambda: pair.runs("during", other), "what was in hand is finished")
    assert pair.get(f"/operations/{operation}", other)["state"] == "done"

    # Started anew while it is still cut off, it knows of no leader; a client that knows both asks the other.
    one.start()
    until(lambda: pair.says(one) == 503, "it answers that it knows of no leader")
    urls = [f"http://127.0.0.1:{manager.api}" for manager in (one, other)]
    with Client(Context("both", urls[0], pair.token, others=(urls[1],))) as client:
        assert len(client.get("/vms")["items"]) == 2

    # What was on the way when the wire was cut arrives now, and counts for nothing.
    one.to_database.mend()
    until(lambda: one.role() == "standby", "the first stands by")
    assert pair.request("GET", "/vpcs/late", via=one).status_code == 404
    assert pair.runs("before", one) and len(pair.vms(one)) == 2


def test_nodes_that_do_not_reach_the_leader_come_by_way_of_the_standby(pair: Pair) -> None:
    pair.furnish()
    one, other = pair.one, pair.other
    until(lambda: pair.led_s() > SETTLE_S, "a leader that could hand over", SETTLE_S + 5.0)
    one.from_nodes.cut()
    pair.make_vm("during", other)
    until(lambda: pair.runs("during", other), "its node is told by way of the standby")
    until(lambda: pair.get("/status", one)["connected"] == 2, "both nodes are heard")
    assert (one.role(), other.role(), one.epoch()) == ("leader", "standby", 1)


def test_a_leader_that_nodes_do_not_reach_hands_over_to_the_one_that_they_do(pair: Pair, figures: Figures) -> None:
    pair.furnish()
    one, other = pair.one, pair.other
    pair.make_vm("before", one)
    until(lambda: pair.runs("before", one), "the VM runs")
    until(lambda: pair.led_s() > SETTLE_S, "a leader that has just begun waits for its nodes", SETTLE_S + 5.0)
    one.from_nodes.cut()
    one.from_manager.cut()
    began = time.monotonic()
    operation = pair.make_vm("during", one)  # it has the database still, and places it; its node does not hear
    assert one.end() == 3
    until(lambda: other.role() == "leader" and pair.answers(other), "the other leads")
    took = time.monotonic() - began
    figures.note(f"two managers: the leader cut off from all nodes, the other answers {took:.1f} s after")
    until(lambda: pair.runs("during", other), "what was in hand is finished")
    assert pair.get(f"/operations/{operation}", other)["state"] == "done"
    until(lambda: pair.runs("before", other), "its node has come over, too")
    assert other.epoch() == 2

    # It is cut off still, and stands by: nodes that call at it are not a reason to lead.
    one.start()
    until(lambda: one.role() == "standby", "the first stands by")
    pair.make_vm("after", one)
    until(lambda: pair.runs("after", one), "VMs are made as ever, asked of either")
    assert other.role() == "leader" and other.epoch() == 2


def test_a_leader_that_stops_in_the_middle_of_a_write_holds_nobody_up(server: Server) -> None:
    database = server.database()
    old, new = (open_postgres(database, clock=time.time) for _ in range(2))
    migrate(old)
    one, other = (Holder(id=name, api="127.0.0.1:1", link="127.0.0.1:2") for name in ("one", "other"))
    assert old.write_now(lambda tx: take_lease(tx, one, LEASE_S)) == 1
    old.guard = guard_of(1)
    stopped, goes_on = threading.Event(), threading.Event()
    failed: list[Exception] = []

    def stop(tx: Tx) -> None:
        stopped.set()
        goes_on.wait(60)
        take_lease(tx, one, LEASE_S)

    def write(store: Store) -> None:
        try:
            store.write_now(stop)
        except Exception as error:
            failed.append(error)

    writing = threading.Thread(target=write, args=(old,))
    writing.start()
    assert stopped.wait(10)
    began = time.monotonic()
    until(lambda: new.write_now(lambda tx: take_lease(tx, other, LEASE_S)) == 2, "the other leads")
    assert time.monotonic() - began < 10.0
    goes_on.set()
    writing.join(30)
    assert failed, "what was written late counts"
    for store in (old, new):
        store.close()


def test_the_console_answers_through_the_standby(pair: Pair) -> None:
    base = f"http://127.0.0.1:{pair.other.api}"
    with httpx.Client(base_url=base, trust_env=False, follow_redirects=True, timeout=20.0) as browser:
        page = browser.get("/")
        assert page.url.path == "/login" and "Sign in" in page.text
        browser.post("/login", data={"token": pair.token, "next": "/nodes"}).raise_for_status()
        page = browser.get("/nodes").raise_for_status()
        assert page.url.path == "/nodes" and all(name in page.text for name in ("n1", "n2"))
        with browser.stream("GET", "/live") as events:
            assert events.is_success and events.headers["content-type"].startswith("text/event-stream")
            assert next(events.iter_raw()), "the live stream speaks through it"
    assert pair.other.role() == "standby"


def test_a_manager_whose_database_is_away_says_so_and_leads_when_it_is_back(server: Server, tmp_path: Path) -> None:
    alone = ManagerProcess(tmp_path, server.database())
    url = f"http://127.0.0.1:{alone.api}/healthz"
    answers: list[int] = []

    def answered() -> bool:
        try:
            answers.append(httpx.get(url, timeout=5.0, trust_env=False).status_code)
        except httpx.TransportError:
            return False
        return True

    try:
        alone.to_database.cut()
        alone.start()
        until(answered, "it answers")
        assert answers == [503] and alone.role() is None
        alone.to_database.mend()
        until(lambda: alone.role() == "leader" and answered(), "it leads")
        assert answers[-1] == 200
    finally:
        alone.close()
