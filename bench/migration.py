"""Live migrations of one VM, one after the other, as seen from another VM on a third node.

    sudo .venv/bin/python bench/migration.py [--runs 10]

In a lab of three nodes with a real storage cluster. For each migration: seconds from the request until it is done;
libvirt's downtime (`virsh domjobinfo --completed` at the target: from the moment the guest was paused until all of it
had come); the longest time without an answer to a ping every 100 ms, and without a line of a TCP stream that writes one
every 10 ms; what is beyond libvirt's downtime is ours: to see that the source has been given up, to let the guest run,
and the flows. In turn with each, `virsh migrate` of the VM's twin between the same nodes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from migration_twin import Moved, Twin, cpu_seconds, milliseconds
from storage_lab import DISK_TYPE, REPO, StorageLab, finished, storage_lab

PORT = 9000
AFTERMATH_S = 2.0
"""How long both streams are watched after a migration."""
SIZE = {"image": "micro", "cpus": 1, "memory_mib": 128, "keypairs": ["default"], "nics": [{"subnet": "default"}]}
BETWEEN = ("n1", "n2")
AIM_MS = 200.0


STAMPED = "while read line; do read uptime rest < /proc/uptime; echo $uptime; done"


class Stream:
    """Lines of a command in a guest: when each came there (by the guest's clock, to 10 ms), and when here."""

    def __init__(self, lab: StorageLab, vm: str, command: str) -> None:
        self.command = command
        self.heard: list[tuple[float, float]] = []
        self._process = subprocess.Popen(
            [str(REPO / "scloud"), "vm", "ssh", vm, "--", f"{command} | {STAMPED}"],
            env=lab.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for stamp in self._process.stdout:
            self.heard.append((float(stamp), time.monotonic()))

    def gap(self, since: float, until: float) -> float:
        """The longest time without a line, seconds. SystemExit if there was none at all."""
        moments = [there for there, here in self.heard if since <= here <= until]
        if len(moments) < 2:
            raise SystemExit(f"nothing more is heard of {self.command!r}: the migration has broken it off")
        return max(after - before for before, after in itertools.pairwise(moments))

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._thread.join()


@contextlib.contextmanager
def stream(lab: StorageLab, vm: str, command: str) -> Iterator[Stream]:
    made = Stream(lab, vm, command)
    try:
        deadline = time.monotonic() + 60.0
        while len(made.heard) < 10:
            if time.monotonic() > deadline:
                raise SystemExit(f"nothing is heard of {command!r} in {vm}")
            time.sleep(0.05)
        yield made
    finally:
        made.end()


@dataclass(frozen=True)
class Run:
    """Seconds, and milliseconds."""

    took_s: float
    downtime_ms: float
    ping_ms: float
    tcp_ms: float


def migrate(lab: StorageLab, target: str, ping: Stream, tcp: Stream, domain: str) -> Run:
    with lab.client() as client:
        began = time.monotonic()
        finished(client, client.post("/vms/mover/actions/migrate", {"node": target}))
        took = time.monotonic() - began
    time.sleep(AFTERMATH_S)
    now = time.monotonic()
    said = lab.node(target, "virsh", "domjobinfo", domain, "--completed")
    return Run(
        took_s=took,
        downtime_ms=milliseconds("Total downtime", said),
        ping_ms=1000 * ping.gap(began, now),
        tcp_ms=1000 * tcp.gap(began, now),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    runs: int = parser.parse_args().runs
    with storage_lab() as lab:
        with lab.client() as client:
            for name, node in (("mover", BETWEEN[0]), ("watcher", "n3")):
                spec = {**SIZE, "disk_type": DISK_TYPE, **({"node": node} if name == "watcher" else {})}
                finished(client, client.post("/vms", {"name": name, "spec": spec}))
            vm = client.get("/vms/mover")
        address = vm["status"]["addresses"][0]
        serve = f"(while :; do (while echo x; do usleep 10000; done) | nc -l -p {PORT}; done) > /dev/null 2>&1 &"
        lab.scloud("vm", "ssh", "mover", "--", serve)
        found: list[tuple[Run, Moved]] = []
        here = vm["status"]["node"]
        domain = _domain(lab, vm["id"], here)
        twin = Twin(lab, domain, here, next(name for name in BETWEEN if name != here))
        twin.wait_booted(cpu_seconds(lab, here, domain))
        with (
            stream(lab, "watcher", f"ping -i 0.1 {address}") as ping,
            stream(lab, "watcher", f"tail -f /dev/null | nc {address} {PORT}") as tcp,
        ):
            print("                    took            downtime   longest gap")
            print("        ours   by hand      ours   by hand   pings      TCP")
            for number in range(runs):
                with lab.client() as client:
                    here = client.get("/vms/mover")["status"]["node"]
                target = next(name for name in BETWEEN if name != here)
                run = migrate(lab, target, ping, tcp, _domain(lab, vm["id"], here))
                hand = twin.migrate()
                found.append((run, hand))
                print(
                    f"{number + 1:4}  {run.took_s:4.2f} s    {hand.took_s:4.2f} s   {run.downtime_ms:4.0f} ms   "
                    f"{hand.downtime_ms:4.0f} ms   {run.ping_ms:4.0f} ms  {run.tcp_ms:4.0f} ms",
                    flush=True,
                )
    took = _median_ratio([(run.took_s, hand.took_s) for run, hand in found])
    downtime = _median_ratio([(run.downtime_ms, hand.downtime_ms) for run, hand in found])
    print(f"against `virsh migrate` of the twin (medians): time {took:.2f}, downtime {downtime:.2f}")
    for what, gaps in (("pings", [run.ping_ms for run, _ in found]), ("TCP", [run.tcp_ms for run, _ in found])):
        within = sum(gap <= run.downtime_ms + AIM_MS for gap, (run, _) in zip(gaps, found, strict=True))
        print(f"longest gap of {what} within libvirt's downtime + {AIM_MS:.0f} ms: {within} of {len(found)}")


def _domain(lab: StorageLab, vm: str, node: str) -> str:
    return next(name for name in lab.node(node, "virsh", "list", "--name").split() if vm in name)


def _median_ratio(pairs: list[tuple[float, float]]) -> float:
    return statistics.median(ours for ours, _ in pairs) / statistics.median(theirs for _, theirs in pairs)


if __name__ == "__main__":
    main()
