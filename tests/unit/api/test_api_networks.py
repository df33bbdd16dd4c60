"""VPCs, subnets, addresses, security groups and nics."""

from __future__ import annotations

from typing import Any

import pytest

from scloud.model.desired import DesiredGroup, DesiredPort
from support.cloud import Cloud


async def lan(cloud: Cloud, cidr: str = "10.0.0.0/24") -> None:
    await cloud.alice.create("vpcs", "net")
    await cloud.alice.create("subnets", "lan", vpc="net", cidr=cidr)


async def test_a_vni_is_given_or_chosen_and_belongs_to_one(cloud: Cloud) -> None:
    given = await cloud.alice.create("vpcs", "a", vni=16777215)
    assert given["spec"]["vni"] == 16777215
    problem = await cloud.admin.fail(
        "POST", "/vpcs", {"name": "b", "spec": {"vni": 16777215}}, status=409, code="conflict"
    )
    assert "16777215" in problem["detail"]
    chosen = {(await cloud.alice.create("vpcs", f"c{number}"))["spec"]["vni"] for number in range(20)}
    assert len(chosen) == 20 and all(1 <= vni < 2**24 for vni in chosen)
    await cloud.alice.end("DELETE", "/vpcs/a")
    assert (await cloud.admin.create("vpcs", "b", vni=16777215))["spec"]["vni"] == 16777215


async def test_subnets_of_a_vpc_do_not_overlap_and_those_of_two_may(cloud: Cloud) -> None:
    await lan(cloud)
    for cidr in ("10.0.0.0/24", "10.0.0.0/25", "10.0.0.128/29", "10.0.0.0/16"):
        body = {"name": "more", "spec": {"vpc": "net", "cidr": cidr}}
        problem = await cloud.alice.fail("POST", "/subnets", body, status=409, code="conflict")
        assert "lan" in problem["detail"]
    await cloud.alice.create("subnets", "more", vpc="net", cidr="10.0.1.0/24")
    await cloud.alice.create("vpcs", "other")
    await cloud.alice.create("subnets", "same", vpc="other", cidr="10.0.0.0/24")
    assert {row["name"] for row in await cloud.alice.list("/subnets", vpc="net")} == {"lan", "more"}


@pytest.mark.parametrize(
    "cidr", ["10.0.0.1/24", "10.0.0.0/30", "10.0.0.0/7", "127.0.0.0/24", "169.254.0.0/24", "224.0.0.0/8", "::/64", "x"]
)
async def test_a_bad_range_names_the_rule(cloud: Cloud, cidr: str) -> None:
    await cloud.alice.create("vpcs", "net")
    body = {"name": "lan", "spec": {"vpc": "net", "cidr": cidr}}
    problem = await cloud.alice.fail("POST", "/subnets", body, status=422, code="invalid")
    assert problem["fields"][0]["field"] == "spec.cidr"
    assert problem["fields"][0]["rule"].startswith("must ")


async def test_addresses_are_given_or_the_next_and_go_round(cloud: Cloud) -> None:
    await lan(cloud, "10.0.0.0/29")  # hosts .1 to .6, of which .1 and .2 are the network's own
    ips = {}
    for name in ("a", "b"):
        ips[name] = (await cloud.alice.create("nics", name, subnet="lan"))["spec"]["ip"]
    assert ips == {"a": "10.0.0.3", "b": "10.0.0.4"}
    await cloud.alice.end("DELETE", "/nics/a")
    assert (await cloud.alice.create("nics", "c", subnet="lan"))["spec"]["ip"] == "10.0.0.5"
    assert (await cloud.alice.create("nics", "d", subnet="lan", ip="10.0.0.6"))["spec"]["ip"] == "10.0.0.6"
    assert (await cloud.alice.create("nics", "e", subnet="lan"))["spec"]["ip"] == "10.0.0.3"
    before = cloud.dump()
    full = await cloud.alice.fail(
        "POST", "/nics", {"name": "f", "spec": {"subnet": "lan"}}, status=409, code="no_capacity"
    )
    assert "lan" in full["detail"]
    assert cloud.dump() == before


@pytest.mark.parametrize(
    ("ip", "status", "code", "word"),
    [
        ("10.0.0.3", 409, "conflict", "taken"),
        ("10.0.0.0", 422, "invalid", "reserved"),
        ("10.0.0.1", 422, "invalid", "reserved"),
        ("10.0.0.2", 422, "invalid", "reserved"),
        ("10.0.0.255", 422, "invalid", "reserved"),
        ("10.0.1.3", 422, "invalid", "within"),
        ("10.0.0.03", 422, "invalid", "IPv4"),
        ("fe80::1", 422, "invalid", "IPv4"),
    ],
)
async def test_an_address_that_cannot_be_had(cloud: Cloud, ip: str, status: int, code: str, word: str) -> None:
    await lan(cloud)
    await cloud.alice.create("nics", "a", subnet="lan")
    before = cloud.dump()
    body = {"name": "b", "spec": {"subnet": "lan", "ip": ip}}
    problem = await cloud.alice.fail("POST", "/nics", body, status=status, code=code)
    assert word in problem["detail"]
    assert cloud.dump() == before


async def test_a_mac_is_stable_and_nobody_elses(cloud: Cloud) -> None:
    await lan(cloud)
    nics = [await cloud.alice.create("nics", f"n{number}", subnet="lan") for number in range(10)]
    assert len({nic["spec"]["mac"] for nic in nics}) == 10
    await cloud.alice.end("PATCH", "/nics/n0", {"name": "other"})
    assert (await cloud.alice.get("/nics/other"))["spec"]["mac"] == nics[0]["spec"]["mac"]


async def test_a_nic_has_the_default_group_unless_told(cloud: Cloud) -> None:
    await lan(cloud)
    default = (await cloud.alice.get("/security-groups/default"))["id"]
    assert (await cloud.alice.create("nics", "a", subnet="lan"))["spec"]["security_groups"] == [default]
    assert (await cloud.alice.create("nics", "b", subnet="lan", security_groups=[]))["spec"]["security_groups"] == []
    web = await cloud.alice.create("security-groups", "web")
    twice = await cloud.alice.create("nics", "c", subnet="lan", security_groups=["web", web["id"]])
    assert twice["spec"]["security_groups"] == [web["id"]]


async def rule(cloud: Cloud, **rule: Any) -> Any:
    body = {"direction": "inbound", "protocol": "tcp", "port_min": 22, "port_max": 22, "cidr": "0.0.0.0/0", **rule}
    return {name: value for name, value in body.items() if value is not None}


async def test_a_new_group_lets_everything_out_and_its_members_in(cloud: Cloud) -> None:
    group = await cloud.alice.create("security-groups", "web")
    rules = group["spec"]["rules"]
    assert [(r["direction"], r["protocol"], r["cidr"], r["group"]) for r in rules] == [
        ("outbound", "any", "0.0.0.0/0", None),
        ("inbound", "any", None, group["id"]),
    ]
    assert len({r["mark"] for r in rules}) == 2


async def test_rules_by_range_and_by_group_reach_running_vms(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    await lan(cloud)
    web = await cloud.alice.create("security-groups", "web")
    db = await cloud.alice.create("security-groups", "db")
    await cloud.alice.create("vms", "a", image="micro", nics=[{"subnet": "lan", "security_groups": ["db"]}])
    await cloud.alice.end("POST", "/security-groups/db/rules", await rule(cloud))
    await cloud.alice.end(
        "POST", "/security-groups/db/rules", await rule(cloud, cidr=None, group="web", port_min=5432, port_max=5432)
    )
    told = node.objects[f"group/{db['id']}"]
    assert isinstance(told, DesiredGroup)
    assert [(r.port_min, r.cidr, r.group) for r in told.rules[2:]] == [(22, "0.0.0.0/0", None), (5432, None, web["id"])]
    same = await cloud.alice.fail("POST", "/security-groups/db/rules", await rule(cloud), status=409, code="conflict")
    assert told.rules[2].id in same["detail"]
    used = await cloud.alice.fail("DELETE", "/security-groups/web", status=409, code="in_use")
    assert used["users"] == ["security-group db"]
    await cloud.alice.end("DELETE", f"/security-groups/db/rules/{told.rules[3].id}")
    await cloud.alice.end("DELETE", "/security-groups/web")
    await cloud.alice.fail("DELETE", "/security-groups/db/rules/rul-no", status=404, code="not_found")
    assert len(node.objects[f"group/{db['id']}"].rules) == 3  # type: ignore[union-attr]
    assert (await cloud.alice.get("/security-groups/db"))["status"]["state"] == "ready"


@pytest.mark.parametrize(
    "change",
    [
        {"cidr": None},
        {"group": "default"},
        {"port_max": None},
        {"port_min": 23},
        {"protocol": "icmp"},
        {"port_max": 65536},
        {"cidr": "10.0.0.1/8"},
        {"cidr": None, "group": "nobody"},
        {"direction": "sideways"},
    ],
)
async def test_a_rule_that_makes_no_sense(cloud: Cloud, change: dict[str, Any]) -> None:
    before = cloud.dump()
    body = await rule(cloud, **change)
    problem = await cloud.alice.fail("POST", "/security-groups/default/rules", body, status=422, code="invalid")
    assert problem["fields"]
    assert cloud.dump() == before


async def test_a_nic_comes_and_goes_on_a_running_vm(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    await lan(cloud)
    vm = await cloud.alice.create("vms", "a", image="micro")
    assert vm["status"]["addresses"] == []
    nic = await cloud.alice.create("nics", "n", subnet="lan", vm="a")
    assert (nic["status"]["state"], nic["status"]["node"]) == ("ready", "n1")
    assert (await cloud.alice.get("/vms/a"))["status"]["addresses"] == ["10.0.0.3"]
    assert node.objects[f"vm/{vm['id']}"].nics == (nic["id"],)  # type: ignore[union-attr]
    port = node.objects[f"port/{nic['id']}"]
    assert isinstance(port, DesiredPort) and (port.node_id, port.hostname, port.ip) == (node.id, "a", "10.0.0.3")
    await cloud.alice.create("vms", "b", image="micro")
    await cloud.alice.fail("POST", "/nics/n/actions/attach", {"vm": "b"}, status=409, code="in_use")
    await cloud.alice.end("POST", "/nics/n/actions/attach", {"vm": "a"})
    await cloud.alice.end("POST", "/nics/n/actions/detach")
    free = await cloud.alice.get("/nics/n")
    assert (free["status"]["state"], free["status"]["node"], free["spec"]["vm"]) == ("ready", None, None)
    assert f"port/{nic['id']}" not in node.existing
    assert (await cloud.alice.get("/vms/a"))["status"]["addresses"] == []
    await cloud.alice.end("POST", "/nics/n/actions/detach")
    await cloud.alice.end("POST", "/nics/n/actions/attach", {"vm": "b"})
    assert (await cloud.alice.get("/nics/n"))["spec"]["ip"] == "10.0.0.3"
    assert [row["name"] for row in await cloud.alice.list("/nics", vm="b")] == ["n"]
    assert [row["name"] for row in await cloud.alice.list("/nics", subnet="lan", name="other")] == []
    assert [row["name"] for row in await cloud.alice.list("/nics", vpc="net")] == ["n"]


async def test_other_groups_on_a_running_nic(cloud: Cloud) -> None:
    node = await cloud.node()
    await cloud.image()
    await lan(cloud)
    web = await cloud.alice.create("security-groups", "web")
    await cloud.alice.create("vms", "a", image="micro", nics=[{"subnet": "lan"}])
    await cloud.alice.end("PATCH", "/nics/a-nic0", {"spec": {"security_groups": ["web"]}})
    nic = await cloud.alice.get("/nics/a-nic0")
    assert node.objects[f"port/{nic['id']}"].groups == (web["id"],)  # type: ignore[union-attr]
    assert [key for key in node.objects if key.startswith("group/")] == [f"group/{web['id']}"]
    await cloud.alice.fail("PATCH", "/nics/a-nic0", {}, status=422, code="invalid")
    await cloud.alice.fail("PATCH", "/nics/a-nic0", {"spec": {"security_groups": ["no"]}}, status=422, code="invalid")


async def test_nodes_are_told_only_of_vpcs_they_have_nics_in(cloud: Cloud) -> None:
    one, two = await cloud.node("n1"), await cloud.node("n2")
    await cloud.image()
    await lan(cloud)
    await cloud.alice.create("vpcs", "other")
    await cloud.alice.create("subnets", "far", vpc="other", cidr="10.0.0.0/24")
    await cloud.alice.create("vms", "a", image="micro", node="n1", nics=[{"subnet": "lan"}])
    await cloud.alice.create("vms", "b", image="micro", node="n2", nics=[{"subnet": "far"}])
    assert len([key for key in one.objects if key.startswith(("vpc/", "port/"))]) == 2
    await cloud.alice.create("vms", "c", image="micro", node="n2", nics=[{"subnet": "lan"}])
    ports = {key: item for key, item in one.objects.items() if isinstance(item, DesiredPort)}
    assert sorted((port.hostname, port.tunnel_ip) for port in ports.values()) == [
        ("a", "192.0.2.1"),
        ("c", "192.0.2.2"),
    ]
    await cloud.alice.end("DELETE", "/vms/a")
    await one.until(lambda: not one.objects)
    assert two.objects


async def test_a_vm_has_at_most_eight_nics(cloud: Cloud) -> None:
    await cloud.node()
    await cloud.image()
    await lan(cloud)
    await cloud.alice.create("vms", "a", image="micro", nics=[{"subnet": "lan"}] * 8)
    body = {"name": "n", "spec": {"subnet": "lan", "vm": "a"}}
    await cloud.alice.fail("POST", "/nics", body, status=409, code="no_capacity")
    spec = {"image": "micro", "nics": [{"subnet": "lan"}] * 9}
    await cloud.alice.fail("POST", "/vms", {"name": "b", "spec": spec}, status=422, code="invalid")
