"""Random faults in a lab with real engines, and a guest whose acknowledged writes must outlive them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable

from lab.cloud import Guest, Lab, Late, Refused
from lab_ceph import protected
from lab_ceph.writer import Writer
from scloud.client.http import Client
from scloud.model.errors import CloudError

NODES = ("n1", "n2", "n3")
Undo = Callable[[], None]


class Faults:
    """One at a time; sometimes a manager's death beside it. Told with the time, so that logs can be read beside it."""

    def __init__(self, lab: Lab, chance: random.Random, say: Callable[[str], None]) -> None:
        self._lab, self._chance, self._say = lab, chance, say
        self.counts: Counter[str] = Counter()

    def run(self, over: threading.Event) -> None:
        with self._lab.own_client() as client:
            self._run(over, client)

    def _run(self, over: threading.Event, client: Client) -> None:
        kinds: list[tuple[int, Callable[[], Undo]]] = [
            (4, self._node_killed),
            (2, self._node_hangs),
            (2, self._node_cut_off),
            (2, self._cut_off_from_manager),
            (2, self._cut_off_from_storage),
            (3, self._agent_killed),
            (2, self._agent_hangs),
            (2, self._engine_killed),
            (2, self._engine_hangs),
            (2, self._storage_daemon_killed),
            (1, self._storage_daemon_hangs),
            (2, self._guest_killed),
            (3, self._manager_killed),
            (1, self._manager_hangs),
        ]
        while not over.wait(self._chance.uniform(1.0, 6.0)):
            (fault,) = self._chance.choices([one for _, one in kinds], [weight for weight, _ in kinds])
            try:
                undo = fault()
            except (Refused, CloudError, ProcessLookupError) as error:
                self._say(f"{fault.__name__.strip('_')} could not be done: {str(error)[:200]}")
                continue
            self.counts[fault.__name__.strip("_")] += 1
            try:
                if self._chance.random() < 0.15:
                    self._manager_killed()
                over.wait(self._chance.choice([2.0, 8.0, 20.0]) * self._chance.uniform(0.5, 1.5))
            finally:
                undo()
            if self._chance.random() < 0.8:
                self._calm(over, client)

    def _calm(self, over: threading.Event, client: Client) -> None:
        """So that the next fault meets a whole cloud; not always."""
        deadline = time.monotonic() + 90.0
        while time.monotonic() < deadline and not over.is_set():
            with contextlib.suppress(CloudError):
                if all(node["status"]["state"] == "ready" for node in client.pages("/nodes")):
                    return
            over.wait(0.5)

    def _fail(self, node: str, *how: str) -> Undo:
        self._say(self._lab.ok("lab", "fail", node, *how).strip())
        return lambda: self._say(self._lab.ok("lab", "heal", node).strip())

    def _any(self) -> str:
        return self._chance.choice(NODES)

    def _node_killed(self) -> Undo:
        return self._fail(self._any(), "--how", "kill")

    def _node_hangs(self) -> Undo:
        return self._fail(self._any(), "--how", "hang")

    def _node_cut_off(self) -> Undo:
        return self._fail(self._any(), "--how", "partition")

    def _cut_off_from_manager(self) -> Undo:
        return self._fail(self._any(), "--how", "partition", "--from", "manager")

    def _cut_off_from_storage(self) -> Undo:
        return self._fail(self._any(), "--how", "partition", "--from", "storage")

    def _agent_killed(self) -> Undo:
        return self._fail(self._any(), "--how", "kill", "--only-agent")

    def _agent_hangs(self) -> Undo:
        return self._fail(self._any(), "--how", "hang", "--only-agent")

    def _manager_hangs(self) -> Undo:
        return self._fail("manager", "--how", "hang")

    def _manager_killed(self) -> Undo:
        """Its keeper starts it again."""
        pid = self._lab.unit_pid("manager")
        if pid is not None:
            self._signal(pid, signal.SIGKILL, "the manager is killed")
        return lambda: None

    def _engine(self) -> tuple[str, int]:
        role, node = self._chance.choice(["libvirtd", "ovs-vswitchd", "ovsdb-server", "dnsmasq"]), self._any()
        pids = self._lab.pids(role, node)
        if not pids:
            raise Refused(f"no {role} on {node}")
        return f"{role} of {node}", self._chance.choice(pids)

    def _engine_killed(self) -> Undo:
        what, pid = self._engine()
        self._signal(pid, signal.SIGKILL, f"{what} is killed")
        return lambda: None

    def _engine_hangs(self) -> Undo:
        what, pid = self._engine()
        self._signal(pid, signal.SIGSTOP, f"{what} hangs")
        return lambda: self._go_on(pid, what)

    def _storage_daemon(self) -> tuple[str, int]:
        found = [(p["daemon"], p["pid"]) for p in self._lab.status()["processes"] if p["daemon"]]
        if not found:
            raise Refused("no storage daemon runs")
        name, pid = self._chance.choice(found)
        return str(name), int(pid)

    def _storage_daemon_killed(self) -> Undo:
        name, pid = self._storage_daemon()
        self._signal(pid, signal.SIGKILL, f"{name} is killed")
        return lambda: None

    def _storage_daemon_hangs(self) -> Undo:
        name, pid = self._storage_daemon()
        self._signal(pid, signal.SIGSTOP, f"{name} hangs")
        return lambda: self._go_on(pid, name)

    def _guest_killed(self) -> Undo:
        pids = self._lab.pids("qemu")
        if not pids:
            raise Refused("no guest runs")
        self._signal(self._chance.choice(pids), signal.SIGKILL, "a guest's QEMU is killed")
        return lambda: None

    def _signal(self, pid: int, number: signal.Signals, what: str) -> None:
        os.kill(pid, number)
        self._say(what)

    def _go_on(self, pid: int, what: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        self._say(f"{what} goes on")


class Tended:
    """A guest that writes; whenever it has died, its disk is compared with what it had said, and it goes on.

    Now and then it is sent to another node.
    """

    MIGRATES = 0.08
    """How likely in each look, every two seconds or so."""

    def __init__(
        self, lab: Lab, guest: Guest, writer: Writer, chance: random.Random, say: Callable[[str], None]
    ) -> None:
        self._lab, self._guest, self._writer, self._chance, self._say = lab, guest, writer, chance, say
        self.sent = 0
        self._boot = guest.boot_id()
        self.acknowledged = writer.after + writer.mark()
        self.deaths = 0

    def look(self) -> None:
        """AssertionError if an acknowledged write is lost; Refused or Late if the guest cannot be asked now."""
        boot = self._guest.call("cat /proc/sys/kernel/random/boot_id", timeout=20.0, boot=20.0)
        if boot.code != 0:
            raise Refused(repr(boot))
        if boot.out.strip() != self._boot:
            self.deaths += 1
            self._guest.wait_boot()
            self._writer.device = self._guest.device_of(protected.DISK)
            last = self._writer.last(self.acknowledged)
            self._say(f"the writer had died; {self.acknowledged} was acknowledged, {last} is the last on its disk")
            self._writer.launch(last)
            self._boot = self._guest.boot_id()
            self._writer.go_on(5)
        self.acknowledged = self._writer.after + self._writer.mark()

    def _migrate(self, client: Client) -> None:
        """It is not waited for: faults meet it on its way."""
        try:
            client.post(f"/vms/{self._guest.id}/actions/migrate", {})
        except CloudError as error:
            self._say(f"the writer does not migrate: {error.message[:160]}")
        else:
            self.sent += 1
            self._say("the writer migrates")

    def run(self, over: threading.Event) -> None:
        with self._lab.own_client() as client:
            self._run(over, client)

    def _run(self, over: threading.Event, client: Client) -> None:
        while not over.wait(2.0):
            if self._chance.random() < self.MIGRATES:
                self._migrate(client)
            try:
                self.look()
            except (Refused, Late, OSError, TimeoutError, CloudError, subprocess.TimeoutExpired) as error:
                # It boots, or its connection stands and its storage does not answer.
                self._guest.forget()
                self._say(f"the writer cannot be asked: {str(error)[-120:]!r}")
