"""A guest whose disks are RBD images of a real cluster: boot, hot plug, growth, limits, figures, snapshots, fencing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypervisor_rig import Console, Rig
from rbd_bench import CLIENT, NODE, RbdBench

from scloud.drivers.hypervisor.libvirt import LibvirtHypervisor
from scloud.drivers.hypervisor.protocol import DiskSource, DomainSpec
from scloud.drivers.storage.place import RbdPlace
from scloud.drivers.storage.protocol import FromImage
from scloud.drivers.storage.rbd_pools import RbdPools
from scloud.images import micro
from scloud.model.desired import DesiredStore, StorePool
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.snapshots import DiskLimits
from support.ceph_rig import CephRig

pytestmark = pytest.mark.engine

VM = "vm-0123456789abcdef"
SYSTEM = "dsk-0123456789abcdef"
DATA = "dsk-0123456789abcdeg"
MIB = 1024 * 1024


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig(network=False) as made:
        yield made


@pytest.fixture
async def bench(
    ceph: CephRig,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> AsyncIterator[RbdBench]:
    """Its storage is opened as an agent does it: from what the manager says of the cluster."""
    made = RbdBench(ceph, "rbd", monkeypatch)
    store = DesiredStore(
        id=f"test.{NODE}",
        generation=1,
        cluster="test",
        fsid=ceph.fsid,
        mon_host=ceph.mon_host,
        client=CLIENT,
        client_key=ceph.make_client(CLIENT, "rbd", "rbd-ec", "rbd-ec-data"),
    )
    made.use(RbdPools(NODE, tmp_path / "ceph").open(store, StorePool(id="poo-1", name="rbd")))
    try:
        yield made
    finally:
        await made.clean()


@pytest.fixture
async def driver(bench: RbdBench, rig: Rig) -> AsyncIterator[LibvirtHypervisor]:
    made = LibvirtHypervisor("tcg", uri=rig.uri, state_dir=rig.state_dir)
    yield made
    if (facts := await made.show(VM)) is not None and facts.running:
        await made.destroy(VM)
    await made.close()


async def source(bench: RbdBench, disk: str, limits: DiskLimits | None = None) -> DiskSource:
    return DiskSource(disk=disk, place=await bench.storage.locate(disk), limits=limits or DiskLimits())


async def spec(bench: RbdBench, rig: Rig) -> DomainSpec:
    return DomainSpec(
        vm=VM,
        name="guest",
        cpus=1,
        max_cpus=1,
        memory_mib=192,
        max_memory_mib=192,
        disks=(await source(bench, SYSTEM),),
        nics=(),
        console_log=rig.scratch / "console.log",
        console_socket=rig.scratch / "console.sock",
    )


async def test_a_guest_lives_on_rbd(bench: RbdBench, rig: Rig, driver: LibvirtHypervisor, tmp_path: Path) -> None:
    image = tmp_path / "micro.raw"
    await asyncio.to_thread(micro.build, image)
    size = (image.stat().st_size + MIB - 1) // MIB
    await bench.storage.create(SYSTEM, size, FromImage("img-micro", image))
    await bench.storage.create(DATA, 16, None)
    wanted = await spec(bench, rig)
    with pytest.raises(CloudError, match="was not given the key") as caught:
        await driver.start(wanted)
    assert caught.value.kind == ErrorKind.ENGINE
    place = wanted.disks[0].place
    assert isinstance(place, RbdPlace)
    key = bench.rig.make_client(CLIENT, "rbd", "rbd-ec", "rbd-ec-data")
    driver.set_secret(place.secret, "the test's cluster", key)
    await driver.start(wanted)
    console = await Console.open(wanted.console_socket)
    await console.login()

    rig.kill_daemon()
    rig.start_daemon()  # it has forgotten the secret
    await driver.attach_disk(VM, await source(bench, DATA, DiskLimits(iops=200)))
    await console.until("cat /sys/block/vdb/serial 2>/dev/null || true", DATA)
    await console.run("mkfs.ext2 /dev/vdb && mount /dev/vdb /mnt && echo kept > /mnt/file && sync && umount /mnt")
    before = {one.disk: one for one in await driver.disk_figures(VM)}
    assert before[SYSTEM].reads > 0 and before[DATA].written_bytes > 0 and before[DATA].write_ns > 0

    await bench.storage.snapshot(DATA, "snp-1")
    await bench.storage.resize(DATA, 24)
    await driver.grow_disk(VM, DATA, 24)
    await console.until("blockdev --getsize64 /dev/vdb", str(24 * MIB))
    await driver.limit_disk(VM, DATA, DiskLimits(kib_per_s=1024))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await console.run("dd if=/dev/zero of=/dev/vdb bs=64k count=80 oflag=direct")
    assert 3 < loop.time() - began < 20, "5 MiB at 1 MiB a second"
    await driver.limit_disk(VM, DATA, DiskLimits())
    began = loop.time()
    await console.run("dd if=/dev/zero of=/dev/vdb bs=64k count=240 oflag=direct")
    assert loop.time() - began < 10, "15 MiB: limits that were lifted are gone at once"

    with pytest.raises(CloudError, match="is open") as caught:
        await bench.storage.roll_back(DATA, "snp-1", 1)
    assert caught.value.kind == ErrorKind.IN_USE
    await driver.detach_disk(VM, DATA)
    await console.until("ls /dev/vdb 2>/dev/null || true", "")
    await bench.storage.roll_back(DATA, "snp-1", 1)
    await driver.attach_disk(VM, await source(bench, DATA))
    await console.until("cat /sys/block/vdb/serial 2>/dev/null || true", DATA)
    assert await console.run("mount -o ro /dev/vdb /mnt && cat /mnt/file && umount /mnt") == "kept"
    console.close()
    await driver.destroy(VM)
    await driver.undefine(VM)
    assert rig.run("virsh", "-c", "qemu:///system", "secret-list").count("ceph") == 1
    assert key not in "".join(path.read_text() for path in (rig.scratch / "etc").rglob("*.xml"))
