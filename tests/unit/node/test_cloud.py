"""`lab` and `up` as people use them: the script, a cloud of its own, and nothing left afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scloud.client.http import Client
from scloud.drivers.supervisor.identity import Identity
from scloud.node import processes
from scloud.node.keeping import set_units, start_keeper
from scloud.node.layout import Layout, tag
from scloud.node.stopping import shut_guests
from scloud.setup.enrol import wait_nodes
from scloud.setup.manager import Endpoints, admin_context, free_port, start_manager

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).resolve().parents[3]


class Cloud:
    """The command line with folders of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lab, self.host = folder / "lab", folder / "host"
        self.env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("SCLOUD_")},
            "SCLOUD_CONFIG": str(folder / "config"),
            "SCLOUD_LAB_ROOT": str(self.lab),
            "SCLOUD_ROOT": str(self.host),
        }

    def run(self, *arguments: str, enter: tuple[str, ...] = (), **environment: str) -> str:
        """What it printed. `enter` is a command in front, which enters another network."""
        done = subprocess.run(
            [*enter, str(REPOSITORY / "scloud"), *arguments],
            env={**self.env, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def status(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.run("lab", "status", "-o", "json"))
        return parsed

    def pids(self, role: str, node: str | None = None) -> set[int]:
        return {p["pid"] for p in self.status()["processes"] if p["role"] == role and node in (None, p["node"])}

    def state(self, node: str) -> str:
        return str(next(item["state"] for item in self.status()["nodes"] if item["name"] == node))


def host_devices() -> set[str]:
    """Devices in the host's network; not those of labs and of other tests elsewhere, which come and go as they like."""
    names = {link["ifname"] for link in json.loads(subprocess.check_output(["ip", "-json", "link"]))}
    return {name for name in names if not name.startswith(("lab-", "sp", "sb", "sg"))}


def left_of(root: Path) -> list[str]:
    """Processes and mounts that still belong to a cloud."""
    inside = processes.namespaces_of(root, processes.scan())
    running = [f"{p.command} {p.pid}" for p in processes.scan() if processes.of_cloud(root, inside)(p)]
    return running + [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {root}" in line]


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with tempfile.TemporaryDirectory(prefix="scloud-test-") as folder:
        # dnsmasq has a user of its own, which must get through to its files.
        Path(folder).chmod(0o711)
        made = Cloud(Path(folder))
        yield made
        made.run("lab", "down", "--purge")
        made.run("down", "--purge")


def test_a_lab_lives_breaks_and_heals(cloud: Cloud) -> None:
    before = host_devices()
    cloud.run("lab", "up", "--nodes", "2")
    status = cloud.status()
    roles = {(process["role"], process["node"]) for process in status["processes"]}
    assert {("manager", None), ("keeper", None)} <= roles
    for node in ("n1", "n2"):
        assert {(role, node) for role in ("agent", "libvirtd", "ovsdb-server", "ovs-vswitchd")} <= roles
    device = f"lab-{tag(cloud.lab)}"
    assert Path("/sys/class/net", device).exists() and host_devices() == before, "all the rest is in namespaces"
    context = ("--context", status["context"])
    home = json.loads(cloud.run(*context, "vm", "show", "hello", "-o", "json"))["status"]["node"]
    other = "n2" if home == "n1" else "n1"
    assert cloud.run("lab", "exec", "n2", "--", "hostname").strip() == "n2"
    assert cloud.run(*context, "vm", "ssh", "hello", "--", "hostname").strip() == "hello"

    # Again: nothing to do, and nothing is touched.
    running = {(p["role"], p["pid"]) for p in status["processes"]}
    assert "Nothing to do" in cloud.run("lab", "up", "--nodes", "2")
    assert running == {(p["role"], p["pid"]) for p in cloud.status()["processes"]}

    guests = cloud.pids("qemu", home)
    assert len(guests) == 1

    # The data plane needs neither manager nor agent.
    cloud.run("lab", "fail", "manager", "--how", "kill")
    cloud.run("lab", "fail", home, "--how", "kill", "--only-agent")
    assert not cloud.pids("manager") and not cloud.pids("agent", home)
    assert cloud.pids("qemu", home) == guests
    cloud.run("lab", "heal", "manager")
    cloud.run("lab", "heal", home)
    assert cloud.run(*context, "vm", "ssh", "hello", "--", "hostname").strip() == "hello"
    assert cloud.pids("qemu", home) == guests, "a restarted agent restarts nothing"

    cloud.run("lab", "fail", home, "--how", "hang")
    assert cloud.state(home) == "hung" and cloud.state(other) == "up"
    assert all(p["stopped"] for p in cloud.status()["processes"] if p["node"] == home)
    cloud.run("lab", "heal", home)
    assert cloud.state(home) == "up" and cloud.pids("qemu", home) == guests

    cloud.run("lab", "fail", home, "--how", "partition")
    assert cloud.state(home) == "partitioned"
    address = next(item["management"] for item in status["nodes"] if item["name"] == home)
    assert subprocess.run(["ping", "-c1", "-W1", address], capture_output=True, check=False).returncode == 1
    cloud.run("lab", "heal", home)
    assert cloud.state(home) == "up"
    subprocess.run(["ping", "-c5", "-W1", address], capture_output=True, check=True)

    cloud.run("lab", "fail", home, "--how", "kill")
    assert cloud.state(home) == "killed"
    assert not [p for p in cloud.status()["processes"] if p["node"] == home]
    cloud.run("lab", "heal", home)
    assert cloud.run(*context, "vm", "ssh", "hello", "--", "hostname").strip() == "hello"
    assert cloud.pids("qemu", home).isdisjoint(guests)
    assert "clean" in cloud.run(*context, "audit")

    cloud.run("lab", "down")
    assert left_of(cloud.lab) == [] and host_devices() == before and not Path("/sys/class/net", device).exists()
    assert [path.name for path in cloud.lab.iterdir()] == ["cache"]


def test_a_lab_whose_start_was_killed_is_cleared_by_the_next(cloud: Cloud) -> None:
    for mark in ("nodes/n1/ns/mnt", "manager/ready", "nodes/n1/agent/pki/cert.pem"):
        start = subprocess.Popen(
            [str(REPOSITORY / "scloud"), "lab", "up", "--nodes", "1"],
            env=cloud.env,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        while not (cloud.lab / mark).exists() and start.poll() is None:
            subprocess.run(["sleep", "0.02"], check=True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(start.pid, signal.SIGKILL)
        start.wait()
    cloud.run("lab", "up", "--nodes", "1")
    assert len(cloud.pids("manager")) == len(cloud.pids("keeper")) == len(cloud.pids("agent", "n1")) == 1
    assert cloud.run("--context", cloud.status()["context"], "vm", "ssh", "hello", "--", "hostname").strip() == "hello"


def test_a_cloud_on_this_host_starts_stops_and_goes_without_a_trace(cloud: Cloud) -> None:
    before = host_devices()
    first = cloud.run("up")
    assert "The cloud is up" in first and "./scloud vm ssh hello" in first
    assert cloud.run("vm", "ssh", "hello", "--", "hostname").strip() == "hello"
    mine = {p.pid for p in processes.scan() if processes.of_cloud(cloud.host, ())(p)}
    assert "Nothing to do" in cloud.run("up")
    assert mine == {p.pid for p in processes.scan() if processes.of_cloud(cloud.host, ())(p)}

    assert "1 shut down" in cloud.run("down")
    assert left_of(cloud.host) == [] and host_devices() == before
    assert all(Identity.of(pid) is None for pid in mine)

    cloud.run("up")
    hello = json.loads(cloud.run("vm", "show", "hello", "-o", "json"))
    assert hello["status"]["state"] == "running"
    assert cloud.run("vm", "ssh", "hello", "--", "hostname").strip() == "hello"
    assert "clean" in cloud.run("audit")

    # A `down` that was broken off after it had shut the guests down: they were not switched off by their owners.
    layout = Layout(root=cloud.host)
    [sandbox] = layout.sandboxes(isolated=False)
    set_units(layout, layout.agent_unit(sandbox).model_copy(update={"wanted": "stop"}))
    assert shut_guests(layout, sandbox) == (1, 0)
    assert "left running" in cloud.run("up")
    assert json.loads(cloud.run("vm", "show", "hello", "-o", "json"))["status"]["state"] == "running"

    # What is killed by hand is removed as well as what was stopped in order.
    inside = processes.namespaces_of(cloud.host, processes.scan())
    processes.signal_all(processes.of_cloud(cloud.host, inside), signal.SIGKILL)
    cloud.run("down", "--purge")
    assert left_of(cloud.host) == [] and host_devices() == before
    assert not cloud.host.exists() and not (cloud.folder / "config").exists()


@pytest.fixture
def other_host() -> Iterator[tuple[str, ...]]:
    """A network of its own with a wire to ours (10.97.0.1 - 10.97.0.2) and a spare device `eth1`: how to enter it."""
    name = f"sct-{os.getpid()}"
    commands = [
        f"ip netns add {name}",
        f"ip link add {name} type veth peer name eth0 netns {name}",
        f"ip address add 10.97.0.1/24 dev {name}",
        f"ip link set {name} up",
        f"ip -n {name} address add 10.97.0.2/24 dev eth0",
        f"ip -n {name} link set eth0 up",
        f"ip -n {name} link add eth1 type veth peer name eth9",
    ]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True)
        yield ("nsenter", f"--net=/run/netns/{name}")
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


def test_another_host_joins_with_one_command_and_leaves(cloud: Cloud, other_host: tuple[str, ...]) -> None:
    layout = Layout(root=cloud.host)
    endpoints = Endpoints(api=f"127.0.0.1:{free_port('127.0.0.1', 7980)}", link="10.97.0.1:7790")
    start_keeper(layout)
    start_manager(layout, endpoints)
    context = admin_context(layout, "other", endpoints)
    cloud.env |= {"SCLOUD_URL": context.url, "SCLOUD_TOKEN": context.token}
    command = json.loads(cloud.run("node", "add", "h2", "-o", "json"))["join"]["command"].split()
    underlay = ("--underlay-device", "eth1", "--underlay-address", "172.30.0.2/24")
    there = str(cloud.folder / "there")

    def devices() -> set[str]:
        return {link["ifname"] for link in json.loads(subprocess.check_output([*other_host, "ip", "-json", "link"]))}

    before = devices()
    cloud.run(*command[1:], *underlay, enter=other_host, SCLOUD_ROOT=there)
    with Client(context) as client:
        node = wait_nodes(client, layout, ["h2"])[0]
    assert node["status"]["tunnel_ip"] == "172.30.0.2"
    assert {"br-int", "br-phy"} <= devices()
    assert "has one" in cloud.run(*command[1:], *underlay, enter=other_host, SCLOUD_ROOT=there)
    cloud.run("down", "--purge", enter=other_host, SCLOUD_ROOT=there)
    assert devices() == before and left_of(Path(there)) == [] and not Path(there).exists()
