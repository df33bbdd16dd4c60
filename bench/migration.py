"""Live migrations of one VM, one after the other, as seen from another VM on a third node.

    sudo .venv/bin/python bench/migration.py [--runs 10]

In a lab of three nodes with a real storage cluster. For each migration: seconds from the request until it is done,
beside what libvirt says its own part took; libvirt's downtime (`virsh domjobinfo --completed` at the target: from the
moment the guest was paused until all of it had come); the longest time without an answer to a ping every 100 ms, and
without a line of a TCP stream that writes one every 50 ms; what is beyond libvirt's downtime is ours: to see that the
source is gone, to let the guest run, and the flows.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from storage_lab import DISK_TYPE, REPO, StorageLab, finished, storage_lab

PORT = 9000
AFTERMATH_S = 2.0
"""How long both streams are watched after a migration."""
SIZE = {"image": "micro", "cpus": 1, "memory_mib": 128, "keypairs": ["default"], "nics": [{"subnet": "default"}]}
BETWEEN = ("n1", "n2")
AIM_MS = 200.0


class Stream:
    """Lines of a command in a guest, with the moments at which they arrive here."""

    def __init__(self, lab: StorageLab, vm: str, command: str) -> None:
        self.command = command
        self.heard: list[float] = []
        self._process = subprocess.Popen(
            [str(REPO / "scloud"), "vm", "ssh", vm, "--", command],
            env=lab.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for _ in self._process.stdout:
            self.heard.append(time.monotonic())

    def gap(self, since: float, until: float) -> float:
        """The longest time without a line, seconds. SystemExit if there was none at all."""
        moments = [moment for moment in self.heard if since <= moment <= until]
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
    libvirt_s: float
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
        libvirt_s=_ms("Time elapsed", said) / 1000,
        downtime_ms=_ms("Total downtime", said),
        ping_ms=1000 * ping.gap(began, now),
        tcp_ms=1000 * tcp.gap(began, now),
    )


def _ms(what: str, said: str) -> float:
    found = re.search(rf"{what}:\s+([0-9.]+)\s+ms", said)
    if found is None:
        raise SystemExit(f"no {what!r} in: {said}")
    return float(found[1])


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
        serve = f"(while :; do (while echo x; do usleep 50000; done) | nc -l -p {PORT}; done) > /dev/null 2>&1 &"
        lab.scloud("vm", "ssh", "mover", "--", serve)
        found = []
        with (
            stream(lab, "watcher", f"ping -i 0.1 {address}") as ping,
            stream(lab, "watcher", f"tail -f /dev/null | nc {address} {PORT}") as tcp,
        ):
            print("        took   libvirt's   downtime   longest gap of pings   of TCP")
            for number in range(runs):
                with lab.client() as client:
                    here = client.get("/vms/mover")["status"]["node"]
                target = next(name for name in BETWEEN if name != here)
                names = lab.node(here, "virsh", "list", "--name").split()
                domain = next(name for name in names if vm["id"] in name)
                run = migrate(lab, target, ping, tcp, domain)
                found.append(run)
                print(
                    f"{number + 1:4}  {run.took_s:5.2f} s   {run.libvirt_s:6.2f} s   {run.downtime_ms:5.0f} ms   "
                    f"{run.ping_ms:17.0f} ms   {run.tcp_ms:4.0f} ms",
                    flush=True,
                )
    took = statistics.median(run.took_s / run.libvirt_s for run in found)
    within = sum(max(run.ping_ms, run.tcp_ms) <= run.downtime_ms + AIM_MS for run in found)
    print(f"time against libvirt's own part: ratio {took:.2f} (median)")
    print(f"both gaps within libvirt's downtime + {AIM_MS:.0f} ms: {within} of {len(found)}")


if __name__ == "__main__":
    main()
