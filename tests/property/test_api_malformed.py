"""Every malformed name, range, size and text gets 422 naming the field and its rule, and changes nothing."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from scloud.model.ids import is_id
from support.cloud import Cloud

QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3),
    max_leaves=6,
)


class Running:
    """A cloud on a loop that hypothesis' examples share."""

    def __init__(self, loop: asyncio.AbstractEventLoop, cloud: Cloud) -> None:
        self.loop, self.cloud = loop, cloud

    def refused(self, path: str, body: Any, field: str, method: str = "POST") -> None:
        """The request is refused for this field (or one within it), in words, and nothing has changed."""

        async def ask() -> None:
            before = self.cloud.dump()
            problem = await self.cloud.alice.fail(method, path, body, status=422, code="invalid")
            for item in problem["fields"]:
                assert item["rule"] and "Input should" not in item["rule"] and "String should" not in item["rule"]
            named = [item["field"] for item in problem["fields"]]
            assert any(name == field or name.startswith(field + ".") for name in named), problem
            assert self.cloud.dump() == before

        self.loop.run_until_complete(ask())


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory() as folder:
        cloud = Cloud(Path(folder))
        loop.run_until_complete(cloud.__aenter__())
        loop.run_until_complete(cloud.image())
        loop.run_until_complete(cloud.alice.create("vpcs", "net"))
        loop.run_until_complete(cloud.alice.create("subnets", "lan", vpc="net", cidr="10.0.0.0/24"))
        loop.run_until_complete(cloud.alice.create("disks", "d", size_mib=100))
        yield Running(loop, cloud)
        loop.run_until_complete(cloud.__aexit__())
    loop.close()


def is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", value)) and not is_id(value)


NAMES = st.text("abz019-_A. \n\0é", max_size=70) | TEXTS | JSON


@QUICK
@given(name=NAMES, kind=st.sampled_from(["vpcs", "security-groups", "placement-groups", "disks", "keypairs"]))
@example(name="a\n", kind="vpcs")
@example(name="-", kind="vpcs")
@example(name="vm-0000000000000000", kind="vpcs")
def test_names(running: Running, name: Any, kind: str) -> None:
    assume(not is_name(name))
    specs = {"disks": {"size_mib": 1}, "keypairs": {"public_key": "ssh-ed25519 " + "A" * 68}}
    running.refused(f"/{kind}", {"name": name, "spec": specs.get(kind, {})}, "name")
    running.refused("/vpcs/net", {"name": name}, "name", "PATCH")


def is_subnet(value: Any) -> bool:
    try:
        network = ipaddress.IPv4Network(value) if isinstance(value, str) and "/" in value else None
    except ValueError:
        return False
    return network is not None


NUMBERS = st.integers(-2, 300)
CIDRS = st.builds("{}.{}.{}.{}/{}".format, NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.integers(-1, 40)) | JSON


@QUICK
@given(cidr=CIDRS)
@example(cidr="10.0.0.0/24\n")
@example(cidr="10.0.0.0/255.255.255.0")
@example(cidr="10.0.0.0")
@example(cidr="0.0.0.0/0")
@example(cidr="010.0.0.0/24")
def test_ranges(running: Running, cidr: Any) -> None:
    plain = isinstance(cidr, str) and re.fullmatch(r"[0-9.]+/[0-9]{1,2}", cidr)
    assume(not (plain and is_subnet(cidr) and 8 <= int(cidr.split("/")[1]) <= 29 and not cidr.startswith("10.0.0.")))
    running.refused("/subnets", {"name": "x", "spec": {"vpc": "net", "cidr": cidr}}, "spec.cidr")


@QUICK
@given(ip=st.builds("{}.{}.{}.{}".format, *[NUMBERS] * 4) | JSON)
@example(ip="10.0.0.5\n")
@example(ip="10.0.0.005")
def test_addresses(running: Running, ip: Any) -> None:
    try:
        inside = isinstance(ip, str) and ipaddress.IPv4Address(ip) in ipaddress.IPv4Network("10.0.0.0/24")
        outside = isinstance(ip, str) and not inside
    except ValueError:
        inside = outside = False
    assume(ip is not None and not inside)
    running.refused("/nics", {"name": "x", "spec": {"subnet": "lan", "ip": ip}}, "ip" if outside else "spec.ip")


LIMITS = {"cpus": (1, 256), "memory_mib": (64, 2**24), "disk_mib": (10, 2**26), "restart_limit": (0, 100)}


@QUICK
@given(field=st.sampled_from(sorted(LIMITS)), value=st.integers() | st.integers(-10, 70) | JSON)
@example(field="cpus", value=True)
@example(field="cpus", value="2")
@example(field="cpus", value=10**400)
def test_sizes(running: Running, field: str, value: Any) -> None:
    low, high = LIMITS[field]
    assume(not (isinstance(value, int) and not isinstance(value, bool) and low <= value <= high))
    assume(not (value is None and field == "disk_mib"))
    running.refused("/vms", {"name": "x", "spec": {"image": "micro", field: value}}, f"spec.{field}")


@QUICK
@given(size=st.integers(max_value=99) | st.integers(min_value=2**26 + 1) | JSON)
def test_disks_grow_within_reason(running: Running, size: Any) -> None:
    assume(not (isinstance(size, int) and not isinstance(size, bool) and 100 <= size <= 2**26))
    running.refused("/disks/d/actions/resize", {"size_mib": size}, "size_mib")


@QUICK
@given(text=TEXTS.map(lambda text: text + "\0") | st.integers(65537, 70000).map(lambda n: "x" * n) | JSON)
def test_user_data(running: Running, text: Any) -> None:
    assume(not (isinstance(text, str) and "\0" not in text and len(text) <= 65536))
    running.refused("/vms", {"name": "x", "spec": {"image": "micro", "user_data": text}}, "spec.user_data")


@QUICK
@given(key=TEXTS | TEXTS.map(lambda text: f"ssh-ed25519 {text}") | JSON)
@example(key="ssh-ed25519 " + "A" * 68 + "\nssh-ed25519 " + "A" * 68)
@example(key="ssh-dss " + "A" * 68)
def test_public_keys(running: Running, key: Any) -> None:
    running.refused("/keypairs", {"name": "x", "spec": {"public_key": key}}, "spec.public_key")


@QUICK
@given(field=st.sampled_from(["image", "subnet", "node", "keypairs", "disks"]), ref=NAMES)
def test_references(running: Running, field: str, ref: Any) -> None:
    assume(not (ref is None and field == "node") and ref not in ("micro", "lan", "d"))
    spec: dict[str, Any] = {"image": "micro"}
    if field == "subnet":
        assume(ref is not None)
        spec["nics"], where = [{"subnet": ref}], "spec.nics.0"
    else:
        spec[field], where = ([ref] if field in ("keypairs", "disks") else ref), f"spec.{field}"
    running.refused("/vms", {"name": "x", "spec": spec}, where)


@QUICK
@given(body=JSON)
def test_whole_bodies(running: Running, body: Any) -> None:
    assume(body is not None)
    assume(not (isinstance(body, dict) and is_name(body.get("name"))))
    problem_of = "name" if isinstance(body, dict) else "body"
    running.refused("/vpcs", body, problem_of)
