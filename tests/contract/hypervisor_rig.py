"""A private libvirtd for tests: own mount and network namespaces, everything it writes under one scratch folder."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

_LIBVIRTD_CONF = """
listen_tls = 0
listen_tcp = 0
auth_unix_rw = "none"
unix_sock_group = "root"
host_uuid = "{uuid}"
"""
_QEMU_CONF = """
user = "root"
group = "root"
security_driver = "none"
stdio_handler = "file"
remember_owner = 0
namespaces = []
cgroup_controllers = []
"""
_HOLD = """
set -e
mount -t tmpfs run /run
mkdir /run/libvirt
for pair in run:/run/libvirt etc:/etc/libvirt lib:/var/lib/libvirt cache:/var/cache/libvirt log:/var/log/libvirt; do
    mount --bind "$1/${pair%%:*}" "${pair#*:}"
done
ip link set lo up
echo ready
exec sleep infinity
"""


def alive(pid: int) -> bool:
    """Whether a process runs (one that ended but was not waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_and_wait(pid: int, with_signal: int = signal.SIGKILL) -> None:
    os.kill(pid, with_signal)
    for _ in range(500):
        if not alive(pid):
            return
        time.sleep(0.01)
    raise AssertionError(f"process {pid} survives signal {with_signal}")


class Console:
    """A guest's serial console: what it prints, and a shell to type into."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._unread = b""
        self._count = 0

    @classmethod
    async def open(cls, path: Path) -> Console:
        return cls(*await asyncio.open_unix_connection(str(path)))

    async def expect(self, text: str, timeout_s: float = 60) -> str:
        """Everything up to the text."""
        try:
            async with asyncio.timeout(timeout_s):
                while text.encode() not in self._unread:
                    chunk = await self._reader.read(4096)
                    assert chunk, f"the console closed before {text!r}: {self._unread[-500:]!r}"
                    self._unread += chunk
        except TimeoutError:
            raise AssertionError(f"no {text!r} in {timeout_s} s; last: {self._unread[-2000:]!r}") from None
        before, _, self._unread = self._unread.partition(text.encode())
        return before.decode(errors="replace")

    async def run(self, command: str, timeout_s: float = 60) -> str:
        """A shell command's output; it must succeed."""
        self._count += 1
        # The typed line comes back as an echo: the marks are written so that it does not contain them.
        self._writer.write(f"echo BE''GIN{self._count}; {command}; echo E''ND{self._count}=$?=\n".encode())
        await self.expect(f"BEGIN{self._count}", timeout_s)
        output = await self.expect(f"END{self._count}=", timeout_s)
        status = await self.expect("=", timeout_s)
        assert status == "0", f"{command}: exit status {status}: {output}"
        return re.sub(r"\x1b\[[0-9]*[A-Za-z]", "", output).replace("\r", "").strip()

    async def until(self, command: str, wanted: str, timeout_s: float = 60) -> None:
        """Run it until it prints exactly this; the guest learns of new devices when it gets to it."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while (output := await self.run(command)) != wanted:
            assert loop.time() < end, f"{command} prints {output!r}, not {wanted!r}"
            await asyncio.sleep(0.2)

    async def type(self, line: str) -> None:
        self._writer.write(line.encode() + b"\n")
        await self._writer.drain()

    async def login(self, timeout_s: float = 90) -> None:
        await self.expect("login: root", timeout_s)
        await self.expect("# ", timeout_s)

    def close(self) -> None:
        self._writer.close()


class Rig:
    """`with Rig() as rig:`. `scratch` is a new folder with a short path, for the sake of UNIX sockets.

    Without a `network` of its own it shares the machine's, for guests whose disks are reached over loopback.
    """

    def __init__(self, network: bool = True) -> None:
        self._unshare = ["--mount", *(["--net"] if network else []), "--propagation", "private"]
        self.scratch = Path(tempfile.mkdtemp(prefix="hv-", dir="/tmp"))
        self._holder: subprocess.Popen[str] | None = None
        self._daemon: subprocess.Popen[bytes] | None = None
        self._helpers: list[subprocess.Popen[bytes]] = []

    @property
    def uri(self) -> str:
        return f"qemu:///system?socket={self.scratch}/run/libvirt-sock"

    @property
    def state_dir(self) -> Path:
        return self.scratch / "run/qemu"

    def __enter__(self) -> Rig:
        for name in ("run", "lib", "cache", "log"):
            (self.scratch / name).mkdir(parents=True)
        shutil.copytree("/etc/libvirt", self.scratch / "etc")
        shutil.rmtree(self.scratch / "etc/qemu/networks", ignore_errors=True)
        (self.scratch / "etc/libvirtd.conf").write_text(_LIBVIRTD_CONF.format(uuid=uuid.uuid4()))
        (self.scratch / "etc/qemu.conf").write_text(_QEMU_CONF)
        try:
            self._holder = subprocess.Popen(
                ["unshare", *self._unshare, "bash", "-c", _HOLD, "hold", self.scratch],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert self._holder.stdout is not None
            assert self._holder.stdout.readline() == "ready\n"
            self.start_daemon()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_guests()
        self.kill_daemon()
        for helper in self._helpers:
            helper.kill()
            helper.wait()
        if self._holder is not None:
            self._holder.kill()
            self._holder.communicate()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def kill_guests(self) -> None:
        for file in self.state_dir.glob("*.pid"):
            try:
                pid = int(file.read_text())
            except (ValueError, OSError):
                continue
            if alive(pid) and b"qemu" in Path(f"/proc/{pid}/cmdline").read_bytes():
                kill_and_wait(pid)

    def remove_domains(self) -> None:
        """Everything that a test may have left, through the daemon if it is there."""
        if self._daemon is None:
            self.start_daemon()
        virsh = ("virsh", "-c", "qemu:///system")
        for name in self.run(*virsh, "list", "--name").split():
            self.run(*virsh, "destroy", name)
        for name in self.run(*virsh, "list", "--all", "--name").split():
            self.run(*virsh, "undefine", name)

    def inside(self, *argv: str) -> list[str]:
        """A command as run in the rig's namespaces."""
        assert self._holder is not None
        return ["nsenter", "-t", str(self._holder.pid), "-m", "-n", *argv]

    def run(self, *argv: str) -> str:
        return subprocess.run(self.inside(*argv), check=True, capture_output=True, text=True).stdout

    def spawn(self, *argv: str) -> None:
        """A helper that runs in the rig's namespaces until the end."""
        with (self.scratch / "log/helpers.out").open("ab") as log:
            self._helpers.append(subprocess.Popen(self.inside(*argv), stdout=log, stderr=log))

    def start_daemon(self) -> None:
        with (self.scratch / "log/libvirtd.out").open("ab") as log:
            self._daemon = subprocess.Popen(self.inside("libvirtd"), stdout=log, stderr=log)
        path = str(self.scratch / "run/libvirt-sock")
        for _ in range(1000):
            with socket.socket(socket.AF_UNIX) as probe:
                try:
                    probe.connect(path)
                    return
                except OSError:
                    time.sleep(0.02)
            assert self._daemon.poll() is None, (self.scratch / "log/libvirtd.out").read_text()
        raise AssertionError("libvirtd did not open its socket in 20 s")

    def signal_daemon(self, number: int) -> None:
        assert self._daemon is not None
        self._daemon.send_signal(number)

    def kill_daemon(self) -> None:
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()
            self._daemon = None

    def make_tap(self, name: str) -> None:
        self.run("ip", "tuntap", "add", name, "mode", "tap")
        self.run("ip", "link", "set", name, "up")
