"""How many copies of each VM there are, looked at throughout: QEMU processes, and RBD watchers of its disks.

QEMU processes are those of the whole machine; watchers are asked for by a program inside a node that the fault spares.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.cloud import REPOSITORY, Lab, until
from lab_ceph.pace import Pace, incoming, vcpu_ticks
from scloud.lab.plan import need_plan
from scloud.node.processes import Process, scan

LOOK_EVERY_S = 0.25
BESIDE_S = 3.0
"""Both nodes of a migration have the disks open for so long before and after there are two processes."""
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

    def twice(self) -> list[tuple[float, str, list[str]]]:
        """Whatever was in two places at any time."""
        return [(at, id, nodes) for at, now in self.changes for id, nodes in now.items() if len(nodes) > 1]


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
        """Processes that let their guest run; of the two of a migration it is told by their virtual CPUs' time."""
        self._pairs: list[tuple[float, tuple[str, ...]]] = []
        """When a VM had processes on which nodes because it migrated."""
        self._paces: dict[tuple[int, ...], Pace] = {}
        self._opened: dict[tuple[str, str], list[float]] = {}
        """When there were processes that were started with a disk, by disk and node."""
        self.opens = {witness: Seen() for witness in witnesses}
        self._threads = [threading.Thread(target=self._processes)]
        self._threads += [threading.Thread(target=self._watchers, args=(witness,)) for witness in witnesses]

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

    def _processes(self) -> None:
        while not self._over.is_set():
            found: dict[str, list[Process]] = {}
            at = time.monotonic() - self._began
            for one in scan():
                if one.kind == "qemu" and one.mount_namespace in self._namespaces:
                    for disk in set(DISK.findall(" ".join(one.argv))):
                        self._opened.setdefault((disk, self._namespaces[one.mount_namespace]), []).append(at)
                    guest = next(part for part in one.argv if part.startswith("guest="))
                    found.setdefault(guest.removeprefix("guest=").partition(",")[0], []).append(one)
            self.running.note(at, {vm: self._run(at, processes) for vm, processes in found.items()})
            self._over.wait(LOOK_EVERY_S)

    def _run(self, at: float, processes: list[Process]) -> list[str]:
        """The nodes on which one VM runs; one node if it comes to another, and runs on only one of them."""
        nodes = sorted(self._namespaces[one.mount_namespace] for one in processes)
        if len(processes) != 2 or not any(incoming(one.argv) for one in processes):
            return nodes
        self._pairs.append((at, tuple(nodes)))
        one, other = sorted(one.pid for one in processes)
        pace = self._paces.setdefault((one, other), Pace())
        return nodes if pace.both(at, vcpu_ticks(one), vcpu_ticks(other)) else nodes[:1]

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
        seen.note(said["at"] - self._began, by_node)

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        try:
            until(lambda: self.open.looks and self.running.looks, "who has disks open can be seen", 30.0)
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

    def twice(self) -> list[tuple[float, str, list[str]]]:
        """Every VM that ran, and every disk that was open, in two places at any time.

        But for disks that the two nodes of a migration have open: there it is QEMU that lets go before the other takes;
        and for watches without a process that was started with the disk: those that processes leave behind which were
        killed, and those of an agent that breaks a dead guest's lock.
        """
        opened = [
            (at, disk, [node for node in nodes if self._has_process(at, disk, node)])
            for seen in self.opens.values()
            for at, disk, nodes in seen.twice()
        ]
        return [
            *self.running.twice(),
            *((at, disk, nodes) for at, disk, nodes in opened if len(nodes) > 1 and not self._migrating(at, nodes)),
        ]

    def _migrating(self, at: float, nodes: list[str]) -> bool:
        """Whether a VM was on its way between these nodes about then."""
        return any(abs(when - at) < BESIDE_S and between == tuple(nodes) for when, between in list(self._pairs))

    def _has_process(self, at: float, disk: str, node: str) -> bool:
        """Whether a process that was started with the disk was on this node about then."""
        return any(abs(at - when) < 2 * LOOK_EVERY_S for when in list(self._opened.get((disk, node), ())))

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
    assert not twice, f"(seconds, what, nodes): {twice}; {watch.open.changes}"
