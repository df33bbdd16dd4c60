"""How many copies of each VM there are, looked at throughout: QEMU processes, and RBD watchers of its disks.

QEMU processes are those of the whole machine; watchers are asked for by a program inside a node that the fault spares.
What a migration excuses is judged by what the cloud says of it (`judge`), and never two that let their guest run.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lab.cloud import REPOSITORY, Lab, until
from lab_ceph.judge import Judge, Several, Twice
from lab_ceph.on_the_way import Reading, word
from lab_ceph.pace import Pace, both_run, still, vcpu_ns
from scloud.lab.plan import need_plan
from scloud.model.errors import CloudError
from scloud.node.processes import Process, scan

LOOK_EVERY_S = 0.25
ASK_EVERY_S = 0.5
DISK = re.compile(r"\bdsk-[0-9a-z]{16}\b")
Copies = dict[str, list[str]]
"""The nodes that each VM, or disk, is on."""


@dataclass
class Seen:
    """What was seen when, in seconds since the beginning; only what differs from the look before is kept."""

    looks: int = 0
    failed: int = 0
    changes: list[tuple[float, Copies]] = field(default_factory=list)

    def note(self, at: float, copies: Copies) -> None:
        self.looks += 1
        if not self.changes or self.changes[-1][1] != copies:
            self.changes.append((round(at, 1), copies))

    def of(self, id: str) -> list[list[str]]:
        """The nodes that one was on, in order; several at a time would be one entry."""
        found: list[list[str]] = []
        for _, copies in self.changes:
            nodes = copies.get(id, [])
            if not found or found[-1] != nodes:
                found.append(nodes)
        return found


class Watch:
    """`running` are QEMU processes by VM id, `open` are nodes by disk id that may write to it, as one witness sees it.

    A witness that dies, or whose cluster does not answer, sees nothing; it is asked again when it can be.
    """

    def __init__(self, lab: Lab, pool: str, *witnesses: str) -> None:
        self._lab, self._pool = lab, pool
        self._plan = need_plan(lab.root)
        self._namespaces = {self._plan.sandbox(node).mount_namespace(): node for node in self._plan.nodes}
        self._addresses = {self._plan.management_address(node): node for node in self._plan.nodes}
        self._over = threading.Event()
        self._began = time.monotonic()
        self._programs: dict[str, subprocess.Popen[str]] = {}
        self.running = Seen()
        """All processes there are: of a VM that migrates, both."""
        self._judge = Judge()
        self._paces: dict[int, Pace] = {}
        self.opens = {witness: Seen() for witness in witnesses}
        self._broken: list[str] = []
        """What ended a thread before its time: nothing was seen since."""
        work = (self._processes, self._ask, *(partial(self._watchers, witness) for witness in witnesses))
        self._threads = [threading.Thread(target=self._to_the_end, args=(one,)) for one in work]

    @property
    def open(self) -> Seen:
        return next(iter(self.opens.values()))

    def _start(self, witness: str) -> subprocess.Popen[str]:
        (conf,) = (self._lab.node_root(witness) / "ceph").glob("*/ceph.conf")
        name = f"client.scloud-{witness}"
        program = (sys.executable, "-m", "lab_ceph.who_writes", str(conf), name, self._pool)
        return subprocess.Popen(
            [str(REPOSITORY / "scloud"), "lab", "exec", witness, "--", *program],
            env=self._lab.env | {"PYTHONPATH": str(Path(__file__).parents[1])},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def _to_the_end(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:
            self._broken.append(traceback.format_exc())

    def _processes(self) -> None:
        while not self._over.is_set():
            found: dict[str, list[Process]] = {}
            paces: dict[int, Pace] = {}
            at = time.monotonic() - self._began
            for one in scan():
                if one.kind == "qemu" and one.mount_namespace in self._namespaces:
                    guest = next(part for part in one.argv if part.startswith("guest="))
                    vm = guest.removeprefix("guest=").partition(",")[0]
                    disks = set(DISK.findall(" ".join(one.argv)))
                    self._judge.started_with(at, vm, self._namespaces[one.mount_namespace], disks)
                    found.setdefault(vm, []).append(one)
                    paces[one.pid] = self._paces.get(one.pid) or Pace()
                    paces[one.pid].note(at, vcpu_ns(one.pid))
            self._paces = paces
            for vm, processes in found.items():
                if len(processes) > 1:
                    self._judge.looked(self._look(at, vm, processes))
            self.running.note(at, {vm: self._nodes(processes) for vm, processes in found.items()})
            self._over.wait(LOOK_EVERY_S)

    def _nodes(self, processes: list[Process]) -> list[str]:
        return sorted(self._namespaces[one.mount_namespace] for one in processes)

    def _look(self, at: float, vm: str, processes: list[Process]) -> Several:
        paces = {one.pid: self._paces[one.pid] for one in processes}
        both = any(both_run(one, other) for one, other in itertools.combinations(paces.values(), 2))
        return Several(
            at, vm, self._nodes(processes), both,
            frozenset(self._namespaces[one.mount_namespace] for one in processes if still(paces[one.pid])),
        )  # fmt: skip

    def _ask(self) -> None:
        """What the cloud says of its VMs, until a moment after the end; a manager that is away says nothing."""
        with self._lab.own_client() as client:
            names: dict[str, str] = {}
            last = False
            while not last:
                last = self._over.wait(ASK_EVERY_S)
                asked = time.monotonic() - self._began
                with contextlib.suppress(CloudError):
                    names = names or {node["id"]: node["name"] for node in client.pages("/nodes")}
                    vms = {vm["id"]: word(vm, names) for vm in client.pages("/vms", {"all_accounts": True})}
                    self._judge.said(Reading(asked, time.monotonic() - self._began, vms))

    def _watchers(self, witness: str) -> None:
        while not self._over.is_set():
            self._programs[witness] = program = self._start(witness)
            assert program.stdout is not None
            for line in program.stdout:
                self._take(self.opens[witness], json.loads(line))
            program.wait()
            self._over.wait(1.0)

    def _take(self, seen: Seen, said: dict[str, Any]) -> None:
        if "failed" in said:
            seen.failed += 1
            return
        # A node's agent may have a disk open beside its QEMU; what counts is that only one node has.
        by_node = {
            disk: sorted({self._addresses.get(address.partition(":")[0], address) for address in addresses})
            for disk, addresses in said["open"].items()
        }
        at = said["at"] - self._began
        seen.note(at, by_node)
        for disk, nodes in by_node.items():
            self._judge.opened(at, disk, nodes)

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        try:
            until(
                lambda: self.open.looks and self.running.looks and self._judge.readings,
                "who has disks open can be seen",
                30.0,
            )
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop()

    def _stop(self) -> None:
        self._over.set()
        for program in self._programs.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
        for thread in self._threads:
            thread.join()
        self._judge.close()

    def twice(self) -> list[Twice]:
        """Whatever was in two places, as `Judge.twice`. AssertionError if not all was looked at."""
        assert not self._broken, self._broken
        return self._judge.twice()

    def words(self, vm: str, disk: str) -> str:
        """What was seen of one VM, for the figures."""

        def chain(seen: list[list[str]]) -> str:
            return " > ".join("+".join(nodes) or "none" for nodes in seen)

        return (
            f"QEMU {chain(self.running.of(vm))} ({self.running.looks} looks); "
            f"RBD watchers {chain(self.open.of(disk))} ({self.open.looks} looks, {self.open.failed} unanswered)"
        )


@contextlib.contextmanager
def never_twice(lab: Lab, pool: str, witness: str) -> Iterator[Watch]:
    """At the end no VM and no disk was in two places at any time."""
    with Watch(lab, pool, witness) as watch:
        yield watch
    twice = watch.twice()
    assert not twice, f"(seconds, what, nodes): {twice}; {watch.open.changes}; {watch.running.changes}"
