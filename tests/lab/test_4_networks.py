"""VPC networks: packets between real guests, and what must not get through."""

from __future__ import annotations

import re

from lab.cloud import Lab, captured, concurrently, until
from lab.shared import HIGHEST_VNI, Twins, Wide

VXLAN = f"udp port 4789 and udp[12:4] = {HIGHEST_VNI << 8:#x}"
"""Packets on the underlay that carry the VNI of `wide`: it is in the upper three bytes of the second word of VXLAN."""


def test_addresses_names_and_mtu(lab: Lab, wide: Wide) -> None:
    assert wide.a1.ip.startswith("10.50.0.") and len({wide.a1.ip, wide.a2.ip, wide.a3.ip}) == 3
    assert wide.a1.run("cat /sys/class/net/eth0/mtu") == "1450"
    assert wide.a1.run("cat /sys/class/net/eth0/address") == wide.a1.nic["spec"]["mac"]
    assert f"{wide.a1.ip}/24" in wide.a1.run("ip -4 addr show eth0")
    for guest in (wide.a1, wide.a2):
        answer = guest.run("nslookup a2 2>&1 || true")
        assert wide.a2.ip in answer, answer
    assert wide.a1.run("ping -c 1 -W 3 a2 | grep -c 'bytes from'") == "1"
    # The names of one VPC are no other's.
    assert "10.60" not in wide.a1.run("nslookup l2 2>&1 || true")


def test_an_address_may_be_given_and_is_had_once(lab: Lab, wide: Wide) -> None:
    lab.ok("nic", "create", "fixed", "--subnet", "wide", "--ip", "10.50.0.200")
    assert lab.refused("nic", "create", "again", "--subnet", "wide", "--ip", "10.50.0.200")["code"] == "conflict"
    assert lab.refused("nic", "create", "again", "--subnet", "wide", "--ip", "10.50.0.1")["code"] == "invalid"
    assert lab.refused("nic", "create", "again", "--subnet", "wide", "--ip", "10.9.9.9")["code"] == "invalid"
    assert lab.refused("vpc", "create", "same", "--vni", str(HIGHEST_VNI))["code"] == "conflict"
    assert lab.scloud("vpc", "create", "beyond", "--vni", str(HIGHEST_VNI + 1)).code == 2
    assert lab.refused("subnet", "delete", "wide")["code"] == "in_use"
    lab.ok("nic", "delete", "fixed")


def test_across_nodes_and_on_one_node(lab: Lab, wide: Wide) -> None:
    with captured(lab, "n2", "eth0", VXLAN) as seen:
        assert wide.a1.pings(wide.a2.ip)
    assert any(f"vni {HIGHEST_VNI}" in line for line in seen), seen[:3]
    flows = lab.on("n1", "ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "br-int")
    assert re.search(rf"set_field:({HIGHEST_VNI}|0xffffff)->tun_id", flows) or re.search(r"tun_id=0xffffff", flows)

    wide.a2.serve(80, "from the other node")
    assert wide.a1.run(f"wget -q -O - http://{wide.a2.ip}/") == "from the other node"
    # Full-size segments, both ways, with their checksums as they should be.
    wide.a2.run("dd if=/dev/urandom of=/tmp/www80/big bs=64k count=64 2>/dev/null")
    assert wide.a1.run(f"wget -q -O - http://{wide.a2.ip}/big | sha256sum", 120.0) == wide.a2.run(
        "sha256sum < /tmp/www80/big"
    )
    assert wide.a1.succeeds(f"ping -c 1 -W 2 -s 1422 {wide.a2.ip} > /dev/null"), "the largest that fits"

    # What is on the same node is not seen on the underlay.
    lab.ok("nic", "set", wide.a3.nic["id"], "--security-group", "left")
    try:
        with captured(lab, "n1", "eth0", f"{VXLAN} and udp[38:4] = {_number(wide.a3.ip)}") as seen:
            assert wide.a1.pings(wide.a3.ip)
        assert seen == []
    finally:
        lab.ok("nic", "set", wide.a3.nic["id"], "--security-group", "right")


def _number(address: str) -> int:
    import ipaddress

    return int(ipaddress.IPv4Address(address))


def test_nothing_is_flooded(lab: Lab, wide: Wide) -> None:
    """n3 has no nic of the VPC: no packet of it comes there, whatever a guest sends."""
    noise = (
        "ip neigh flush dev eth0; "
        "ping -c 3 -i 0.2 -W 1 10.50.0.255 > /dev/null 2>&1; "
        "arping -c 3 -w 2 -I eth0 10.50.0.77 > /dev/null 2>&1; "
        "ping -c 2 -i 0.2 -W 1 224.0.0.1 > /dev/null 2>&1; true"
    )
    with captured(lab, "n3", "eth0", VXLAN) as at_n3, captured(lab, "n2", "eth0", VXLAN) as at_n2:
        wide.a1.run(noise)
        assert wide.a1.pings(wide.a2.ip)
    assert at_n3 == []
    assert at_n2, "the pings to a2 were seen there"
    assert not any("Broadcast" in line or "ff:ff:ff:ff:ff:ff" in line or "224.0.0.1" in line for line in at_n2)
    assert "wide" not in lab.on("n3", "ip", "netns", "list")


def test_two_vpcs_with_the_same_addresses_are_two_worlds(lab: Lab, twins: Twins) -> None:
    assert twins.l1.ip == twins.r1.ip and twins.l2.ip == twins.r2.ip
    for guest, words in ((twins.l2, "left"), (twins.r2, "right")):
        guest.serve(80, words)
    assert twins.l1.run("wget -q -O - http://10.60.0.11/") == "left"
    assert twins.r1.run("wget -q -O - http://10.60.0.11/") == "right"
    for guest in (twins.l1, twins.r1):
        assert guest.pings("10.60.0.11")
    # With r2's address free in its VPC, l2's own still answers l1, and nobody answers r1.
    nic = twins.r2.nic
    for rule in lab.json("security-group", "rule", "list", "twins-r"):
        lab.ok("security-group", "rule", "delete", "twins-r", rule["id"])
    assert twins.l1.run("wget -q -O - http://10.60.0.11/") == "left"
    assert not twins.r1.reaches("10.60.0.11", 80)
    lab.ok("security-group", "rule", "add", "twins-r", "--direction", "outbound", "--cidr", "0.0.0.0/0")
    lab.ok("security-group", "rule", "add", "twins-r", "--direction", "inbound", "--group", "twins-r")
    assert twins.r1.run("wget -q -O - http://10.60.0.11/") == "right"
    assert twins.l1.nic["spec"]["mac"] != twins.r1.nic["spec"]["mac"] and nic["id"] == twins.r2.nic["id"]
    assert not twins.l1.pings("10.50.0.3", 1), "nor is there a way to another VPC's range"


def test_forged_addresses_do_not_leave(lab: Lab, wide: Wide) -> None:
    """A guest takes another MAC and another IP, and claims the gateway's in ARP: its peers see none of it."""
    node, device = lab.tap(wide.a2.nic["id"])
    mac = wide.a1.nic["spec"]["mac"]
    forged = "10.50.0.99"
    assert wide.a1.pings(wide.a2.ip), "what is honest gets through"
    with captured(lab, node, device, f"ether src 02:aa:bb:cc:dd:ee or host {forged} or arp src {forged}") as seen:
        wide.a1.run(
            f"ip addr add {forged}/32 dev eth0; ping -c 3 -i 0.2 -W 1 -I {forged} {wide.a2.ip} > /dev/null; "
            f"arping -c 2 -U -I eth0 -s {forged} {forged} > /dev/null 2>&1; "
            f"arping -c 2 -A -I eth0 -s {forged} {forged} > /dev/null 2>&1; "
            f"ip addr del {forged}/32 dev eth0; true"
        )
        wide.a1.run(
            "setsid sh -c 'ip link set eth0 address 02:aa:bb:cc:dd:ee; "
            f"ping -c 5 -i 0.2 -W 1 {wide.a2.ip} > /tmp/forged; ip link set eth0 address {mac}; "
            "touch /tmp/forged.done' < /dev/null > /dev/null 2>&1 &"
        )
        until(lambda: wide.a1.succeeds("[ -e /tmp/forged.done ]"), "it has its own MAC again", 40.0)
        out = wide.a1.run("cat /tmp/forged; rm /tmp/forged*")
    assert "5 packets transmitted, 0 packets received" in out, "sent, and none answered"
    assert seen == []
    assert wide.a1.pings(wide.a2.ip), "and what is honest gets through again"
    with captured(lab, node, device, "arp src 10.50.0.1 and not ether src 02:00:5c:00:00:01") as seen:
        wide.a1.run(
            "ip addr add 10.50.0.1/32 dev eth0; "
            "for how in U A; do arping -c 2 -$how -I eth0 -s 10.50.0.1 10.50.0.1 > /dev/null 2>&1; done; "
            "ip addr del 10.50.0.1/32 dev eth0; true"
        )
    assert seen == [], "the gateway's address cannot be claimed"


def test_nics_come_and_go_on_a_running_vm(lab: Lab, wide: Wide) -> None:
    before = wide.a1.run("ls /sys/class/net").split()
    nic = lab.json("nic", "create", "second", "--subnet", "wide-2", "--security-group", "left", "--vm", "a1")
    address = nic["spec"]["ip"]
    until(lambda: wide.a1.succeeds(f"ip -4 addr | grep -q '{address}/24'"), "the guest has the address", 30.0)
    name = next(item for item in wide.a1.run("ls /sys/class/net").split() if item not in before)
    assert wide.a1.run(f"cat /sys/class/net/{name}/address") == nic["spec"]["mac"]
    assert sorted(wide.a1.resource["status"]["addresses"]) == sorted([wide.a1.ip, address])
    # The subnets of a VPC are routed to one another, in the switches.
    assert wide.a2.pings(address), "through the other subnet's nic"
    lab.ok("nic", "create", "third", "--subnet", "wide-2", "--security-group", "left", "--vm", "a2")
    third = lab.json("nic", "show", "third")["spec"]["ip"]
    until(lambda: wide.a2.succeeds(f"ip -4 addr | grep -q '{third}/24'"), "the other guest has its second", 30.0)
    assert wide.a1.succeeds(f"ping -c 2 -W 1 -I {address} {third} > /dev/null")

    lab.ok("nic", "detach", "second")
    until(lambda: wide.a1.run("ls /sys/class/net").split() == before, "it is gone from the guest", 20.0)
    kept = lab.json("nic", "show", "second")
    assert kept["spec"]["ip"] == address and kept["spec"]["vm"] is None
    assert not wide.a2.pings(address, 1)
    lab.ok("nic", "attach", "second", "a3")
    until(lambda: wide.a3.succeeds(f"ip -4 addr | grep -q '{address}/24'"), "the same address elsewhere", 30.0)
    assert lab.json("nic", "show", "second")["spec"]["mac"] == nic["spec"]["mac"]
    assert wide.a2.pings(address), "the others have learnt where it is now"
    lab.ok("nic", "detach", "second")
    lab.ok("nic", "detach", "third")
    lab.ok("nic", "delete", "second", "third")
    assert wide.a1.pings(wide.a2.ip)


def test_a_vm_with_nics_in_several_vpcs(lab: Lab, wide: Wide, twins: Twins) -> None:
    both = lab.create(
        "both",
        *[
            "--node",
            "n3",
            "--subnet",
            "wide",
            "--subnet",
            "twin-l",
            "--security-group",
            "left",
            "--security-group",
            "twins-l",
        ],
    )
    addresses = both.resource["status"]["addresses"]
    assert len(addresses) == 2 and addresses[0].startswith("10.50.") and addresses[1].startswith("10.60.")
    assert both.pings(wide.a2.ip)
    assert both.pings(twins.l2.ip)
    # It does not join the two networks.
    assert not wide.a1.pings("10.60.0.11", 1)
    both.forget()
    lab.ok("vm", "delete", "both")


def test_many_nics_at_once_get_different_addresses(lab: Lab, networks: None) -> None:
    names = [f"many-{number}" for number in range(12)]
    made = concurrently([lambda n=name: lab.json("nic", "create", n, "--subnet", "wide-2") for name in names])
    assert len({nic["spec"]["ip"] for nic in made}) == len(names) == len({nic["spec"]["mac"] for nic in made})
    lab.ok("nic", "delete", *names)


def test_dhcp_is_answered_from_the_own_vpc_only(lab: Lab, twins: Twins) -> None:
    """The lease says who gave it: the second address of the own subnet, on every node."""
    for guest in (twins.l1, twins.r1):
        text = guest.run(
            "printf '#!/bin/sh\\n[ $1 != bound ] || env > /tmp/lease\\n' > /tmp/event; chmod +x /tmp/event; "
            "udhcpc -n -q -f -i eth0 -O mtu -s /tmp/event > /dev/null 2>&1; "
            "grep -E '^(serverid|router|dns|mtu|ip)=' /tmp/lease"
        )
        facts = dict(line.split("=", 1) for line in text.splitlines())
        assert facts["serverid"] == "10.60.0.2" and facts["router"] == "10.60.0.1" and facts["dns"] == "10.60.0.2"
        assert facts["mtu"] == "1450" and facts["ip"] == guest.ip
