"""A machine is switched off through a Redfish service that others wrote (sushy-tools), over a real libvirt and QEMU."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import pytest
from hypervisor_rig import Rig, alive

from scloud.drivers.bmc.protocol import BmcAccess
from scloud.drivers.bmc.redfish import RedfishBmc
from scloud.model.errors import CloudError, ErrorKind

pytestmark = pytest.mark.engine
USER, PASSWORD = "operator", "correct horse"
MACHINE = """<domain type='qemu'><name>machine</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type></os></domain>"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)
    raise AssertionError(f"it does not listen: {log.read_text()}")


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with Rig() as rig:
        xml = rig.scratch / "machine.xml"
        xml.write_text(MACHINE)
        rig.run("virsh", "-c", "qemu:///system", "define", str(xml))
        yield rig


@pytest.fixture(scope="module")
def bmc(rig: Rig) -> Iterator[BmcAccess]:
    """What a node's record has of its BMC."""
    port = _free_port()
    users = rig.scratch / "users"
    users.write_text(f"{USER}:{bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()}\n")
    config = rig.scratch / "emulator.conf"
    state = rig.scratch / "emulator"
    state.mkdir()
    config.write_text(f"SUSHY_EMULATOR_AUTH_FILE = {str(users)!r}\nSUSHY_EMULATOR_STATE_DIR = {str(state)!r}\n")
    program = Path(sys.executable).parent / "sushy-emulator"
    argv = [program, "--config", config, "-i", "127.0.0.1", "-p", str(port), "--libvirt-uri", rig.uri]
    log = rig.scratch / "log/emulator.out"
    with log.open("wb") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out)
    try:
        _listening(port, process, log)
        yield BmcAccess(url=f"http://127.0.0.1:{port}", user=USER, password=PASSWORD)
    finally:
        process.terminate()
        process.wait(30)


def _pid(rig: Rig) -> int:
    return int((rig.state_dir / "machine.pid").read_text())


async def test_the_machine_is_off_when_it_says_so(rig: Rig, bmc: BmcAccess) -> None:
    rig.run("virsh", "-c", "qemu:///system", "start", "machine")
    pid = _pid(rig)
    assert alive(pid)
    await RedfishBmc().power_off(bmc)
    assert not alive(pid)
    await RedfishBmc().power_off(bmc)  # and what is off is off


async def test_who_does_not_know_the_password_switches_nothing_off(rig: Rig, bmc: BmcAccess) -> None:
    rig.run("virsh", "-c", "qemu:///system", "start", "machine")
    with pytest.raises(CloudError) as caught:
        await RedfishBmc().power_off(bmc.model_copy(update={"password": "wrong"}))
    assert caught.value.kind is ErrorKind.FORBIDDEN
    assert alive(_pid(rig))
    with pytest.raises(CloudError) as caught:
        await RedfishBmc().power_off(bmc.model_copy(update={"system": "another"}))
    assert caught.value.kind is ErrorKind.ENGINE
    await RedfishBmc().power_off(bmc)
