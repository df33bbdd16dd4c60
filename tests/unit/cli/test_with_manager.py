"""The command line against the real manager with scripted nodes: the shapes that both believe in are the same."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from cli_runner import Cli

from scloud.link.backup import BackupHeader, encode
from support.cloud import Cloud

TOKEN = "secret-of-boss"


class Manager(threading.Thread):
    """A manager with two nodes and an image, on a port of this machine, in a thread with a loop of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.ready = threading.Event()
        self.loop = asyncio.new_event_loop()
        self.done = asyncio.Event()

    def run(self) -> None:
        self.loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        async with Cloud(self.folder) as cloud:
            await cloud.node("n1")
            await cloud.node("n2")
            await cloud.image()
            config = uvicorn.Config(
                cloud.app, lifespan="off", log_level="error", loop="none", timeout_graceful_shutdown=1
            )
            server = uvicorn.Server(config)
            serving = self.loop.create_task(server._serve([self.listener]))
            self.ready.set()
            await self.done.wait()
            server.should_exit = True
            await serving

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.done.set)
        self.join(20)


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    thread = Manager(tmp_path_factory.mktemp("manager"))
    thread.start()
    assert thread.ready.wait(30)
    yield thread
    thread.stop()


@pytest.fixture
def real(manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("SCLOUD_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("SCLOUD_URL", manager.url)
    monkeypatch.setenv("SCLOUD_TOKEN", TOKEN)
    for name in ("SCLOUD_CONTEXT", "SCLOUD_CA"):
        monkeypatch.delenv(name, raising=False)
    return Cli(manager.url, tmp_path)


def test_the_life_of_a_vm(real: Cli) -> None:
    real.ok("vpc", "create", "life")
    real.ok("subnet", "create", "life", "--vpc", "life", "--cidr", "10.1.0.0/24")
    real.ok("keypair", "create", "life")
    plan = real.json("vm", "create", "web", "--subnet", "life", "--dry-run")
    assert plan["node"] in ("n1", "n2")
    vm = real.json(
        *("vm", "create", "web", "--subnet", "life", "--ip", "10.1.0.9", "--keypair", "life", "--disk", "1G"),
        *("--memory", "512M", "--cpus", "2"),
    )
    assert vm["status"]["state"] == "running"
    assert vm["status"]["addresses"] == ["10.1.0.9"]
    assert (vm["spec"]["memory_mib"], vm["spec"]["cpus"]) == (512, 2)
    line = real.ok("vm", "list").splitlines()[1].split()
    assert line[:2] + line[3:5] == ["web", "running", "10.1.0.9", "2"]
    assert line[2] in ("n1", "n2")
    assert "micro" in real.ok("vm", "show", "web")
    assert {disk["spec"]["system"] for disk in real.json("disk", "list", "--vm", "web")} == {True, False}
    assert real.json("nic", "list", "--vm", "web")[0]["spec"]["ip"] == "10.1.0.9"
    assert real.ok("vm", "stop", "web", "--force").startswith("web stopped")
    assert real.json("vm", "show", "web")["status"]["state"] == "stopped"
    assert real.ok("vm", "start", "web").startswith("web started")
    assert real.ok("vm", "reboot", "web").startswith("web rebooted")
    assert real.json("vm", "resize", "web", "--memory", "1G")["spec"]["memory_mib"] == 1024
    assert real.json("vm", "rebuild", "web")["status"]["state"] == "running"
    assert real.json("vm", "rename", "web", "site")["name"] == "site"
    assert real.ok("vm", "log", "site").startswith("log of vm-")
    assert "Memory" in real.ok("vm", "figures", "site")
    assert real.ok("vm", "delete", "site") == "site deleted\n"
    assert real.run("vm", "show", "site").exit_code == 3
    assert real.ok("disk", "delete", "web-data-1") == "web-data-1 deleted\n"
    real.ok("subnet", "delete", "life")
    real.ok("vpc", "delete", "life")


def test_several_at_once(real: Cli) -> None:
    real.ok("vpc", "create", "many")
    real.ok("subnet", "create", "many", "--vpc", "many", "--cidr", "10.2.0.0/24")
    real.ok("placement-group", "create", "apart", "--policy", "hard")
    vms = real.json("vm", "create", "a", "--subnet", "many", "--count", "2", "--placement-group", "apart")
    assert [vm["name"] for vm in vms] == ["a-1", "a-2"]
    assert len({vm["status"]["node"] for vm in vms}) == 2
    result = real.run("vm", "create", "a-3", "--subnet", "many", "--placement-group", "apart", "-o", "json")
    assert result.exit_code == 1
    assert "no_capacity" in result.stderr
    operation = real.json("vm", "create", "b", "--subnet", "many", "--no-wait")
    assert real.json("operation", "wait", operation["id"])["state"] == "done"
    assert real.json("operation", "show", operation["id"])["action"] == "vm.create"
    assert operation["id"] in real.ok("operation", "list")
    real.ok("vm", "delete", "a-1", "a-2", "b")


def test_networks(real: Cli) -> None:
    real.ok("vpc", "create", "net", "--vni", "4242")
    assert real.json("vpc", "show", "net")["spec"]["vni"] == 4242
    real.ok("subnet", "create", "net", "--vpc", "net", "--cidr", "10.3.0.0/24")
    assert [item["name"] for item in real.json("subnet", "list", "--vpc", "net")] == ["net"]
    real.ok("security-group", "create", "web")
    real.ok(
        *("security-group", "rule", "add", "web", "--direction", "inbound", "--protocol", "tcp"),
        *("--port", "80", "--cidr", "0.0.0.0/0"),
    )
    rules = real.json("security-group", "rule", "list", "web")
    mine = next(rule for rule in rules if rule["port_min"] == 80)
    assert "inbound tcp 80 from 0.0.0.0/0" in real.ok("security-group", "show", "web")
    real.ok("vm", "create", "server", "--subnet", "net", "--security-group", "web")
    nic = real.json("nic", "create", "extra", "--subnet", "net", "--ip", "10.3.0.77")
    assert nic["spec"]["ip"] == "10.3.0.77"
    real.ok("nic", "attach", "extra", "server")
    assert "10.3.0.77" in real.json("vm", "show", "server")["status"]["addresses"]
    assert len(real.json("nic", "set", "extra", "--security-group", "web")["spec"]["security_groups"]) == 1
    assert real.json("nic", "set", "extra", "--no-security-group")["spec"]["security_groups"] == []
    found = real.json("network", "trace", "server", "10.3.0.77", "--tcp", "80")
    assert found["verdict"] in ("delivered", "dropped")
    assert (
        real.ok("network", "trace", "server", "10.3.0.77", "--tcp", "80").splitlines()[-1].startswith(found["verdict"])
    )
    real.ok("nic", "detach", "extra")
    real.ok("nic", "delete", "extra")
    real.ok("security-group", "rule", "delete", "web", mine["id"])
    assert mine["id"] not in real.ok("security-group", "rule", "list", "web")
    result = real.run("security-group", "delete", "web")
    assert result.exit_code == 1
    assert "server" in result.stderr
    real.ok("vm", "delete", "server")
    real.ok("security-group", "delete", "web")


def test_disks(real: Cli) -> None:
    real.ok("vpc", "create", "disks")
    real.ok("subnet", "create", "disks", "--vpc", "disks", "--cidr", "10.4.0.0/24")
    real.ok("vm", "create", "store", "--subnet", "disks")
    real.ok("disk", "create", "data", "--size", "1G")
    real.ok("disk", "attach", "data", "store")
    assert "store" in real.ok("disk", "show", "data")
    assert real.json("disk", "resize", "data", "--size", "2G")["spec"]["size_mib"] == 2048
    assert real.run("disk", "resize", "data", "--size", "1G").exit_code != 0
    real.ok("disk", "detach", "data")
    real.ok("disk", "delete", "data")
    real.ok("vm", "delete", "store")


def test_an_image_from_a_file_and_back(real: Cli, tmp_path: Path) -> None:
    file = tmp_path / "disk.raw"
    file.write_bytes(b"\x01" * (1 << 20))
    image = real.json("image", "import", "mine", str(file), "--format", "raw", "--login-user", "me")
    assert (image["status"]["state"], image["spec"]["login_user"]) == ("ready", "me")
    real.ok("image", "export", "mine", str(tmp_path / "out"), "--format", "raw")
    assert (tmp_path / "out").read_bytes() == file.read_bytes()
    result = real.run("image", "import", "wrong", str(file), "--format", "raw", "--sha256", "0" * 64)
    assert result.exit_code != 0
    result = real.run("image", "import", "wrong2", str(file), "--format", "qcow2")
    assert result.exit_code != 0
    assert "qcow2" in result.stderr
    assert real.ok("image", "delete", "mine") == "mine deleted\n"


def test_administration(real: Cli) -> None:
    assert [node["name"] for node in real.json("node", "list")] == ["n1", "n2"]
    assert "fake: scripted" in real.ok("node", "show", "n1")
    assert "node join" in real.ok("node", "add", "n9")
    assert "joining" in real.ok("node", "list")
    assert real.ok("node", "remove", "n9") == "n9 removed\n"
    assert real.json("node", "cordon", "n1")["spec"]["cordoned"] is True
    assert "cordoned" in real.ok("node", "list")
    real.ok("node", "uncordon", "n1")
    assert real.json("cluster", "set", "default", "--cpu-overcommit", "8")["spec"]["cpu_overcommit"] == 8
    real.ok("account", "create", "acme")
    made = real.json("token", "create", "for-acme", "--account", "acme", "--ttl", "1h")
    assert made["token"]["expires_at"] is not None
    assert "for-acme" not in real.ok("token", "list")
    real.ok("context", "add", "acme", "--url", real.url, "--token", made["secret"])
    mine = real.json("token", "create", "spare")["token"]["id"]
    assert mine in real.ok("token", "list")
    real.ok("token", "delete", mine)
    assert real.run("token", "delete", mine).exit_code == 3
    assert real.json("audit")["clean"] is True
    assert "The cloud is clean: 2 nodes asked" in real.ok("audit")
    status = real.json("status")
    assert status["healthy"] is True
    assert "2 ready" in real.ok("status")
    assert real.json("version")["cloud"] == status["version"]
    real.ok("api", "POST", "/vms", '{"name": "eventful", "spec": {"image": "micro"}}')
    real.ok("vm", "delete", "eventful")
    assert real.ok("event", "list").splitlines()[0].split() == ["TIME", "LEVEL", "ABOUT", "MESSAGE"]


def test_a_tenant_sees_its_own_only(real: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    real.ok("vpc", "create", "hidden")
    monkeypatch.setenv("SCLOUD_TOKEN", "secret-of-alice")
    assert real.json("vpc", "list") == []
    assert real.run("vpc", "show", "hidden").exit_code == 3
    assert real.run("node", "list").exit_code == 1
    assert real.run("audit").exit_code == 1
    assert "tenant" in real.ok("context", "show")
    real.ok("vpc", "create", "mine")
    real.ok("subnet", "create", "mine", "--vpc", "mine", "--cidr", "10.9.0.0/24")
    real.ok("vm", "create", "mine", "--subnet", "mine")
    line = real.ok("vm", "list").splitlines()[1]
    assert line.split()[2] in ("n1", "n2")
    real.ok("vm", "delete", "mine")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["vm", "create", "Bad_Name"], 2),
        (["vm", "create", "x", "--cpus", "257"], 2),
        (["vm", "create", "x", "--memory", "1M"], 2),
        (["subnet", "create", "x", "--vpc", "nothing", "--cidr", "10.0.0.0/24"], None),
        (["subnet", "create", "x", "--vpc", "hidden", "--cidr", "10.0.0.1/24"], 2),
        (["keypair", "show", "nothing"], 3),
        (["operation", "show", "op-0000000000000000"], 3),
        (["vm", "start", "nothing"], 3),
        (["nic", "create", "x", "--subnet", "nothing"], None),
    ],
)
def test_refusals(real: Cli, arguments: list[str], code: int | None) -> None:
    result = real.run(*arguments)
    assert result.exit_code == code if code is not None else result.exit_code in (1, 2, 3)
    assert result.stderr


def test_console_through_the_node(real: Cli, manager: Manager) -> None:
    real.ok("vpc", "create", "con")
    real.ok("subnet", "create", "con", "--vpc", "con", "--cidr", "10.8.0.0/24")
    real.ok("vm", "create", "con", "--subnet", "con")
    command = [sys.executable, "-m", "scloud.cli.main", "vm"]
    done = subprocess.run(
        [*command, "console", "con", "--linger", "0.5"], input=b"hello", capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"HELLO"), done.stderr
    with subprocess.Popen(
        [*command, "port-forward", "con", "22", "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"through")
        process.stdin.flush()
        assert process.stdout.read(7) == b"THROUGH"
        process.kill()
    done = subprocess.run([*command, "console", "nothing"], capture_output=True, timeout=60, check=False)
    assert (done.returncode, b"there is no vm 'nothing'" in done.stderr) == (3, True)
    real.ok("vm", "delete", "con")


def test_the_api_directly(real: Cli) -> None:
    answer: Any = json.loads(real.ok("api", "GET", "vms?limit=1"))
    assert answer.keys() == {"items", "next"}


def test_a_backup_that_cannot_be_brought_back_leaves_no_disk_behind(real: Cli, tmp_path: Path) -> None:
    async def whole() -> bytes:
        async def extents() -> AsyncIterator[tuple[int, bytes | int]]:
            yield 0, b"bytes"

        header = BackupHeader(disk="dsk-x", snapshot="snp-x", size_mib=8)
        return b"".join([piece async for piece in encode(header, extents())])

    file = tmp_path / "monday.bak"
    file.write_bytes(asyncio.run(whole()))
    before = real.json("disk", "list")
    result = real.run("disk", "import", "other", str(file))
    assert result.exit_code != 0 and "--type" in result.stderr and "scloud disk-type list" in result.stderr
    assert real.json("disk", "list") == before
    real.ok("disk-type", "create", "plain")
    result = real.run("disk", "import", "other", str(file), "--type", "plain")
    assert result.exit_code != 0 and "is on no node yet" in result.stderr
    assert real.json("disk", "list") == before
    # One that was there before stays.
    real.ok("disk", "create", "mine", "--size", "8M")
    assert real.run("disk", "import", "mine", str(file)).exit_code != 0
    assert real.json("disk", "show", "mine")["name"] == "mine"
    real.ok("disk", "delete", "mine")
    real.ok("disk-type", "delete", "plain")
