"""The micro guest, seen from inside: boot, network, cloud-init, SSH, and each device that is plugged in as it runs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypervisor_rig import Console, Rig

from scloud.drivers.hypervisor.libvirt import LibvirtHypervisor
from scloud.drivers.hypervisor.protocol import DiskSource, DomainSpec, NicDevice
from scloud.drivers.storage.place import FilePlace
from scloud.images import micro
from scloud.images.nocloud import Seed, seed_image

pytestmark = pytest.mark.engine

VM = "vm-0123456789abcdef"
SYSTEM = "dsk-0123456789abcdef"
MAC = "52:54:00:00:02:01"
ADDRESS = "10.9.0.50"
SCRIPT = "#!/bin/sh\necho ran >> /var/log/ran\necho user data speaks\n"

# What the cloud's own service answers (paths of EC2), and 404 for everything else.
_METADATA = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
answers = {
    "meta-data/instance-id": "i-from-service",
    "meta-data/local-hostname": "served",
    "meta-data/public-keys/": "0=test",
    "meta-data/public-keys/0/openssh-key": sys.argv[1],
    "user-data": sys.argv[2],
}
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        text = answers.get(self.path.removeprefix("/latest/"))
        self.send_response(404 if text is None else 200)
        self.end_headers()
        self.wfile.write((text or "").encode())
HTTPServer(("169.254.169.254", 80), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("micro") / "micro.raw"
    micro.build(path)
    return path


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as made:
        made.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(made.scratch / "key"))
        made.make_tap("tap0")
        made.run("ip", "addr", "add", "10.9.0.1/24", "dev", "tap0")
        made.run("ip", "addr", "add", "169.254.169.254/32", "dev", "tap0")
        made.spawn(
            *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--interface=tap0"),
            *("--bind-interfaces", "--dhcp-range=10.9.0.50,10.9.0.60,255.255.255.0,1h", "--leasefile-ro"),
            f"--dhcp-host={MAC},{ADDRESS}",
            *("--dhcp-option=option:mtu,1400", "--dhcp-option=option:dns-server,10.9.0.1"),
            "--dhcp-option=option:classless-static-route,0.0.0.0/0,10.9.0.1,172.20.0.0/16,10.9.0.9",
            f"--pid-file={made.scratch}/dnsmasq.pid",
        )
        yield made


@pytest.fixture
async def driver(rig: Rig) -> AsyncIterator[LibvirtHypervisor]:
    made = LibvirtHypervisor("tcg", uri=rig.uri, state_dir=rig.state_dir)
    yield made
    await made.close()


def spec_for(rig: Rig, image: Path, *more: DiskSource) -> DomainSpec:
    disk = rig.scratch / "system.raw"
    rig.run("cp", "--sparse=always", str(image), str(disk))
    return DomainSpec(
        vm=VM,
        name="guest",
        cpus=1,
        max_cpus=2,
        memory_mib=192,
        max_memory_mib=512,
        disks=(DiskSource(disk=SYSTEM, place=FilePlace(path=disk)), *more),
        nics=(NicDevice(nic="nic-0123456789abcdef", tap="tap0", mac=MAC, mtu=1450, offload=True),),
        console_log=rig.scratch / "console.log",
        console_socket=rig.scratch / "console.sock",
    )


async def ssh(rig: Rig, command: str, timeout_s: float = 60) -> str:
    """Over the network, with the key alone."""
    argv = rig.inside(
        *("ssh", "-i", f"{rig.scratch}/key", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"),
        *("-o", "StrictHostKeyChecking=accept-new", "-o", f"UserKnownHostsFile={rig.scratch}/known"),
        *("-o", "ConnectTimeout=2", "-o", f"ConnectionAttempts={timeout_s:.0f}", f"root@{ADDRESS}", command),
    )
    process = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output.decode().strip()


async def test_nocloud_guest_from_boot_to_power_button(rig: Rig, image: Path, driver: LibvirtHypervisor) -> None:
    key = (rig.scratch / "key.pub").read_text().strip()
    seed = rig.scratch / "seed.iso"
    seed.write_bytes(
        seed_image(Seed(instance_id="i-one", hostname="web-1", keys=(key,), user_data=SCRIPT, macs=(MAC,)))
    )
    spec = spec_for(rig, image, DiskSource(disk=f"{VM}-cidata", place=FilePlace(path=seed), read_only=True))
    await driver.start(spec)
    console = await Console.open(spec.console_socket)
    await console.expect("user data speaks", 90)
    await console.expect("user-data script ended with 0")
    assert await ssh(rig, "hostname; cat /var/log/ran") == "web-1\nran"
    host_key = (rig.scratch / "known").read_text()

    await console.type("")
    await console.expect("# ")
    assert (await console.run("cat /sys/class/net/eth0/mtu")) == "1400", "the lease's MTU, not the device's"
    assert (await console.run("ip route | grep -v src | sed 's/ *$//'")).splitlines() == [
        "default via 10.9.0.1 dev eth0  metric 2",
        "10.9.0.1 dev eth0 scope link  metric 2",
        "10.9.0.9 dev eth0 scope link  metric 2",
        "172.20.0.0/16 via 10.9.0.9 dev eth0  metric 2",
    ]
    assert (await console.run("cat /etc/resolv.conf")) == "nameserver 10.9.0.1"
    assert await console.run("cat /sys/block/vda/serial") == SYSTEM
    await console.run("for tool in nc wget httpd ping sha256sum dd mkfs.ext2; do command -v $tool; done")
    await console.run("ping -c 1 10.9.0.1")

    data = rig.scratch / "data.raw"
    rig.run("truncate", "-s", "16M", str(data))
    rig.make_tap("tap1")
    await driver.attach_disk(VM, DiskSource(disk="dsk-0123456789abcdeg", place=FilePlace(path=data)))
    nic = NicDevice(nic="nic-0123456789abcdeg", tap="tap1", mac="52:54:00:00:02:02", mtu=1450, offload=False)
    await driver.attach_nic(VM, nic)
    assert await driver.set_cpus(VM, 2)
    assert await driver.set_memory(VM, 192 + 256)
    await console.until("cat /sys/block/vdc/serial 2>/dev/null || true", "dsk-0123456789abcdeg")
    await console.until("nproc", "2")
    await console.until("cat /sys/class/net/eth1/address 2>/dev/null || true", "52:54:00:00:02:02")
    assert await console.run("cat /sys/class/net/eth1/mtu") == "1450"
    memory = "[ $(sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo) -gt $((320 * 1024)) ] && echo more || true"
    await console.until(memory, "more")
    await console.run("mkfs.ext2 /dev/vdc && mount /dev/vdc /mnt && echo kept > /mnt/file && umount /mnt")
    await driver.grow_disk(VM, "dsk-0123456789abcdeg", 32)
    await console.until("blockdev --getsize64 /dev/vdc", str(32 * 1024 * 1024))
    await driver.detach_disk(VM, "dsk-0123456789abcdeg")
    await driver.detach_nic(VM, nic.nic)
    await console.until("ls /dev/vdc /sys/class/net/eth1 2>/dev/null || true", "")

    await driver.reboot(VM)
    await console.expect("instance i-one again", 120)
    assert await ssh(rig, "hostname; cat /var/log/ran; mount -o ro /dev/vda2 /mnt || true") == "web-1\nran"
    assert (rig.scratch / "known").read_text() == host_key, "the host key was made on the first boot only"

    await driver.shutdown(VM)
    async with asyncio.timeout(60):
        while (facts := await driver.show(VM)) is not None and facts.running:
            await asyncio.sleep(0.1)
    assert facts is not None and facts.off_reason == "guest"
    log = spec.console_log.read_bytes()
    assert log.count(b"user data speaks") == 1
    assert log.count(b"login: root") >= 2, "the log holds every boot"
    console.close()


async def test_metadata_service_guest(rig: Rig, image: Path, driver: LibvirtHypervisor) -> None:
    key = (rig.scratch / "key.pub").read_text().strip()
    spec = spec_for(rig, image)
    await driver.start(spec)
    # Only now, and late: the guest keeps asking.
    console = await Console.open(spec.console_socket)
    await console.login()
    rig.spawn(sys.executable, "-c", _METADATA, key, SCRIPT)
    await console.expect("hostname served, 1 keys", 90)
    await console.expect("user data speaks")
    assert await ssh(rig, "hostname; cat /var/log/ran") == "served\nran"
    console.close()
