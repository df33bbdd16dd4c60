"""How long it takes until the other manager leads when the leading one is lost: two managers on a real PostgreSQL.

    sudo .venv/bin/python bench/takeover.py [--runs 5] [--faults kill hang database nodes]

Two manager processes and two nodes (real agents on fake drivers, over the real link). The leader is

    kill      killed (SIGKILL)
    hang      stopped where it is (SIGSTOP)
    database  cut off from PostgreSQL: bytes on the way are neither passed on nor is any connection ended
    nodes     cut off so from the nodes and, on the link, from the other manager, but not from PostgreSQL

and the time runs from then until the other one leads and has answered a read (`GET /vms`), then a write (`POST /vpcs`,
durable), and until it hears both nodes. The one that was lost comes back as a standby before the next run, in which the
other one is lost.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from scloud.standby.aside import SETTLE_S
from support.managers import ManagerProcess, Pair, until
from support.postgres import running

FAULTS = ("kill", "hang", "database", "nodes")
STEPS = ("read", "write", "nodes")
LIMIT_S = 60.0


class Bench:
    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._leader, self._standby = pair.one, pair.other
        self._led_since = time.monotonic()
        self._written = 0

    def lose(self, fault: str) -> None:
        leader = self._leader
        if fault == "kill":
            leader.signal(signal.SIGKILL)
        elif fault == "hang":
            leader.signal(signal.SIGSTOP)
        elif fault == "database":
            leader.to_database.cut()
        else:
            leader.from_nodes.cut()
            leader.from_manager.cut()

    def bring_back(self, fault: str) -> None:
        """The one that was lost is a standby when this returns."""
        lost = self._leader
        if fault == "hang":
            lost.signal(signal.SIGCONT)
        lost.end()
        for wire in (lost.to_database, lost.from_nodes, lost.from_manager):
            wire.mend()
        lost.start()
        until(lambda: lost.role() == "standby", "the lost one stands by", LIMIT_S)

    def write(self, via: ManagerProcess) -> bool:
        self._written += 1
        return self._pair.request("POST", "/vpcs", {"name": f"v{self._written}"}, via).is_success

    def run(self, fault: str) -> dict[str, float]:
        """Seconds since the fault of each step."""
        pair, standby = self._pair, self._standby
        if fault == "nodes":  # a leader that has just begun waits for its nodes
            until(lambda: time.monotonic() - self._led_since > SETTLE_S, "it has led for a while", LIMIT_S)
        began = time.monotonic()
        self.lose(fault)
        found = {}
        until(lambda: standby.role() == "leader" and pair.answers(standby), "the other answers a read", LIMIT_S)
        found["read"] = time.monotonic() - began
        self._led_since = time.monotonic()
        until(lambda: self.write(standby), "the other answers a write", LIMIT_S)
        found["write"] = time.monotonic() - began
        until(lambda: pair.get("/status", standby)["connected"] == 2, "it hears both nodes", LIMIT_S)
        found["nodes"] = time.monotonic() - began
        self.bring_back(fault)
        self._leader, self._standby = standby, self._leader
        return found


def measure(runs: int, faults: list[str]) -> dict[str, list[dict[str, float]]]:
    rows: dict[str, list[dict[str, float]]] = {fault: [] for fault in faults}
    with tempfile.TemporaryDirectory(prefix="takeover-") as folder, running() as server:
        pair = Pair(Path(folder), server.database())
        try:
            pair.start()
            bench = Bench(pair)
            for fault in faults:
                for _ in range(runs):
                    rows[fault].append(bench.run(fault))
                    print(fault, " ".join(f"{step} {at:.1f} s" for step, at in rows[fault][-1].items()), flush=True)
        finally:
            pair.stop()
    return rows


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):5.1f} ({min(values):.1f} - {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=list(FAULTS))
    options = parser.parse_args()
    rows = measure(options.runs, options.faults)
    print(
        f"leading manager lost, {options.runs} runs each: seconds until the other does this, median (min - max); aim 10"
    )
    print(f"{'fault':10}" + "".join(f"{step:22}" for step in STEPS))
    for fault, found in rows.items():
        print(f"{fault:10}" + "".join(f"{spread([one[step] for one in found]):22}" for step in STEPS))


if __name__ == "__main__":
    main()
