"""What guests are told of themselves: by the NoCloud disk, and by the metadata service."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from lab.cloud import Guest, Lab, until
from lab.shared import Twins, Wide

BASE = "http://169.254.169.254/latest/meta-data"
SCRIPT = "#!/bin/sh\necho $(hostname) >> /root/ran\necho said on the console\n"


@pytest.fixture(scope="module")
def script(lab: Lab) -> Path:
    file = lab.folder / "user-data"
    file.write_text(SCRIPT)
    return file


@pytest.fixture(scope="module")
def diskless(lab: Lab, micro: Path) -> str:
    """The micro image without the drivers that its NoCloud disk is read with: only the metadata service is left."""
    file = lab.folder / "diskless.raw"
    subprocess.run(["cp", "--sparse=always", str(micro), str(file)], check=True)
    table = file.read_bytes()[446 + 16 : 446 + 32]
    place = f"{file}?offset={int.from_bytes(table[8:12], 'little') * 512}"
    listing = subprocess.run(
        ["debugfs", "-R", "ls -p /lib/modules", place], check=True, capture_output=True, text=True
    ).stdout
    version = next(part for part in re.split(r"[/\n]", listing) if part[:1].isdigit() and "." in part)
    commands = "".join(
        f"rm /lib/modules/{version}/kernel/fs/{name}\n" for name in ("isofs/isofs.ko", "fat/vfat.ko", "fat/fat.ko")
    )
    done = subprocess.run(
        ["debugfs", "-w", "-f", "-", place], input=commands, check=True, capture_output=True, text=True
    )
    assert "not found" not in done.stdout + done.stderr, done
    lab.ok("image", "import", "diskless", f"file://{file}", "--format", "raw")
    return "diskless"


def check_guest(lab: Lab, guest: Guest, source: str) -> None:
    """Host name, key, and the script that ran once, also after another boot."""
    log = lab.ok("vm", "log", guest.name)
    assert source in log and "said on the console" in log
    assert guest.run("hostname") == guest.name
    key = lab.json("keypair", "show", "default")["spec"]["public_key"].split()[1]
    assert key in guest.run("cat /root/.ssh/authorized_keys")
    until(lambda: guest.succeeds("[ -e /run/cloud/result ]"), "the script has ended", 30.0)
    assert guest.run("cat /root/ran") == guest.name
    before = guest.boot_id()
    lab.ok("vm", "reboot", guest.name)
    guest.wait_reboot(before)
    assert guest.run("cat /root/ran") == guest.name, "once, not once a boot"


def test_by_nocloud_and_by_the_metadata_service(lab: Lab, script: Path, diskless: str, networks: None) -> None:
    options = f"--subnet wide --security-group left --user-data {script} --node n3"
    guests = lab.create_all(seeded=options, asking=f"{options} --image {diskless}")
    check_guest(lab, guests["seeded"], "(from the disk")
    check_guest(lab, guests["asking"], "(from the metadata service")
    for guest in guests.values():
        guest.forget()
    lab.ok("vm", "delete", "seeded", "asking")


def test_it_tells_a_vm_about_itself(lab: Lab, wide: Wide) -> None:
    for guest in (wide.a1, wide.a2, wide.a3):
        for path, value in (
            ("instance-id", guest.id),
            ("local-ipv4", guest.ip),
            ("mac", guest.nic["spec"]["mac"]),
        ):
            assert guest.fetch(f"{BASE}/{path}").out == value
        assert guest.fetch(f"{BASE}/local-hostname").out.split(".")[0] == guest.name
    names = wide.a1.fetch(f"{BASE}/").out.split()
    assert {"instance-id", "hostname", "public-keys/"} <= set(names)
    key = lab.json("keypair", "show", "default")["spec"]["public_key"].split()[1]
    assert key in wide.a1.fetch(f"{BASE}/public-keys/0/openssh-key").out
    assert wide.a1.fetch("http://169.254.169.254/2009-04-04/meta-data/instance-id").out == wide.a1.id
    missing = wide.a1.fetch(f"{BASE}/none-such")
    assert missing.code != 0 and "404" in missing.err
    assert wide.a1.fetch("http://169.254.169.254/latest/user-data").code != 0, "it has none"


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "X-Instance-ID", "Host"])
def test_no_header_makes_it_another(lab: Lab, wide: Wide, header: str) -> None:
    value = {"Forwarded": f"for={wide.a2.ip}", "X-Instance-ID": wide.a2.id}.get(header, wide.a2.ip)
    assert wide.a1.fetch(f"{BASE}/instance-id", f"{header}: {value}").out == wide.a1.id


def test_a_borrowed_address_makes_it_nobody(lab: Lab, wide: Wide) -> None:
    """a3 takes a1's address: what it sends with it goes nowhere."""
    out = wide.a3.run(
        f"ip addr add {wide.a1.ip}/32 dev eth0; ip route replace 169.254.169.254 dev eth0 src {wide.a1.ip} metric 1; "
        f"timeout 4 wget -q -O - {BASE}/instance-id; ip addr del {wide.a1.ip}/32 dev eth0; "
        "ip route del 169.254.169.254 dev eth0 metric 1 2>/dev/null; true"
    )
    assert out == ""
    assert wide.a3.fetch(f"{BASE}/instance-id").out == wide.a3.id


def test_the_same_address_in_two_vpcs_is_two_vms(lab: Lab, twins: Twins) -> None:
    for guest in (twins.l1, twins.r1, twins.l2, twins.r2):
        assert guest.fetch(f"{BASE}/instance-id").out == guest.id
        assert guest.fetch(f"{BASE}/instance-id", f"X-Forwarded-For: {guest.ip}").out == guest.id
