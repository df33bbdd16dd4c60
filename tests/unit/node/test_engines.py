"""Real engines in the namespaces of real nodes, and the same sandbox without any."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from scloud.agent.config import AgentConfig, save_config
from scloud.node import mounts, processes
from scloud.node.sandbox import Sandbox

pytestmark = pytest.mark.engine


@pytest.fixture
def root() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="scloud-node-"))
    yield folder
    sandboxes = [Sandbox(name=path.name, root=path, isolated=True) for path in folder.glob("nodes/*")]
    namespaces = {ns for sandbox in sandboxes if (ns := sandbox.mount_namespace()) is not None}
    processes.signal_all(processes.of_cloud(folder, namespaces), signal.SIGKILL)
    for sandbox in sandboxes:
        sandbox.destroy()
    shutil.rmtree(folder)


def sandbox(root: Path, name: str, isolated: bool = True) -> Sandbox:
    return Sandbox(name=name, root=root / "nodes" / name, isolated=isolated)


def test_namespaces_outlive_their_processes_and_go_without_a_trace(root: Path) -> None:
    before = {target: Path(target).exists() for target in mounts.COVERED.values()}
    node = sandbox(root, "a")
    assert node.create() and not node.create()
    assert node.run("hostname").strip() == "a"
    assert "lo" in node.run("ip", "-br", "link")
    assert node.run("ls", "/sys/class/net").split() == ["lo"]
    node.run("sh", "-c", "echo seen > /etc/libvirt/mark; ip netns add inner")
    assert (node.root / "etc/libvirt/mark").read_text() == "seen\n"
    assert not Path("/etc/libvirt/mark").exists() and not Path("/run/netns/inner").exists()
    assert "inner" in node.run("ip", "netns")
    node.destroy()
    assert not node.exists() and node.mount_namespace() is None
    assert str(root) not in Path("/proc/self/mountinfo").read_text()
    if not mounts.REGISTRY.exists():
        assert {target: Path(target).exists() for target in mounts.COVERED.values()} == before


def test_a_node_of_a_real_host_shares_its_network(root: Path) -> None:
    node = sandbox(root, "host", isolated=False)
    node.create()
    ours = str(Path("/proc/self/ns/net").readlink())
    assert node.run("readlink", "/proc/self/ns/net").strip() == ours
    assert node.run("readlink", "/proc/self/ns/mnt").strip() != str(Path("/proc/self/ns/mnt").readlink())


def test_what_ran_before_a_boot_is_forgotten(root: Path) -> None:
    node = sandbox(root, "a")
    node.create()
    (node.root / "run/libvirt/stale").touch()
    (node.root / "etc/libvirt/kept").touch()
    node.destroy()
    node.create()
    assert (node.root / "run/libvirt/stale").exists(), "the same boot: still true"
    node.destroy()
    (node.root / "boot").write_text("another boot")
    node.create()
    assert not (node.root / "run/libvirt/stale").exists()
    assert (node.root / "etc/libvirt/kept").exists()


# Runs in the node, as the agent does.
AGENT = """
import asyncio, sys
from pathlib import Path
from scloud.agent.config import load_config
from scloud.agent.engines import Engines
from scloud.drivers.supervisor.process import ProcessSupervisor

async def main():
    config = load_config(Path(sys.argv[1]))
    engines = Engines(config, ProcessSupervisor(config.run, config.log), lambda e: print(e.engine, e.what, flush=True))
    await engines.start()
    print("all up", flush=True)
    await engines.run()

asyncio.run(main())
"""


class Agent:
    """A stand-in that does nothing but keep engines."""

    def __init__(self, node: Sandbox, process: asyncio.subprocess.Process) -> None:
        self.node = node
        self.process = process

    @classmethod
    async def start(cls, node: Sandbox) -> Agent:
        node.create()
        config = AgentConfig(node=node.name, root=node.root, manager="127.0.0.1:1", tunnel_ip="127.0.0.1")
        save_config(config, node.root / "agent.json")
        argv = node.enter([sys.executable, "-c", AGENT, str(node.root / "agent.json")])
        stamps = {"SCLOUD_ROOT": str(node.root.parents[1]), "SCLOUD_NODE": node.name, "SCLOUD_ROLE": "agent"}
        process = await asyncio.create_subprocess_exec(
            *argv, stdout=asyncio.subprocess.PIPE, env={**os.environ, **stamps}
        )
        return cls(node, process)

    async def says(self, line: str) -> list[str]:
        """Everything up to and with this line."""
        assert self.process.stdout is not None
        lines: list[str] = []
        async with asyncio.timeout(30):
            while not lines or lines[-1] != line:
                raw = await self.process.stdout.readline()
                assert raw, f"ended after {lines}"
                lines.append(raw.decode().strip())
        return lines

    def pid(self, engine: str) -> int:
        mine = processes.of_node(self.node.root.parents[1], self.node.name, self.node.mount_namespace())
        found = [process.pid for process in processes.scan() if mine(process) and process.kind == engine]
        assert len(found) == 1, f"{engine}: {found}"
        return found[0]


@pytest.fixture
async def agents(root: Path) -> AsyncIterator[list[Agent]]:
    made = [await Agent.start(sandbox(root, name)) for name in ("a", "b", "c")]
    yield made
    for agent in made:
        if agent.process.returncode is None:
            agent.process.kill()
        await agent.process.wait()


async def test_three_nodes_have_engines_of_their_own_that_are_kept_running(agents: list[Agent], root: Path) -> None:
    for agent in agents:
        assert await agent.says("all up") == [
            *("ovsdb-server started", "ovs-vswitchd started", "libvirtd started", "all up")
        ]
    first = agents[0]
    # Default paths, no arguments: the node's own switch and hypervisor answer.
    assert first.node.run("ovs-vsctl", "get", "open_vswitch", ".", "external_ids:system-id").strip() == "a"
    first.node.run("ovs-vsctl", "add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    # Not `virsh capabilities`, which has a cold libvirt ask every QEMU for seconds.
    uuids = {agent.node.run("grep", "host_uuid", "/etc/libvirt/libvirtd.conf") for agent in agents}
    assert len(uuids) == 3
    assert agents[1].node.run("ovs-vsctl", "list-br").strip() == ""

    for engine in ("ovs-vswitchd", "libvirtd", "ovsdb-server"):
        old = first.pid(engine)
        os.kill(old, signal.SIGKILL)
        await first.says(f"{engine} started")
        assert first.pid(engine) != old
    assert first.node.run("ovs-vsctl", "list-br").strip() == "br0"
    assert first.node.run("virsh", "-q", "uri").strip() == "qemu:///system"

    # An agent that dies takes nothing with it, and its successor takes over what runs.
    running = {engine: first.pid(engine) for engine in ("ovsdb-server", "ovs-vswitchd", "libvirtd")}
    first.process.kill()
    await first.process.wait()
    agents.append(await Agent.start(first.node))
    assert await agents[-1].says("all up") == ["all up"]
    assert running == {engine: first.pid(engine) for engine in running}


async def test_all_of_a_node_can_be_stopped_and_killed(agents: list[Agent], root: Path) -> None:
    for agent in agents:
        await agent.says("all up")
    victim, other = agents[0], agents[1]
    belongs = processes.of_node(root, "a", victim.node.mount_namespace())
    processes.signal_all(belongs, signal.SIGSTOP)
    states = {process.state for process in processes.scan() if belongs(process)}
    assert states == {"T"}
    processes.signal_all(belongs, signal.SIGCONT)
    assert victim.node.run("ovs-vsctl", "--timeout=10", "list-br").strip() == ""
    assert processes.signal_all(belongs, signal.SIGKILL) >= 4
    assert not [process for process in processes.scan() if belongs(process)]
    assert other.node.run("virsh", "-q", "list", "--all").strip() == ""
    assert victim.node.exists(), "the namespaces stay for the node's return"
