"""Stopping a node, and taking every trace of a cloud off this machine."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import orjson
from pydantic import ValidationError

from scloud.agent.config import load_config
from scloud.model.errors import CloudError
from scloud.node import mounts
from scloud.node.command import run, succeeds
from scloud.node.layout import Layout
from scloud.node.processes import Process, namespaces_of, of_cloud, of_node, scan, signal_all
from scloud.node.sandbox import Sandbox

GUEST_GRACE_S = 30.0
ENGINE_GRACE_S = 5.0
_VIRTUAL = frozenset({"tun", "veth", "openvswitch", "vxlan"})


def runs(layout: Layout, sandbox: Sandbox) -> bool:
    """Whether anything of the node runs."""
    belongs = of_node(layout.root, sandbox.name, sandbox.mount_namespace())
    return any(belongs(process) for process in scan())


def shut_guests(layout: Layout, sandbox: Sandbox, grace_s: float = GUEST_GRACE_S) -> tuple[int, int]:
    """Ask all guests to shut down over ACPI and wait; (how many there were, how many had to be left to be killed)."""
    belongs = of_node(layout.root, sandbox.name, sandbox.mount_namespace())
    guests = [process for process in scan() if belongs(process) and process.kind == "qemu"]
    if not guests:
        return 0, 0
    with contextlib.suppress(CloudError):
        for domain in sandbox.run("virsh", "-q", "list", "--name", timeout_s=10.0).split():
            succeeds(sandbox.enter(["virsh", "-q", "shutdown", domain, "--mode", "acpi"]), timeout_s=10.0)
    return len(guests), _wait_ended(guests, grace_s)


def _wait_ended(processes: Iterable[Process], timeout_s: float) -> int:
    """How many of them still run when the time is over."""
    deadline = time.monotonic() + timeout_s
    poll = select.poll()
    open_fds = set()
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(process.pid)
            open_fds.add(fd)
            poll.register(fd, select.POLLIN)
    try:
        waiting = set(open_fds)
        while waiting and (left := deadline - time.monotonic()) > 0:
            for fd, _ in poll.poll(left * 1000):
                poll.unregister(fd)
                waiting.discard(fd)
        return len(waiting)
    finally:
        for fd in open_fds:
            os.close(fd)


def stop_node(layout: Layout, sandbox: Sandbox) -> None:
    """End everything that runs in the node, first by SIGTERM; its namespaces go, its data stay."""
    belongs = of_node(layout.root, sandbox.name, sandbox.mount_namespace())
    _terminate(belongs)
    signal_all(belongs, signal.SIGKILL)
    if not sandbox.isolated:
        _remove_devices(sandbox)
    sandbox.destroy()


def _terminate(belongs: Callable[[Process], bool]) -> None:
    processes = [process for process in scan() if belongs(process)]
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)
            # A stopped process takes no signal until it is continued.
            os.kill(process.pid, signal.SIGCONT)
    _wait_ended(processes, ENGINE_GRACE_S)


def _remove_devices(sandbox: Sandbox) -> None:
    """Taps and bridges that a dead switch leaves in the host's network: the virtual ones named in its database."""
    names = switch_devices(sandbox.root / "etc/openvswitch/conf.db")
    if (underlay := _underlay(sandbox)) is not None:
        # The host's own device, lent to the switch, which had it answer no ARP.
        names.discard(underlay)
        succeeds(["ip", "link", "set", "dev", underlay, "arp", "on"])
    if sandbox.exists() and "ovs-system" in names | _datapaths(sandbox):
        succeeds(sandbox.enter(["ovs-dpctl", "del-dp", "ovs-system"]))
    if not any(process.command == "ovs-vswitchd" and _in_our_network(process) for process in scan()):
        # The userspace datapath's own tap is persistent, in no database, and common to all switches of a network.
        names.add("ovs-netdev")
    for link in orjson.loads(run(["ip", "-json", "-details", "link", "show"])):
        if link.get("ifname") in names and link.get("linkinfo", {}).get("info_kind") in _VIRTUAL:
            # It may have gone with another one meanwhile: the two ends of a veth do.
            succeeds(["ip", "link", "delete", link["ifname"]])


def _underlay(sandbox: Sandbox) -> str | None:
    try:
        config = load_config(sandbox.root / "agent.json")
    except (OSError, ValidationError):
        return None
    return config.underlay.device if config.underlay is not None else None


def _in_our_network(process: Process) -> bool:
    try:
        return Path(f"/proc/{process.pid}/ns/net").stat().st_ino == Path("/proc/self/ns/net").stat().st_ino
    except OSError:
        return False


def _datapaths(sandbox: Sandbox) -> set[str]:
    try:
        return {line.split("@")[-1] for line in sandbox.run("ovs-dpctl", "dump-dps").split()}
    except CloudError:
        return set()


def switch_devices(database: Path) -> set[str]:
    """Names of all interfaces in a switch's database, read without a server."""
    if not database.exists():
        return set()
    query = '["Open_vSwitch",{"op":"select","table":"Interface","where":[],"columns":["name"]}]'
    try:
        answer = orjson.loads(run(["ovsdb-tool", "query", str(database), query]))
    except CloudError:
        return set()
    return {row["name"] for row in answer[0].get("rows", [])}


def clear(layout: Layout, *, isolated: bool, keep_cache: bool) -> int:
    """Remove a cloud: kill its processes, wherever they are, undo mounts and namespaces, delete its folder.

    Works on whatever is left of one, in any state. How many processes there were.
    """
    sandboxes = layout.sandboxes(isolated=isolated)
    fabric = Sandbox(name="fabric", root=layout.root / "fabric", isolated=True)
    pinned = {ns for box in [*sandboxes, fabric] if (ns := box.mount_namespace()) is not None}
    inside = pinned | namespaces_of(layout.root, scan())
    killed = signal_all(of_cloud(layout.root, inside), signal.SIGKILL)
    for sandbox in sandboxes:
        if not isolated:
            _remove_devices(sandbox)
        sandbox.destroy()
    if fabric.root.exists():
        fabric.destroy()
    _unmount_below(layout.root)
    if layout.root.exists():
        for path in layout.root.iterdir():
            if keep_cache and path == layout.cache:
                continue
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if not any(layout.root.iterdir()):
            layout.root.rmdir()
    return killed


def _unmount_below(root: Path) -> None:
    """What an interrupted start or stop has left mounted."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        target = Path(mounts.unescape(line.split()[4]))
        if root in target.parents:
            succeeds(["umount", "--lazy", str(target)])
