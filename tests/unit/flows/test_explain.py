"""Traces in words: each way to fail says which stage it was, and names what to change."""

from __future__ import annotations

import pytest
from flow_world import OUT, World, rule, small_world

from scloud.flows.explain import Step, trace_path
from scloud.model.errors import CloudError


@pytest.fixture
def world() -> World:
    return small_world()


def _trace(world: World, source: str, target: str, protocol: str = "tcp", port: int | None = 22) -> list[Step]:
    ip = world.ports[target].ip if target in world.ports else target
    return trace_path(world.views(), source, ip, protocol, port)


def _only_drop(steps: list[Step]) -> Step:
    drops = [step for step in steps if step.verdict == "drop"]
    assert len(drops) == 1
    assert steps[-1] is drops[0]
    return drops[0]


@pytest.mark.parametrize(("target", "protocol"), [("nic-db", "tcp"), ("nic-far", "udp"), ("nic-other", "icmp")])
def test_a_packet_that_passes_is_followed_there_and_back(world: World, target: str, protocol: str) -> None:
    steps = _trace(world, "nic-web", target, protocol)
    assert all(step.verdict != "drop" for step in steps)
    assert [step.stage for step in steps if step.stage in ("delivery", "answer")] == ["delivery", "answer"]
    assert steps[-2].text == f"reaches nic {target} ({world.ports[target].ip})"
    assert {step.node for step in steps} == {"n1", str(world.ports[target].node_id)}
    allowed = [step.text for step in steps if "security groups" in step.stage]
    assert allowed == [
        "outbound rule rule1 of security group sg-all allows it",
        "inbound rule rule2 of security group sg-all allows it",
    ]


def test_the_group_without_a_rule_is_named(world: World) -> None:
    world.group("sg-web", OUT)
    world.nic("nic-far", "n2", "vpc-a", "10.0.0.12", "sg-web")
    drop = _only_drop(_trace(world, "nic-web", "nic-far"))
    assert drop == Step(
        "n2", "inbound security groups", "drop", "no inbound rule of security group sg-web allows tcp 22 from 10.0.0.10"
    )
    world.group("sg-web", rule(4, "inbound"))
    drop = _only_drop(_trace(world, "nic-far", "nic-web", "icmp", None))
    assert drop.text == "no outbound rule of security group sg-web allows icmp to 10.0.0.10"
    assert drop.node == "n2"


def test_ids_are_replaced_by_names(world: World) -> None:
    world.group("sg-web", OUT)
    world.nic("nic-db", "n1", "vpc-a", "10.0.0.11", "sg-web")
    names = {"sg-web": "web", "n1": "host-1"}
    drop = _only_drop(trace_path(world.views(), "nic-web", "10.0.0.11", "tcp", 22, names=names))
    assert drop.text == "no inbound rule of security group web allows tcp 22 from 10.0.0.10"
    assert drop.node == "host-1"


def test_a_nic_without_groups_is_told_so(world: World) -> None:
    world.nic("nic-db", "n1", "vpc-a", "10.0.0.11")
    assert _only_drop(_trace(world, "nic-web", "nic-db")).text == (
        "nic nic-db is in no security group: nothing passes but its services"
    )


def test_an_address_nobody_has(world: World) -> None:
    near = _only_drop(_trace(world, "nic-web", "10.0.0.99"))
    assert (near.stage, near.text) == (
        "address resolution",
        "nobody has 10.0.0.99: no nic of a running VM in this VPC",
    )
    routed = _only_drop(_trace(world, "nic-web", "10.0.1.99"))
    assert (routed.stage, routed.text) == ("routing", "the router knows no nic with this address in the VPC")


def test_services_and_gateway(world: World) -> None:
    assert _trace(world, "nic-web", "10.0.0.2", "udp", 53)[-2].text == "reaches the service of the VPC"
    assert _trace(world, "nic-web", "169.254.169.254", "tcp", 80)[-1].stage == "answer"
    assert _trace(world, "nic-web", "10.0.0.1", "icmp", None)[-1].text == "10.0.0.1 answers nic nic-web"
    refused = _only_drop(_trace(world, "nic-web", "10.0.0.2", "tcp", 22))
    assert refused.text == "10.0.0.2 offers DHCP, DNS, echo and metadata to its VPC, not tcp 22"
    assert _only_drop(_trace(world, "nic-web", "10.0.0.1", "tcp", 22)).text == "the gateway answers nothing but echo"


def test_a_sender_that_does_not_run(world: World) -> None:
    assert "is its VM running?" in _only_drop(_trace(world, "nic-nowhere", "10.0.0.11")).text


def test_a_node_that_was_not_asked(world: World) -> None:
    views = {"n1": world.view("n1")}
    drop = _only_drop(trace_path(views, "nic-web", "10.0.0.12", "tcp", 22))
    assert (drop.stage, drop.text) == ("tunnel", "no node at 172.31.0.12 was asked: is it up?")


def test_a_receiver_that_does_not_know_the_sender(world: World) -> None:
    views = world.views()
    del world.ports["nic-web"], world.ports["nic-db"]
    views["n2"] = world.view("n2")
    drop = _only_drop(trace_path(views, "nic-web", "10.0.0.12", "tcp", 22))
    assert (drop.node, drop.stage) == ("n2", "port")
    assert "VNI 16777215" in drop.text and "172.31.0.11" in drop.text


def test_questions_that_make_no_sense_are_refused(world: World) -> None:
    for protocol, port in (("sctp", 5), ("tcp", None)):
        with pytest.raises(CloudError):
            _trace(world, "nic-web", "nic-db", protocol, port)
