"""Security groups on running guests, and `network trace`, which must say what really happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.cloud import Guest, Lab, until
from lab.shared import Twins, Wide

pytestmark = pytest.mark.usefixtures("serving")


@pytest.fixture(scope="module")
def serving(wide: Wide) -> None:
    wide.a3.serve(8080, "open")
    wide.a3.serve(8081, "other")
    wide.a3.run("nc -ll -p 9000 -e cat < /dev/null > /dev/null 2>&1 &")


@contextmanager
def rule(lab: Lab, group: str, options: str) -> Iterator[str]:
    """A rule of a group, meanwhile; its id."""
    before = {item["id"] for item in lab.json("security-group", "rule", "list", group)}
    lab.ok("security-group", "rule", "add", group, *options.split())
    made = next(item["id"] for item in lab.json("security-group", "rule", "list", group) if item["id"] not in before)
    try:
        yield made
    finally:
        if any(item["id"] == made for item in lab.json("security-group", "rule", "list", group)):
            lab.ok("security-group", "rule", "delete", group, made)


def trace(lab: Lab, source: str, target: str, *options: str) -> dict[str, object]:
    found: dict[str, object] = lab.json("network", "trace", source, target, *options)
    return found


def test_what_no_rule_lets_in_stays_out(lab: Lab, wide: Wide) -> None:
    """a3 is in another group than a1 and a2: same node or not, nothing gets in, and everything gets out."""
    for guest in (wide.a1, wide.a2):
        assert not guest.reaches(wide.a3.ip, 8080)
        assert not guest.pings(wide.a3.ip, 1)
        assert not guest.reaches_udp(wide.a3.ip)
    assert wide.a1.pings(wide.a2.ip), "members of one group reach each other"
    wide.a1.serve(8090, "member")
    assert not wide.a3.reaches(wide.a1.ip, 8090)


@pytest.mark.parametrize("source", ["a1", "a2"])
def test_a_rule_by_cidr_acts_at_once(lab: Lab, wide: Wide, source: str) -> None:
    guest: Guest = getattr(wide, source)
    with rule(lab, "right", f"--direction inbound --protocol tcp --port 8080 --cidr {guest.ip}/32"):
        assert guest.reaches(wide.a3.ip, 8080)
        assert guest.fetch(f"http://{wide.a3.ip}:8080/").out.strip() == "open"
        assert not guest.reaches(wide.a3.ip, 8081), "another port"
        assert not guest.pings(wide.a3.ip, 1), "another protocol"
        other = wide.a2 if source == "a1" else wide.a1
        assert not other.reaches(wide.a3.ip, 8080), "another sender"
    assert not guest.reaches(wide.a3.ip, 8080)


def test_a_rule_by_group_lets_its_members_in(lab: Lab, wide: Wide) -> None:
    with rule(lab, "right", "--direction inbound --protocol tcp --port 8080-8081 --group left"):
        for guest in (wide.a1, wide.a2):
            assert guest.reaches(wide.a3.ip, 8080) and guest.reaches(wide.a3.ip, 8081)
        # Membership is followed at once.
        lab.ok("nic", "set", wide.a1.nic["id"], "--security-group", "twins-l")
        try:
            assert not wide.a1.reaches(wide.a3.ip, 8080)
            assert wide.a2.reaches(wide.a3.ip, 8080)
        finally:
            lab.ok("nic", "set", wide.a1.nic["id"], "--security-group", "left")
        assert wide.a1.reaches(wide.a3.ip, 8080)


def test_icmp_and_udp(lab: Lab, wide: Wide) -> None:
    with rule(lab, "right", "--direction inbound --protocol icmp --cidr 10.50.0.0/24"):
        assert wide.a1.pings(wide.a3.ip, 1) and wide.a2.pings(wide.a3.ip, 1)
        assert not wide.a1.reaches_udp(wide.a3.ip)
    assert not wide.a1.pings(wide.a3.ip, 1)
    with rule(
        lab,
        "right",
        "--direction inbound --protocol udp --port 33434-33500 --cidr 10.50.0.0/24",
    ):
        assert wide.a1.reaches_udp(wide.a3.ip) and wide.a2.reaches_udp(wide.a3.ip)
        assert not wide.a1.pings(wide.a3.ip, 1)


def test_outbound_rules(lab: Lab, wide: Wide) -> None:
    everything = next(
        item for item in lab.json("security-group", "rule", "list", "right") if item["direction"] == "outbound"
    )
    wide.a2.serve(8080, "a2")
    with rule(lab, "left", "--direction inbound --protocol any --group right"):
        assert wide.a3.reaches(wide.a2.ip, 8080) and wide.a3.pings(wide.a2.ip, 1)
        lab.ok("security-group", "rule", "delete", "right", everything["id"])
        try:
            assert not wide.a3.reaches(wide.a2.ip, 8080)
            assert not wide.a3.pings(wide.a2.ip, 1)
            with rule(lab, "right", f"--direction outbound --protocol tcp --port 8080 --cidr {wide.a2.ip}/32"):
                assert wide.a3.reaches(wide.a2.ip, 8080)
                assert not wide.a3.pings(wide.a2.ip, 1)
        finally:
            lab.ok("security-group", "rule", "add", "right", "--direction", "outbound", "--cidr", "0.0.0.0/0")
        assert wide.a3.pings(wide.a2.ip, 1)


@pytest.mark.parametrize("source", ["a1", "a2"])
def test_taking_a_rule_away_cuts_what_only_it_allowed(lab: Lab, wide: Wide, source: str) -> None:
    guest: Guest = getattr(wide, source)
    count = "wc -l < /tmp/echo"
    with rule(lab, "right", "--direction inbound --protocol tcp --port 9000 --group left") as made:
        guest.background(
            f"echo $$ > /tmp/echo.pid; while :; do echo tick; usleep 100000; done | nc {wide.a3.ip} 9000 > /tmp/echo"
        )
        until(lambda: int(guest.run(count)) > 3, "the echo comes back", 15.0)
        # A second rule that allows it as well: the connection goes on without the first.
        with rule(lab, "right", f"--direction inbound --protocol tcp --port 9000 --cidr {guest.ip}/32"):
            lab.ok("security-group", "rule", "delete", "right", made)
            seen = int(guest.run(count))
            until(lambda: int(guest.run(count)) > seen + 3, "the other rule carries it", 15.0)
        seen = int(guest.run(count))
        assert not guest.reaches(wide.a3.ip, 9000)
        guest.run("usleep 1500000")
        assert int(guest.run(count)) <= seen + 1, "established, and cut"
    guest.run("kill -TERM -$(cat /tmp/echo.pid) 2>/dev/null; rm -f /tmp/echo*; true")


@pytest.mark.parametrize("source", ["a1", "a2"])
def test_trace_says_what_happens_and_names_the_group(lab: Lab, wide: Wide, source: str) -> None:
    guest: Guest = getattr(wide, source)
    dropped = trace(lab, source, "a3", "--tcp", "8080")
    assert dropped["verdict"] == "dropped" and "right" in str(dropped["summary"]), dropped
    assert not guest.reaches(wide.a3.ip, 8080)
    with rule(lab, "right", "--direction inbound --protocol tcp --port 8080 --group left"):
        found = trace(lab, source, "a3", "--tcp", "8080")
        assert found["verdict"] == "delivered", found
        assert guest.reaches(wide.a3.ip, 8080)
        assert not any("not what it should do" in step["text"] for step in found["steps"])  # type: ignore[attr-defined]
        if source == "a2":
            assert {step["node"] for step in found["steps"]} >= {"n1", "n2"}  # type: ignore[attr-defined]
        assert trace(lab, source, "a3", "--tcp", "8081")["verdict"] == "dropped"
        assert not guest.reaches(wide.a3.ip, 8081)
    said = lab.ok("network", "trace", source, "a3", "--tcp", "8080")
    assert "dropped" in said and "right" in said
    ping = trace(lab, "a1", "a2", "--icmp")
    assert ping["verdict"] == "delivered" and wide.a1.pings(wide.a2.ip, 1)


def test_trace_across_vpcs(lab: Lab, wide: Wide, twins: Twins) -> None:
    found = trace(lab, "a1", "l1", "--tcp", "80")
    assert found["verdict"] == "dropped"
    assert any("different VPCs" in step["text"] for step in found["steps"])  # type: ignore[attr-defined]
    assert not wide.a1.reaches(twins.l1.ip, 80)


def test_a_nic_in_no_group_talks_to_the_services_only(lab: Lab, wide: Wide) -> None:
    nic = wide.a1.nic["id"]
    lab.ok("nic", "set", nic, "--no-security-group")
    try:
        assert not wide.a1.pings(wide.a2.ip, 1)
        assert not wide.a2.pings(wide.a1.ip, 1)
        assert wide.a1.fetch("http://169.254.169.254/latest/meta-data/instance-id").out == wide.a1.id
        assert wide.a2.ip in wide.a1.run("nslookup a2 2>&1 || true")
    finally:
        lab.ok("nic", "set", nic, "--security-group", "left")
    assert wide.a1.pings(wide.a2.ip)
