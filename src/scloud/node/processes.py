"""Which processes belong to a node or a cloud: by the mount namespace they are in, and by what is stamped on them.

Our own processes carry SCLOUD_ROOT, SCLOUD_ROLE and SCLOUD_NODE in their environment; engines inherit them. QEMU gets
a clean environment from libvirt, but stays in the node's mount namespace.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from scloud.drivers.supervisor.identity import start_time
from scloud.model.errors import CloudError, ErrorKind

CEPH = ("ceph-mon", "ceph-mgr", "ceph-osd")
_ENGINES = ("libvirtd", "ovsdb-server", "ovs-vswitchd", "dnsmasq", *CEPH)
_PASSES = 50


@dataclass(frozen=True, slots=True)
class Process:
    """`mount_namespace` is its inode; `state` is the letter of proc(5), `T` for a stopped process."""

    pid: int
    state: str
    command: str
    argv: tuple[str, ...]
    root: str
    role: str
    node: str
    mount_namespace: int

    @property
    def kind(self) -> str | None:
        """manager, agent, keeper or an engine's name; None for helpers that come and go."""
        if self.command in _ENGINES:
            return self.command
        if self.command.startswith("qemu-system") and any(part.startswith("guest=") for part in self.argv):
            return "qemu"
        if self.role == "database":
            return "postgres" if self.command == "postgres" and "-D" in self.argv else None
        module = f"scloud.{'node.keep' if self.role == 'keeper' else self.role}"
        return self.role if self.role and module in self.argv else None

    @property
    def daemon(self) -> str | None:
        """A storage daemon's name in its cluster, such as `osd.3`; None for one that only makes its files."""
        if self.command not in CEPH or "-i" not in self.argv[:-1] or "--mkfs" in self.argv:
            return None
        return f"{self.command.removeprefix('ceph-')}.{self.argv[self.argv.index('-i') + 1]}"


def scan() -> list[Process]:
    """Every process of the machine that is alive, but not ourselves."""
    found = (_look(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [process for process in found if process is not None and process.pid != os.getpid()]


def _look(pid: int) -> Process | None:
    folder = Path(f"/proc/{pid}")
    try:
        stat = (folder / "stat").read_text(errors="replace")
        argv = (folder / "cmdline").read_bytes()
        environ = (folder / "environ").read_bytes()
        namespace = (folder / "ns/mnt").stat().st_ino
    except OSError:
        return None
    if not argv:
        # A kernel thread or a zombie.
        return None
    # SCLOUD_ROOT alone is a person's setting, inherited by everything they run; only with a role is it our stamp.
    stamps = dict(item.partition(b"=")[::2] for item in environ.split(b"\0") if item.startswith(b"SCLOUD_"))
    return Process(
        pid=pid,
        state=stat[stat.rindex(")") + 2],
        command=stat[stat.index("(") + 1 : stat.rindex(")")],
        argv=tuple(os.fsdecode(part) for part in argv.rstrip(b"\0").split(b"\0")),
        root=os.fsdecode(stamps.get(b"SCLOUD_ROOT", b"")) if stamps.get(b"SCLOUD_ROLE") else "",
        role=os.fsdecode(stamps.get(b"SCLOUD_ROLE", b"")),
        node=os.fsdecode(stamps.get(b"SCLOUD_NODE", b"")),
        mount_namespace=namespace,
    )


def of_node(root: Path, node: str, mount_namespace: int | None) -> Callable[[Process], bool]:
    """The processes of one node of the cloud under `root`."""

    def belongs(process: Process) -> bool:
        stamped = process.root == str(root) and process.node == node
        return stamped or (mount_namespace is not None and process.mount_namespace == mount_namespace)

    return belongs


def of_cloud(root: Path, namespaces: Iterable[int]) -> Callable[[Process], bool]:
    """All processes of the cloud under `root`: stamped with it, or in one of its nodes' mount namespaces.

    A namespace whose pin is lost is known by the stamped processes in it; the caller passes what `namespaces_of` found.
    """
    inside = frozenset(namespaces)
    return lambda process: process.root == str(root) or process.mount_namespace in inside


def namespaces_of(root: Path, processes: Iterable[Process]) -> set[int]:
    """Mount namespaces, other than our own, that hold a stamped process or a mount of this cloud's folders."""
    own = Path("/proc/self/ns/mnt").stat().st_ino
    found: set[int] = set()
    checked = {own}
    for process in processes:
        namespace = process.mount_namespace
        if namespace in found or namespace == own:
            continue
        if process.root == str(root):
            found.add(namespace)
        elif namespace not in checked:
            checked.add(namespace)
            if _mounts_from(root, process.pid):
                found.add(namespace)
    return found


def _mounts_from(root: Path, pid: int) -> bool:
    """Whether /run/libvirt is covered there by a node's folder under `root`."""
    try:
        lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    except OSError:
        return False
    for line in lines:
        fields = line.split()
        if fields[4] == "/run/libvirt":
            source = Path(fields[3])
            # The source is given from the root of its file system, so `root` may only end alike.
            if source.parts[-2:] == ("run", "libvirt") and str(root / "nodes").endswith(str(source.parents[2])):
                return True
    return False


def signal_all(belongs: Callable[[Process], bool], number: signal.Signals) -> int:
    """Signal all of them, looking again until none is left that the signal is meant for; how many there were.

    SIGKILL returns when they are gone, SIGSTOP when all are stopped. CloudError(TIMED_OUT) names those that resist.
    """
    hit: set[tuple[int, int]] = set()
    left: list[Process] = []
    for _ in range(_PASSES):
        left = [process for process in scan() if belongs(process) and _concerns(process, number)]
        if not left:
            return len(hit)
        for process in left:
            start = start_time(process.pid)
            if start is not None:
                hit.add((process.pid, start))
                _send(process.pid, start, number)
    names = ", ".join(f"{process.command} ({process.pid}, {process.state})" for process in left)
    raise CloudError(ErrorKind.TIMED_OUT, f"{number.name} has no effect on {names}")


def _concerns(process: Process, number: signal.Signals) -> bool:
    stopped = process.state in "Tt"
    if number is signal.SIGSTOP:
        return not stopped
    if number is signal.SIGCONT:
        return stopped
    return True


def signal_one(process: Process, number: signal.Signals) -> None:
    """Signal exactly this process, if it still runs; a killed one is gone on return."""
    start = start_time(process.pid)
    now = _look(process.pid)
    if start is not None and now is not None and now.argv == process.argv:
        _send(process.pid, start, number)


def _send(pid: int, start: int, number: signal.Signals) -> None:
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if start_time(pid) == start:
            signal.pidfd_send_signal(fd, number)
            if number is signal.SIGKILL:
                wait_ended(fd, 2.0)
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)


def wait_ended(pidfd: int, timeout_s: float) -> bool:
    """Block until the process of a pidfd has ended; False if the time was over first."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))
