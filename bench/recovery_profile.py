"""What recovery profiles do: how fast a device's data move away, and what clients have meanwhile.

    sudo .venv/bin/python bench/recovery_profile.py [--runs 2] [--fill-mib 1024]

A lab of three nodes with a storage cluster of six OSDs and a pool of three copies. A client with librbd and the options
that nodes give to QEMU writes 4 KiB and flushes, again and again, to objects in turn. Then a device is replaced
(`scloud storage-cluster device replace`): its data move to the other one of its host, and back to the new one. Quiet:
writes a second before. Meanwhile: writes a second from the request until every placement group is active and clean, as
a share of quiet, and the slowest hundredth of them. The profiles in turn, so that all meet the same neighbours on the
machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from dataclasses import dataclass
from typing import Any

from osd_killed import BLOCK, Cluster, Lab, client_image, fill, until
from storage_lab import storage_lab

PROFILES = ("client", "balanced", "recovery")
QUIET_S = 8.0
OBJECT = 1 << 22
CLUSTER = "ceph"
LEAST_MIB = 1024


class Writes:
    """A client that writes for as long as the context lasts; `ended` has (when, seconds that it took) of each."""

    def __init__(self, image: Any, objects: int) -> None:
        self._image, self._objects = image, objects
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.ended: list[tuple[float, float]] = []

    def _write(self) -> None:
        number = 0
        while not self._stop.is_set():
            began = time.monotonic()
            self._image.write(os.urandom(BLOCK), number % self._objects * OBJECT)
            self._image.flush()
            self.ended.append((time.monotonic(), time.monotonic() - began))
            number += 7

    def __enter__(self) -> Writes:
        self._thread.start()
        until(lambda: len(self.ended) > 50, "the client writes")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def rate(self, since: float) -> float:
        """Writes a second from then until now."""
        return sum(at > since for at, _ in self.ended) / (time.monotonic() - since)

    def slowest(self, since: float) -> float:
        """The 99th percentile of them, in seconds."""
        return statistics.quantiles([took for at, took in self.ended if at > since], n=100)[98]


@dataclass(frozen=True)
class Row:
    quiet: float
    meanwhile: float
    slowest_ms: float
    seconds: float


def replaced(lab: Lab, cluster: Cluster, image: Any, objects: int, profile: str) -> Row:
    lab.scloud("storage-cluster", "set", CLUSTER, "--recovery-profile", profile)
    until(lambda: cluster.clean(0), "all clean")
    with Writes(image, objects) as client:
        began = time.monotonic()
        time.sleep(QUIET_S)
        quiet = client.rate(began)
        began = time.monotonic()
        lab.scloud("storage-cluster", "device", "replace", CLUSTER, "osd.0")
        epoch = int(cluster.mon("osd dump")["epoch"])
        until(lambda: cluster.clean(epoch), "all clean on the new device")
        return Row(quiet, client.rate(began), client.slowest(began) * 1000, time.monotonic() - began)


def measure(lab: Lab, runs: int, fill_mib: int) -> dict[str, list[Row]]:
    with client_image(lab, fill_mib << 20) as (cluster, _pool, image):
        fill(image, fill_mib << 20)
        objects = (fill_mib << 20) // OBJECT
        rows: dict[str, list[Row]] = {profile: [] for profile in PROFILES}
        for _ in range(runs):
            for profile in PROFILES:
                rows[profile].append(replaced(lab, cluster, image, objects, profile))
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--fill-mib", type=int, default=1024)
    options = parser.parse_args()
    if options.fill_mib < LEAST_MIB:
        parser.error(f"--fill-mib is at least {LEAST_MIB}: a placement group that nobody writes to says late how it is")
    with storage_lab() as made:
        rows = measure(Lab(made.root), options.runs, options.fill_mib)
    print(f"a device of six replaced, {options.fill_mib} MiB in three copies, {options.runs} runs each: medians")
    print(f"{'profile':10} {'whole again':>12} {'quiet':>10} {'meanwhile':>10} {'share':>6} {'slowest 1 %':>12}")
    for profile, of in rows.items():
        quiet, meanwhile = statistics.median(row.quiet for row in of), statistics.median(row.meanwhile for row in of)
        seconds, slowest = statistics.median(row.seconds for row in of), statistics.median(row.slowest_ms for row in of)
        print(f"{profile:10} {seconds:10.1f} s {quiet:8.0f}/s {meanwhile:8.0f}/s ", end="")
        print(f"{meanwhile / quiet:6.2f} {slowest:9.1f} ms")


if __name__ == "__main__":
    main()
