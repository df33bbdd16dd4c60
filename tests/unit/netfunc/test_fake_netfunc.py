"""What the fake adds for those who test with it."""

from __future__ import annotations

import pytest

from scloud.drivers.netfunc.fake import FakeNetwork, FakeNetworkFunctions
from scloud.drivers.netfunc.protocol import VpcServiceSpec
from scloud.model.errors import CloudError, ErrorKind

SPEC = VpcServiceSpec(
    vpc="vpc-1", domain="a.internal", port="p0", service_mac="02:5c:00:00:00:01", mtu=1450, subnets=(), hosts=()
)


async def test_only_real_changes_are_counted() -> None:
    network = FakeNetwork()
    functions = FakeNetworkFunctions(network)
    await functions.ensure(SPEC)
    await functions.ensure(SPEC)
    await FakeNetworkFunctions(network).ensure(SPEC)
    assert network.changes == 1
    network.broken.add("vpc-1")
    await functions.ensure(SPEC)
    await functions.remove("vpc-1")
    await functions.remove("vpc-1")
    assert network.changes == 3


async def test_failures_come_in_turn_or_for_good_and_change_nothing() -> None:
    network = FakeNetwork(failures=[CloudError(ErrorKind.ENGINE, "cable")])
    functions = FakeNetworkFunctions(network)
    with pytest.raises(CloudError, match="cable"):
        await functions.ensure(SPEC)
    assert await functions.vpcs() == []
    network.failing["ensure"] = CloudError(ErrorKind.ENGINE, "broken")
    for _ in range(2):
        with pytest.raises(CloudError, match="broken"):
            await functions.ensure(SPEC)


async def test_a_dead_agents_sockets_are_free_for_the_next() -> None:
    network = FakeNetwork()
    functions = FakeNetworkFunctions(network)
    await functions.ensure(SPEC)
    with await functions.listen("vpc-1", "169.254.169.254", 80), network.serve("vpc-1", "10.0.0.5", 22):
        functions = FakeNetworkFunctions(network)
        (await functions.listen("vpc-1", "169.254.169.254", 80)).close()
        (await functions.connect("vpc-1", "10.0.0.5", 22, 1)).close()
