"""What only real devices and real daemons can get wrong: half-made OSDs, foreign bytes, agents that are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from ceph_bench import Bench, real_bench, until

from scloud.drivers.ceph import osds
from scloud.drivers.ceph.layout import DaemonFolder
from scloud.model.desired import DesiredStore, MonDaemon
from scloud.model.errors import CloudError, ErrorKind

pytestmark = pytest.mark.engine


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = real_bench(names=("n1",), osds=1, managers=0)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture
def loop_device(bench: Bench) -> Iterator[Path]:
    file = bench.folder / "disk.img"
    with file.open("wb") as image:
        image.truncate(2 * 2**30)
    device = tool("losetup", "--find", "--show", str(file)).strip()
    try:
        yield Path(device)
    finally:
        tool("losetup", "--detach", device)


def tool(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def head(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(4096)


def lose_label(path: str) -> None:
    with Path(path).open("r+b") as file:
        file.write(bytes(4096))


def folder_of(bench: Bench, uuid: str) -> DaemonFolder:
    return DaemonFolder(bench.hosts["n1"].folder / "ceph" / bench.access.cluster / f"osd.{uuid}")


async def test_a_half_made_osd_is_made_anew_and_a_whole_one_is_kept(bench: Bench) -> None:
    await bench.up()
    host, osd = bench.hosts["n1"], bench.osds("n1")[0]
    folder = folder_of(bench, osd.uuid)
    await bench.ask("osd pool create", pool="p", pg_num=1, pgp_num=1, size=1, yes_i_really_mean_it=True)
    await bench.ask("config-key set", b"x", key="scloud/x")

    # its device vanishes, and comes back
    aside = Path(osd.path).rename(Path(osd.path).with_suffix(".aside"))
    await host.kill(f"osd.{folder.osd_number()}")
    with pytest.raises(CloudError, match=f"{osd.path} of osd.0 is gone: bring it back, or forget it") as vanished:
        await bench_ensure(bench, osd)
    assert vanished.value.kind is ErrorKind.NOT_FOUND
    aside.rename(osd.path)
    await bench_ensure(bench, osd)
    await bench.healthy()

    # all that says it is made is lost, with the OSD whole on its device: it is taken as it is
    await host.daemons.ensure(bench.change("n1", bench.stores["n1"].daemons[0]))
    made = (folder.data / "fsid").read_text()
    before = head(osd.path)
    tool("rm", "-r", str(folder.path))
    await host.daemons.ensure(bench.change("n1", bench.stores["n1"].daemons[0], osd))
    assert head(osd.path) == before
    assert (folder.data / "fsid").read_text() == made
    await bench.healthy()

    # killed while it was made: what is there of it is not used
    await host.daemons.ensure(bench.change("n1", bench.stores["n1"].daemons[0]))
    folder.made.unlink()
    lose_label(osd.path)
    with pytest.raises(CloudError, match="holds data"):
        # the bytes behind the label look like somebody's
        await bench_ensure(bench, osd)
    os.truncate(osd.path, 0)
    await bench_ensure(bench, osd)
    await bench.healthy()
    assert host.holds(osd.path) and Path(osd.path).stat().st_size == osd.size_mib * 2**20


async def bench_ensure(bench: Bench, osd: object) -> None:
    """On a busy machine a daemon may take longer than one attempt waits for it."""
    wanted = bench.change("n1", bench.stores["n1"].daemons[0], osd)
    await until(lambda: bench.hosts["n1"].daemons.ensure(wanted), "the OSD")


async def test_two_attempts_do_not_meet(bench: Bench) -> None:
    await until(lambda: bench.hosts["n1"].daemons.ensure(bench.stores["n1"]), "the OSD")
    osd = bench.osds("n1")[0]
    folder = folder_of(bench, osd.uuid)
    await bench.hosts["n1"].daemons.ensure(bench.change("n1", bench.stores["n1"].daemons[0]))
    folder.made.unlink()
    wanted = bench.change("n1", bench.stores["n1"].daemons[0], osd)
    with osds.held(folder), pytest.raises(CloudError) as error:
        await bench.hosts["n1"].daemons.ensure(wanted)
    assert error.value.kind is ErrorKind.UNAVAILABLE and "earlier attempt" in error.value.message
    await bench_ensure(bench, osd)


async def test_block_devices(bench: Bench, loop_device: Path) -> None:
    monitor = bench.stores["n1"].daemons[0]
    gone = bench.osd("n1", 1, path="/dev/scloud-none", size_mib=None)
    wanted = bench.osd("n1", 2, path=str(loop_device), size_mib=None)
    await until(lambda: bench.hosts["n1"].daemons.ensure(bench.change("n1", monitor)), "the monitor")

    with pytest.raises(CloudError, match="there is no device /dev/scloud-none") as missing:
        await bench.hosts["n1"].daemons.ensure(bench.change("n1", monitor, gone))
    assert missing.value.kind is ErrorKind.NOT_FOUND
    with pytest.raises(CloudError, match="no block device") as wrong:
        file = bench.osd("n1", 1, path=str(bench.folder / "disk.img"), size_mib=None)
        await bench.hosts["n1"].daemons.ensure(bench.change("n1", monitor, file))
    assert wrong.value.kind is ErrorKind.INVALID

    tool("mkfs.ext4", "-q", str(loop_device))
    with pytest.raises(CloudError, match="wipefs") as foreign:
        await bench.hosts["n1"].daemons.ensure(bench.change("n1", monitor, wanted))
    assert foreign.value.kind is ErrorKind.CONFLICT
    assert "ext4" in tool("blkid", "-p", str(loop_device))
    osds.wipe(loop_device)

    numbers = await bench.hosts["n1"].daemons.ensure(bench.stores["n1"])
    assert wanted.uuid in numbers and osds.owner(loop_device) == wanted.uuid
    other = bench.osd("n1", 3, path=str(loop_device), size_mib=None)
    with pytest.raises(CloudError, match=f"another OSD, {wanted.uuid}"):
        await bench.hosts["n1"].daemons.ensure(bench.change("n1", monitor, wanted, other))
    # an attempt that failed has nothing to wipe: what is on the device stays
    await bench.hosts["n1"].daemons.ensure(
        bench.change("n1", monitor, wanted, other.model_copy(update={"absent": True}))
    )
    assert osds.owner(loop_device) == wanted.uuid
    await bench.hosts["n1"].daemons.ensure(bench.change("n1", monitor, wanted.model_copy(update={"absent": True})))
    assert osds.owner(loop_device) is None


async def test_a_fourth_and_a_replaced_monitor_join_those_that_are_there() -> None:
    bench = real_bench(names=("n1", "n2", "n3", "n4"), osds=0, managers=0)
    try:
        late = bench.stores.pop("n4")
        first = tuple(item for item in late.initial_monitors if item[0] != "n4")
        for name, store in bench.stores.items():
            bench.stores[name] = store.model_copy(update={"initial_monitors": first})
        await bench.up()
        await bench.hosts["n4"].daemons.ensure(late)

        async def names() -> list[str]:
            return sorted((await bench.ask("quorum_status"))["quorum_names"])

        async def four() -> bool | None:
            return await names() == ["n1", "n2", "n3", "n4"] or None

        await until(four, "four monitors in the quorum")
        await bench.hosts["n1"].daemons.remove(bench.stores["n1"])
        await until(lambda: bench.ask("mon rm", name="n1"), "the removal")

        async def three() -> bool | None:
            return await names() == ["n2", "n3", "n4"] or None

        await until(three, "three monitors in the quorum")
    finally:
        await bench.close()


_ATTEMPT = """
import asyncio, sys
from pathlib import Path
from scloud.drivers.ceph.daemons import NodeDaemons
from scloud.drivers.supervisor.process import ProcessSupervisor
from scloud.model.desired import DesiredStore

folder, address = Path(sys.argv[1]), sys.argv[2]
store = DesiredStore.model_validate_json(sys.stdin.read())
supervisor = ProcessSupervisor(folder / "run", folder / "log")
daemons = NodeDaemons(*(folder / name for name in ("ceph", "s", "log")), supervisor, lambda: address)
asyncio.run(daemons.ensure(store))
print("done", flush=True)
"""


async def test_killed_at_any_moment_while_osds_are_made(bench: Bench) -> None:
    """The process that makes them is killed earlier and later; then another one finishes what there is."""
    store: DesiredStore = bench.stores["n1"]
    monitor = store.daemons[0]
    assert isinstance(monitor, MonDaemon)
    await until(lambda: bench.hosts["n1"].daemons.ensure(bench.change("n1", monitor)), "the monitor")
    wanted: list[object] = [monitor]
    for number, seconds in enumerate((0.45, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0)):
        wanted.append(bench.osd("n1", number))
        text = bench.change("n1", *wanted).model_dump_json()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _ATTEMPT, str(bench.hosts["n1"].folder), bench.addresses["n1"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(text.encode())
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), seconds)
        except TimeoutError:
            process.send_signal(signal.SIGKILL)
            await process.wait()
    numbers = await until(lambda: bench.hosts["n1"].daemons.ensure(bench.stores["n1"]), "all OSDs")
    assert sorted(numbers.values()) == list(range(7)), "no number is lost, none is given twice"
    await bench.healthy()
    tree = (await bench.ask("osd tree"))["nodes"]
    assert sorted(node["id"] for node in tree if node["type"] == "osd") == list(range(7))
