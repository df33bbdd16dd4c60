"""The agent and storage daemons: made, waited for, kept running, given back; killed at any moment."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from agent_clock import VirtualLoop
from agent_clock import run as run_virtually
from agent_node import NODE, Node, running_node

from scloud.drivers.ceph.fake import FakeCephDaemons
from scloud.model.desired import DesiredStore, MonDaemon, OsdDaemon, StorePool

CLUSTER = "sc-0000000000000001"
KEY = f"store/{CLUSTER}.{NODE}"
FSID = "7e1c4a30-0000-4000-8000-000000000001"
UUIDS = ("0a000000-0000-4000-8000-000000000000", "0b000000-0000-4000-8000-000000000000")


def osd(number: int, **more: Any) -> OsdDaemon:
    values: dict[str, Any] = {
        **{"uuid": UUIDS[number], "key": f"key-{number}", "path": f"/dev/fake{number}", "size_mib": 1024},
        **{"media": "ssd", "crush": {"root": "default", "host": "n1"}},
    }
    return OsdDaemon(**{**values, **more})


def store(*daemons: Any, monitors: tuple[str, ...] = ("n1",), **more: Any) -> DesiredStore:
    values: dict[str, Any] = {
        **{"id": f"{CLUSTER}.{NODE}", "generation": 1, "cluster": CLUSTER, "fsid": FSID, "mon_host": "[v2:10.0.0.1:1]"},
        **{"client": "scloud-n1", "first_port": 7000, "mon_key": "m", "admin_key": "a", "bootstrap_key": "b"},
        "initial_monitors": tuple((name, f"{name}:1") for name in monitors),
        "daemons": (MonDaemon(name="n1", address="n1:1"), *daemons),
    }
    return DesiredStore(**{**values, **more})


def pids(node: Node) -> dict[str, int | None]:
    return {name: daemon.pid for (_, name), daemon in node.ceph_node.daemons.items()}


async def ready(node: Node) -> None:
    await node.settled(KEY, "ready")
    assert node.boss.heard[KEY].osds == {UUIDS[0]: 0, UUIDS[1]: 1}
    assert all(pids(node).values()) and len(pids(node)) == 3


def test_daemons_are_made_once_and_outlive_the_agent() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(store(osd(0), osd(1)))
            await ready(node)
            before = pids(node)
            await node.boss.change(KEY, pools=(StorePool(id="poo-1", name="p"),))
            await ready(node)
            await node.kill()
            node.start()
            await asyncio.sleep(200)
            await ready(node)
            assert pids(node) == before
            inventory = (await node.boss.call("inventory")).result
            assert inventory["daemons"] == [f"{CLUSTER}/{name}" for name in ("mon.n1", "osd.0", "osd.1")]

    run_virtually(main())


def test_waiting_is_said_in_words_and_ends_by_itself() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(store(osd(0), osd(1), monitors=("n1", "n2", "n3")))
            await node.until(lambda: KEY in node.boss.heard and "waiting" in node.boss.heard[KEY].reason)
            await asyncio.sleep(300)
            said = node.boss.heard[KEY]
            assert (said.state, said.settled) == ("working", False)
            assert said.reason == "waiting for 2 of 3 monitors: n2, n3"
            node.ceph.clusters[FSID].monitors["n2"] = True
            await node.until(lambda: node.boss.settled(KEY, "ready"), limit_s=2)

    run_virtually(main())


def test_what_dies_is_started_again_at_once_and_what_keeps_dying_ever_later() -> None:
    async def main() -> None:
        async with running_node() as node:
            loop = asyncio.get_running_loop()
            await node.boss.want(store(osd(0), osd(1)))
            await ready(node)
            await asyncio.sleep(100)
            for name in ("osd.0", "mon.n1"):
                before = pids(node)
                FakeCephDaemons(node.ceph, node.ceph_node).kill(CLUSTER, name)
                await node.until(lambda: all(pids(node).values()), limit_s=0.2)
                assert sum(before[other] != pid for other, pid in pids(node).items()) == 1
            gaps = []
            for _ in range(8):
                died = loop.time()
                FakeCephDaemons(node.ceph, node.ceph_node).kill(CLUSTER, "osd.1")
                await node.until(lambda: all(pids(node).values()))
                gaps.append(loop.time() - died)
            assert gaps[0] < 0.2 and gaps == sorted(gaps) and 9.0 < gaps[-1] < 11.0
            await asyncio.sleep(60)
            died = loop.time()
            FakeCephDaemons(node.ceph, node.ceph_node).kill(CLUSTER, "osd.1")
            await node.until(lambda: all(pids(node).values()))
            assert loop.time() - died < 0.2, "long healthy, it is forgiven"

    run_virtually(main())


def test_one_bad_device_is_an_error_that_holds_up_no_other() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(store(osd(0, size_mib=None), osd(1)))
            await node.settled(KEY, "error")
            said = node.boss.heard[KEY]
            assert said.reason == "there is no device /dev/fake0 on this node"
            assert said.osds == {UUIDS[1]: 0} and pids(node)[f"osd.{UUIDS[1]}"]
            node.ceph_node.devices["/dev/fake0"] = ""
            await node.settled(KEY, "ready")
            assert node.boss.heard[KEY].osds == {UUIDS[1]: 0, UUIDS[0]: 1}

    run_virtually(main())


def test_commands_are_passed_on_and_bad_ones_refused_without_their_key() -> None:
    async def main() -> None:
        async with running_node() as node:
            await node.boss.want(store())
            await node.settled(KEY, "ready")
            way = {"cluster": CLUSTER, "fsid": FSID, "mon_host": "[v2:10.0.0.1:1]", "user": "admin", "key": "a"}
            asked = {**way, "target": "mon", "command": {"prefix": "fsid"}}
            reply = await node.boss.call("ceph_command", **asked)
            assert reply.result == {"fsid": FSID}
            reply = await node.boss.call(
                "ceph_command", **{**asked, "command": {"prefix": "auth get-key", "entity": "x"}}
            )
            assert reply.error is not None and reply.error[0] == "not_found"
            reply = await node.boss.call("ceph_command", **{**asked, "key": "wrong"})
            assert reply.error is not None and reply.error[0] == "forbidden"
            reply = await node.boss.call("ceph_command", **{**asked, "key": ["a-secret"]})
            assert reply.error is not None and reply.error[0] == "invalid" and "key" in reply.error[1]
            assert "a-secret" not in reply.error[1]

    run_virtually(main())


async def removed(node: Node) -> None:
    await node.settled(KEY, "absent")
    assert not node.ceph_node.daemons and not any(node.ceph_node.devices.values())
    await node.boss.want(drop=[KEY])
    await node.until(lambda: KEY not in node.journal.desired)


@pytest.mark.parametrize("act", ["make", "give back one", "remove"])
def test_killed_at_any_moment_it_converges(act: str) -> None:
    """The same again and again, the agent killed one turn of the loop later each time, until it is too late."""
    turns = 1
    while one_run(turns, act):
        turns += 1
    assert turns > 8, "it was over before anything happened"


def one_run(turns: int, act: str) -> bool:
    async def main() -> bool:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        async with running_node() as node:
            whole = store(osd(0), osd(1))
            if act != "make":
                await node.boss.want(whole)
                await ready(node)
            reached = asyncio.Event()
            loop.at_step = (loop.steps + turns, reached.set)

            async def finish() -> None:
                match act:
                    case "make":
                        await ready(node)
                    case "remove":
                        await removed(node)
                    case _:
                        await node.settled(KEY, "ready")
                        assert node.boss.heard[KEY].osds == {UUIDS[1]: 1}
                        assert node.ceph_node.devices["/dev/fake0"] == ""

            match act:
                case "make":
                    await node.boss.want(whole)
                case "remove":
                    await node.boss.change(KEY, absent=True)
                case _:
                    await node.boss.change(KEY, daemons=(whole.daemons[0], osd(0, absent=True), osd(1)))
            finishing = asyncio.ensure_future(finish())
            waiting = asyncio.ensure_future(reached.wait())
            await asyncio.wait({finishing, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if finishing.done():
                await finishing
                loop.at_step = None
                return False
            await node.kill()
            node.start()
            await finishing
            return True

    return run_virtually(main())
