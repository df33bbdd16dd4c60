"""A lab and its guests, used as a person uses them: through `./scloud` and SSH."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from scloud.client.contexts import Context
from scloud.client.http import Client
from scloud.drivers.supervisor.identity import Identity
from scloud.model.errors import CloudError
from scloud.node.layout import Layout

REPOSITORY = Path(__file__).resolve().parents[2]
BOOT_S = 180.0
Json = Any
T = TypeVar("T")


class Refused(AssertionError):
    """A command that was to succeed did not."""


class Done:
    """A command that has ended."""

    def __init__(self, argv: tuple[str, ...], process: subprocess.CompletedProcess[str]) -> None:
        self.argv = argv
        self.code = process.returncode
        self.out = process.stdout
        self.err = process.stderr

    def problem(self) -> dict[str, Any]:
        """What `-o json` says on stderr when it fails."""
        found: dict[str, Any] = json.loads(self.err[self.err.index("{") :])
        return found

    def __repr__(self) -> str:
        return f"{' '.join(self.argv)} -> {self.code}\n{self.out}{self.err}"


class Late(AssertionError):
    """What was waited for did not come in time."""


def until(check: Callable[[], T], what: str, seconds: float = 60.0, every: float = 0.1) -> T:
    """The first true value of `check`. `Late`, naming `what` and the last value, if there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise Late(f"not within {seconds:g} s: {what}; last: {value!r}")
        time.sleep(every)


class Lab:
    """A lab in a folder of its own; `root` and the command line's configuration are below it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "lab"
        self.env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("SCLOUD_")},
            "SCLOUD_CONFIG": str(folder / "config"),
            "SCLOUD_LAB_ROOT": str(self.root),
        }
        self.context: Context
        self.client: Client
        self.guests: list[Guest] = []

    def up(self, nodes: int, *options: str) -> None:
        """Start it; from here on commands go to it, as its administrator."""
        self.ok("lab", "up", "--nodes", str(nodes), *options, timeout=600.0)
        status = self.status()
        self.env["SCLOUD_CONTEXT"] = status["context"]
        others = tuple(
            json.loads((self.folder / "config" / "contexts.json").read_text())["contexts"][status["context"]].get(
                "others", ()
            )
        )
        token = Path(status["token_file"]).read_text().strip()
        self.context = Context(status["context"], status["url"], token, others=others)

    # --- the command line

    def scloud(
        self, *argv: str, stdin: str | None = None, timeout: float = 300.0, env: Mapping[str, str] | None = None
    ) -> Done:
        """Run a command to its end, however it ends."""
        process = subprocess.run(
            [str(REPOSITORY / "scloud"), *argv],
            env={**self.env, **(env or {})},
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        return Done(argv, process)

    def ok(self, *argv: str, stdin: str | None = None, timeout: float = 300.0) -> str:
        """What a command that succeeds prints."""
        done = self.scloud(*argv, stdin=stdin, timeout=timeout)
        if done.code != 0:
            raise Refused(repr(done))
        return done.out

    def json(self, *argv: str, stdin: str | None = None, timeout: float = 300.0) -> Json:
        """The same, as JSON."""
        return json.loads(self.ok(*argv, "-o", "json", stdin=stdin, timeout=timeout))

    def refused(self, *argv: str) -> dict[str, Any]:
        """The problem that a command ends with."""
        done = self.scloud(*argv, "-o", "json")
        assert done.code != 0, done
        return done.problem()

    def begin(self, *argv: str) -> subprocess.Popen[str]:
        """Start a command and let it run."""
        return subprocess.Popen(
            [str(REPOSITORY / "scloud"), *argv],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    # --- the API, for what is looked at again and again

    def show(self, kind: str, ref: str) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(f"/{kind}/{ref}")
        return found

    def has(self, kind: str, name: str) -> bool:
        return any(self.items(f"/{kind}", name=name))

    def vm(self, ref: str) -> dict[str, Any]:
        return self.show("vms", ref)

    def items(self, path: str, **params: object) -> list[dict[str, Any]]:
        return list(self.client.pages(path, params))

    def wait_state(self, vm: str, *states: str, seconds: float = 90.0) -> dict[str, Any]:
        """The VM, once it is in one of these states."""

        def look() -> dict[str, Any] | None:
            found = self.vm(vm)
            return found if found["status"]["state"] in states else None

        return until(look, f"{vm} {' or '.join(states)}", seconds) or {}

    def open_operations(self) -> list[dict[str, Any]]:
        return [op for state in ("queued", "running") for op in self.items("/operations", state=state)]

    def own_client(self) -> Client:
        """A client of one's own: one is not for several threads."""
        return Client(self.context)

    # --- the machine

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json("lab", "status")
        return found

    def pids(self, role: str, node: str | None = None) -> list[int]:
        return [p["pid"] for p in self.status()["processes"] if p["role"] == role and node in (None, p["node"])]

    def unit_pid(self, unit: str) -> int | None:
        """The pid of `manager` or `agent-NODE` if it runs: quicker than looking through all processes."""
        return Layout(root=self.root).pid_of(unit)

    def guests_running(self) -> dict[str, list[str]]:
        """VM ids of all QEMU processes there are, with their nodes."""
        found: dict[str, list[str]] = {}
        for process in self.status()["processes"]:
            if process["role"] == "qemu":
                found.setdefault(process["guest"], []).append(process["node"])
        return found

    def qemu(self, vm: str) -> int:
        """The pid of a VM's QEMU."""
        id = self.vm(vm)["id"]
        pids = [p["pid"] for p in self.status()["processes"] if p["guest"] == id]
        assert len(pids) == 1, f"{vm} runs {len(pids)} times"
        return int(pids[0])

    def on(self, node: str, *command: str, timeout: float = 60.0) -> str:
        """What a command inside a node prints."""
        return self.ok("lab", "exec", node, "--", *command, timeout=timeout)

    def node_root(self, node: str) -> Path:
        return self.root / "nodes" / node

    def tap(self, nic_id: str) -> tuple[str, str]:
        """(node, device) of a nic's tap."""
        nic = self.show("nics", nic_id)
        node = str(nic["status"]["node"])
        listed = json.loads(self.on(node, "ovs-vsctl", "-f", "json", "--columns=name,external_ids", "list", "Port"))
        for name, ids in listed["data"]:
            if any(value == f"port/{nic['id']}" for _, value in ids[1]):
                return node, str(name)
        raise AssertionError(f"no tap of {nic['id']} on {node}: {listed}")

    # --- faults

    def kill(self, pid: int) -> None:
        """SIGKILL for one process; returns when it is gone."""
        known = Identity.of(pid)
        assert known is not None, f"{pid} does not run"
        os.kill(pid, signal.SIGKILL)
        until(lambda: not known.alive(), f"{pid} gone", 10.0, 0.02)

    def wait_manager(self, seconds: float = 60.0) -> None:
        """Until the manager answers and every node of the lab is connected."""

        def ready() -> bool:
            try:
                nodes = self.items("/nodes")
            except CloudError:
                return False
            return bool(nodes) and all(node["status"]["state"] == "ready" for node in nodes)

        until(ready, "the manager answers and all nodes are ready", seconds)

    def converged(self, seconds: float = 120.0) -> float:
        """Wait until nothing is on its way and what runs is what should run, once each; seconds that it took.

        All operations have ended, every VM that is to run has one QEMU on its node and there is no other, no address
        and no MAC is used twice, and the audit is clean.
        """
        began = time.monotonic()
        self.wait_manager(seconds)
        until(lambda: not self.open_operations(), "all operations have ended", seconds)
        until(lambda: self.audit()["clean"], "a clean audit", seconds, 0.5)

        def astray() -> dict[str, str]:
            vms = {vm["id"]: vm["status"] for vm in self.items("/vms", all_accounts=True)}
            should = {id: [status["node"]] for id, status in vms.items() if status["state"] == "running"}
            runs = self.guests_running()
            found = {id for id in should.keys() | runs.keys() if runs.get(id) != should.get(id)}
            found |= {id for id, one in vms.items() if one["state"] not in ("running", "stopped", "error")}
            known = {id: f"is {one['state']} on {one['node']}: {one['reason']}" for id, one in vms.items()}
            return {id: f"{known.get(id, 'is nobody')}; runs on {runs.get(id)}" for id in found}

        try:
            until(lambda: not astray(), "what is running runs once, on its node, and nothing else", seconds, 0.5)
        except AssertionError as error:
            raise AssertionError(f"{error}: {astray()}") from error
        nics = self.items("/nics", all_accounts=True)
        for what in (
            Counter((nic["spec"]["vpc"], nic["spec"]["ip"]) for nic in nics),
            Counter(nic["spec"]["mac"] for nic in nics),
        ):
            assert all(count == 1 for count in what.values()), f"used twice: {what.most_common(1)}"
        return time.monotonic() - began

    def audit(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scloud("audit", "-o", "json").out or '{"clean": false}')
        return found

    # --- guests

    def create(self, name: str, *options: str, boot: bool = True) -> Guest:
        """A small VM, by the command line."""
        self.ok("vm", "create", name, "--memory", "128M", *options)
        guest = Guest(self, name)
        if boot:
            guest.wait_boot()
        return guest

    def create_all(self, **options: str) -> dict[str, Guest]:
        """Several at once: name=options. Returned when all have booted."""
        with ThreadPoolExecutor(8) as pool:
            made = {
                name: pool.submit(self.create, name.replace("_", "-"), *text.split()) for name, text in options.items()
            }
            return {name: future.result() for name, future in made.items()}


class Guest:
    """A VM that one logs in to, over one SSH connection that is made anew when it is lost."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab = lab
        self.name = name
        self._master: subprocess.Popen[bytes] | None = None
        lab.guests.append(self)

    @property
    def resource(self) -> dict[str, Any]:
        return self.lab.vm(self.name)

    @property
    def id(self) -> str:
        return str(self.resource["id"])

    @property
    def node(self) -> str:
        return str(self.resource["status"]["node"])

    @property
    def ip(self) -> str:
        return str(self.resource["status"]["addresses"][0])

    @property
    def nic(self) -> dict[str, Any]:
        return min(self.lab.items("/nics", vm=self.id), key=lambda nic: str(nic["id"]))

    @property
    def _socket(self) -> Path:
        return self.lab.folder / f"s-{self.name}"

    def _connect(self, boot: float) -> None:
        if self._master is not None and self._master.poll() is None and self._socket.exists():
            return
        self.forget()
        proxy = f"{REPOSITORY}/scloud vm port-forward {self.id} 22 --stdio --boot-time {boot:g}"
        options = (
            *(f"ProxyCommand={proxy}", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"),
            *("IdentitiesOnly=yes", "ServerAliveInterval=5", "ServerAliveCountMax=3"),
        )
        self._master = subprocess.Popen(
            [
                *("ssh", "-M", "-N", "-S", str(self._socket), "-l", "root"),
                *("-i", str(self.lab.folder / "config" / "keys" / "default")),
                *(word for option in options for word in ("-o", option)),
                self.name,
            ],
            env=self.lab.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        master = self._master

        def connected() -> bool:
            if master.poll() is not None:
                assert master.stderr is not None
                raise Refused(f"ssh to {self.name}: {master.stderr.read().decode(errors='replace')}")
            return self._socket.exists()

        until(connected, f"{self.name} lets us log in", boot + 20.0, 0.05)

    def forget(self) -> None:
        """Give up the connection: the guest reboots or is gone."""
        if self._master is not None:
            with contextlib.suppress(ProcessLookupError):
                self._master.terminate()
            self._master.communicate()
            self._master = None
        self._socket.unlink(missing_ok=True)

    def call(self, command: str, timeout: float = 60.0, boot: float = BOOT_S) -> Done:
        """Run a shell command to its end, however it ends. What it leaves running must not hold its output."""
        for last in (False, True):
            self._connect(boot)
            argv = ("ssh", "-S", str(self._socket), "-o", "BatchMode=yes", self.name, "--", command)
            process = subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
            )
            if process.returncode != 255 or last:
                break
            self.forget()
        return Done(argv, process)

    @contextlib.contextmanager
    def reading(self, command: str) -> Iterator[subprocess.Popen[str]]:
        """A command whose output is read as it comes."""
        self._connect(BOOT_S)
        process = subprocess.Popen(
            ("ssh", "-S", str(self._socket), "-o", "BatchMode=yes", self.name, "--", command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def run(self, command: str, timeout: float = 60.0, boot: float = BOOT_S) -> str:
        """What a command that succeeds prints."""
        done = self.call(command, timeout, boot)
        if done.code != 0:
            raise Refused(f"{self.name}: {done!r}")
        return done.out.strip()

    def succeeds(self, command: str, timeout: float = 60.0) -> bool:
        return self.call(command, timeout).code == 0

    def wait_boot(self, seconds: float = BOOT_S) -> None:
        """Until cloud-init has done its work, so that what follows does not share the processor with it."""
        self.run("until [ -e /run/cloud/done ] && [ ! -e /run/cloud/lock ]; do usleep 50000; done", seconds, seconds)

    def boot_id(self) -> str:
        return self.run("cat /proc/sys/kernel/random/boot_id")

    def wait_reboot(self, before: str) -> None:
        self.forget()

        def another() -> bool:
            try:
                return self.boot_id() != before
            except (Refused, subprocess.TimeoutExpired):
                self.forget()
                return False

        until(another, f"{self.name} has booted anew", BOOT_S)
        self.wait_boot()

    def device_of(self, disk: str) -> str:
        """The guest's name for a disk, once it has it: the disk's serial number is the end of its id."""
        id = str(self.lab.show("disks", disk)["id"])
        script = 'for d in /sys/block/vd*; do echo "${d##*/} $(cat $d/serial)"; done'

        def look() -> str:
            for line in self.run(script).splitlines():
                name, _, serial = line.partition(" ")
                if serial and id.endswith(serial):
                    return name
            return ""

        return until(look, f"{self.name} sees {disk}", 20.0)

    def background(self, command: str) -> None:
        self.run(f"setsid sh -c {_quoted(command)} < /dev/null > /dev/null 2>&1 &")

    # --- its network

    def pings(self, address: str, count: int = 3) -> bool:
        """Whether an answer comes."""
        return self.succeeds(f"ping -c {count} -i 0.3 -W 1 {address} | grep -q 'bytes from'")

    def serve(self, port: int, text: str) -> None:
        """A web server whose page is `text`."""
        self.run(
            f"mkdir -p /tmp/www{port}; echo '{text}' > /tmp/www{port}/index.html; httpd -p {port} -h /tmp/www{port}"
        )

    def fetch(self, url: str, *headers: str) -> Done:
        options = " ".join(f"--header '{header}'" for header in headers)
        return self.call(f"timeout 4 wget -q -O - {options} {url}")

    def reaches(self, address: str, port: int) -> bool:
        """Whether a TCP connection gets through."""
        return self.succeeds(f"timeout 3 nc -w 2 {address} {port} < /dev/null > /dev/null")

    def reaches_udp(self, address: str) -> bool:
        """Whether a UDP packet arrives: the receiver's kernel says that nobody listens."""
        out = self.run(f"traceroute -n -q 2 -m 1 -w 1 {address} 2>&1 | tail -n 1")
        return "ms" in out


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


@contextlib.contextmanager
def captured(lab: Lab, node: str, device: str, expression: str) -> Iterator[list[str]]:
    """Packets that a device in a node sees meanwhile, one line of tcpdump each; the list is filled at the end."""
    process = subprocess.Popen(
        [
            *(str(REPOSITORY / "scloud"), "lab", "exec", node, "--"),
            *("tcpdump", "-i", device, "-n", "-e", "-l", "-U", "--immediate-mode", expression),
        ],
        env=lab.env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    lines: list[str] = []
    assert process.stderr is not None
    try:
        said = process.stderr.readline()
        while "listening on" not in said:
            assert said, f"tcpdump on {device} of {node} has ended"
            said = process.stderr.readline()
        yield lines
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        out, _ = process.communicate(timeout=10)
        lines += [line for line in out.splitlines() if line]


def concurrently(calls: Iterable[Callable[[], T]]) -> list[T]:
    """Their results, in order."""
    with ThreadPoolExecutor(16) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]
