"""The texts that dnsmasq reads and writes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scloud.drivers.netfunc import dnsmasq
from scloud.drivers.netfunc.protocol import HostEntry, SubnetEntry, VpcServiceSpec
from scloud.model.errors import CloudError


def entry(name: str, number: int, local: bool = True) -> HostEntry:
    return HostEntry(
        nic=f"nic-{number}",
        hostname=name,
        mac=f"02:00:00:00:00:{number:02x}",
        ip=f"10.7.0.{number}",
        subnet="sub-1",
        local=local,
    )


def spec(*hosts: HostEntry, cidr: str = "10.7.0.0/24") -> VpcServiceSpec:
    return VpcServiceSpec(
        vpc="vpc-1",
        domain="blue.internal",
        port="p0",
        service_mac="02:5c:00:00:00:01",
        mtu=1450,
        subnets=(SubnetEntry(id="sub-1", cidr=cidr, gateway="10.7.0.1", service_ip="10.7.0.2"),),
        hosts=hosts,
    )


def test_files_do_not_depend_on_the_order_of_hosts() -> None:
    web, db = entry("web", 10), entry("db", 11, local=False)
    assert dnsmasq.names(spec(web, db)) == dnsmasq.names(spec(db, web))
    assert dnsmasq.names(spec(web, db)) == ("10.7.0.10 web.blue.internal web\n10.7.0.11 db.blue.internal db\n")
    assert dnsmasq.leases(spec(db, web)) == "02:00:00:00:00:0a,10.7.0.10,web.blue.internal\n"
    assert dnsmasq.names(spec()) == dnsmasq.leases(spec()) == ""


@given(st.text(max_size=12))
def test_a_hostname_is_one_label_or_is_refused(name: str) -> None:
    try:
        text = dnsmasq.names(spec(entry(name, 10)))
    except CloudError:
        return
    assert text == f"10.7.0.10 {name}.blue.internal {name}\n"
    assert name.isascii() and name.replace("-", "a").isalnum() and name == name.lower()


@pytest.mark.parametrize(
    ("cidr", "zone"),
    [
        ("10.7.0.0/24", "0.7.10.in-addr.arpa"),
        ("10.7.0.128/29", "0.7.10.in-addr.arpa"),
        ("10.7.16.0/20", "7.10.in-addr.arpa"),
        ("10.0.0.0/8", "10.in-addr.arpa"),
        ("10.0.0.0/15", "10.in-addr.arpa"),
    ],
)
def test_reverse_zones_end_on_an_octet(cidr: str, zone: str) -> None:
    here = Path("/x")
    text = dnsmasq.configuration(spec(cidr=cidr), here, here, here, here, "nobody")
    assert f"local=/{zone}/" in text.splitlines()


LEASES = """1700000000 02:00:00:00:00:0a 10.7.0.10 web 01:02:00:00:00:00:0a
1700000000 02:00:00:00:00:0b 10.7.0.11 * *
1700000000 02:00:00:00:00:0c 10.7.0.13 db *
duid 00:01:00:01
1700000000 02:00:00:0"""


def test_leases_of_nobody_are_found_and_struck_out() -> None:
    now = spec(entry("web", 10), entry("db", 12), entry("gone", 11, local=False))
    assert dnsmasq.stray(LEASES, now) == [("02:00:00:00:00:0b", "10.7.0.11"), ("02:00:00:00:00:0c", "10.7.0.13")]
    assert dnsmasq.without_stray(LEASES, now) == LEASES.splitlines()[0] + "\n"
    assert dnsmasq.stray("", now) == []


def test_a_release_is_what_the_rfc_says() -> None:
    packet = dnsmasq.release("02:00:00:00:00:0a", "10.7.0.10", "10.7.0.2")
    assert packet[:4] == b"\x01\x01\x06\x00"
    assert socket.inet_ntoa(packet[12:16]) == "10.7.0.10"
    assert packet[28:44] == bytes.fromhex("02000000000a") + bytes(10)
    assert packet[236:] == bytes((99, 130, 83, 99, 53, 1, 7, 54, 4, 10, 7, 0, 2, 255))


def test_the_server_of_an_address() -> None:
    assert dnsmasq.server_of("10.7.0.99", spec()) == "10.7.0.2"
    assert dnsmasq.server_of("10.8.0.99", spec()) is None
