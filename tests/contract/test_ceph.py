"""What a node's storage daemons and commands to clusters do, fake and real alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest
from ceph_bench import CLUSTER, Bench, fake_bench, new_key, real_bench, until

from scloud.model.desired import MgrDaemon, MonDaemon
from scloud.model.errors import CloudError, ErrorKind

BOTH = [pytest.param(fake_bench, id="fake"), pytest.param(real_bench, id="real", marks=pytest.mark.engine)]


@pytest.fixture
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    make, options = request.param
    made = make(**options)
    try:
        yield made
    finally:
        await made.close()


def on(**options: object) -> pytest.MarkDecorator:
    """Both kinds of bench, made with these options."""
    params = [pytest.param((item.values[0], options), id=item.id, marks=item.marks) for item in BOTH]
    return pytest.mark.parametrize("bench", params, indirect=True)


@on()
async def test_three_nodes_become_a_cluster_and_come_back_from_every_death(bench: Bench) -> None:
    with pytest.raises(CloudError, match="waiting for 2 of 3 monitors: n2, n3") as alone:
        await bench.ensure("n1")
    assert alone.value.kind is ErrorKind.UNAVAILABLE
    assert (await bench.facts("n1"))["mon.n1"].running

    numbers = await bench.up()
    assert sorted(numbers.values()) == list(range(6))
    assert numbers.keys() == {osd.uuid for node in bench.stores for osd in bench.osds(node)}
    tree = {node["id"]: node for node in (await bench.ask("osd tree"))["nodes"] if node["type"] == "osd"}
    for node in bench.stores:
        for osd in bench.osds(node):
            assert tree[numbers[osd.uuid]]["device_class"] == osd.media
            assert bench.hosts[node].holds(osd.path)

    before = {node: await bench.facts(node) for node in bench.stores}
    assert set(before["n1"]) == {"mon.n1", "mgr.n1", *(f"osd.{numbers[osd.uuid]}" for osd in bench.osds("n1"))}
    assert all(facts.running and facts.pid and facts.cluster == CLUSTER for facts in before["n1"].values())
    bench.hosts["n1"].reopen()
    for node in bench.stores:
        again = await bench.ensure(node)
        assert again == {osd.uuid: numbers[osd.uuid] for osd in bench.osds(node)}
        assert await bench.facts(node) == before[node], "what runs is left alone"

    for name in before["n1"]:
        watch = asyncio.ensure_future(bench.hosts["n1"].daemons.died(CLUSTER))
        await asyncio.sleep(0)
        await bench.hosts["n1"].kill(name)
        assert await asyncio.wait_for(watch, 5.0) == name
        assert not (await bench.facts("n1"))[name].running
        await until(partial(bench.ensure, "n1"), f"{name} is back")
        after = await bench.facts("n1")
        assert after[name].running and after[name].pid != before["n1"][name].pid
        assert {k: v.pid for k, v in after.items() if k != name} == {
            k: v.pid for k, v in before["n1"].items() if k != name
        }
        before["n1"] = after
    await bench.healthy()

    for node, facts in before.items():
        for name in facts:
            await bench.hosts[node].kill(name)
    with pytest.raises(CloudError) as down:
        await bench.control.command(bench.access, "mon", {"prefix": "fsid"}, timeout_s=2.0)
    assert down.value.kind is ErrorKind.UNAVAILABLE
    assert await bench.up() == numbers


@on(names=("n1",), osds=2)
async def test_what_is_not_wanted_any_more_goes(bench: Bench) -> None:
    numbers = await bench.up()
    monitor, _, first, second = bench.stores["n1"].daemons
    bench.change("n1", monitor, second, bench.osds("n1")[0].model_copy(update={"absent": True}))
    assert await bench.ensure("n1") == {second.uuid: numbers[second.uuid]}
    facts = await bench.facts("n1")
    assert set(facts) == {"mon.n1", f"osd.{numbers[second.uuid]}"}, "the manager and the OSD that is to go are gone"
    assert not bench.hosts["n1"].holds(first.path)
    assert await bench.ensure("n1") == {second.uuid: numbers[second.uuid]}

    bench.change("n1", monitor)
    await until(lambda: bench.ensure("n1"), "only the monitor is wanted")
    facts = await bench.facts("n1")
    assert not facts[f"osd.{numbers[second.uuid]}"].running
    assert bench.hosts["n1"].holds(second.path), "an OSD that nobody names keeps its data"
    bench.change("n1", monitor, second)
    assert await bench.ensure("n1") == {second.uuid: numbers[second.uuid]}

    for _ in range(2):
        await bench.hosts["n1"].daemons.remove(bench.stores["n1"])
        assert await bench.facts("n1") == {}
        assert not bench.hosts["n1"].holds(second.path)


@on(names=("n1",), osds=1, managers=0)
async def test_commands_and_their_answers(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CloudError) as nobody:
        await bench.control.command(bench.access, "mon", {"prefix": "fsid"}, timeout_s=2.0)
    assert nobody.value.kind is ErrorKind.UNAVAILABLE
    await until(lambda: bench.ensure("n1"), "the first monitor")

    assert (await bench.ask("fsid"))["fsid"] == bench.access.fsid
    assert await bench.ask("config-key set", b"not JSON", key="scloud/test") == "set scloud/test"
    assert await bench.ask("config-key get", key="scloud/test") == "not JSON"
    with pytest.raises(CloudError) as error:
        await bench.ask("config-key get", key="scloud/none")
    assert error.value.kind is ErrorKind.NOT_FOUND and "config-key get" in error.value.message
    assert await bench.ask("auth get-key", entity="client.admin") == {"key": bench.access.key}
    with pytest.raises(CloudError) as error:
        await bench.ask("auth get-key", entity="client.none")
    assert error.value.kind is ErrorKind.NOT_FOUND
    with pytest.raises(CloudError) as error:
        await bench.ask("no such command")
    assert error.value.kind is ErrorKind.INVALID
    for target in ("osd.x", "pg.", "rgw", "mgr.n1"):
        with pytest.raises(CloudError) as error:
            await bench.ask("fsid", target=target)
        assert error.value.kind is ErrorKind.INVALID and error.value.fields[0].field == "target"

    wrong = bench.access.model_copy(update={"key": new_key()})
    with pytest.raises(CloudError, match=r"does not take the key of client\.admin") as error:
        await bench.control.command(wrong, "mon", {"prefix": "fsid"})
    assert error.value.kind is ErrorKind.FORBIDDEN
    stranger = bench.access.model_copy(update={"user": "nobody"})
    with pytest.raises(CloudError) as error:
        await bench.control.command(stranger, "mon", {"prefix": "fsid"})
    assert error.value.kind is ErrorKind.FORBIDDEN
    assert (await bench.ask("fsid"))["fsid"] == bench.access.fsid, "the right key goes on working"
    assert capfd.readouterr().err == "", "what is raised is not printed as well"

    many = await asyncio.gather(*(bench.ask("config-key get", key="scloud/test") for _ in range(20)))
    assert many == ["not JSON"] * 20


@on(names=("n1",), osds=0, managers=0)
async def test_a_manager_waits_for_the_cluster_to_be_told_of_it(bench: Bench) -> None:
    bench.mgr_keys["n1"] = new_key()
    monitor = bench.stores["n1"].daemons[0]
    assert isinstance(monitor, MonDaemon)
    bench.change("n1", monitor, MgrDaemon(name="n1", key=bench.mgr_keys["n1"]))
    with pytest.raises(CloudError) as error:
        await bench.ensure("n1")
    assert error.value.kind is ErrorKind.UNAVAILABLE
    await bench.tell_managers()
    await until(lambda: bench.ensure("n1"), "the manager")
    assert (await bench.facts("n1"))["mgr.n1"].running
