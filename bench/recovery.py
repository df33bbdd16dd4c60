"""How long a VM is away when its node loses power: from the kill until it answers TCP on its address again.

    sudo .venv/bin/python bench/recovery.py [--runs 2] [--profiles default fast]

A lab of three nodes with a storage cluster. `safe` has its disk in a pool. Two others, on two nodes, try to connect to
its port 22 five times a second; the one whose node lives is believed. Then every process of `safe`'s node is killed
(SIGKILL) and its wires are cut. The time counts from the beginning of that command. Guests are emulated (TCG), their
boot is in it. The node then returns, and all is whole again before the next run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import rados

from scloud.client.http import Client
from storage_lab import DISK_TYPE, REPO, StorageLab, finished, storage_lab

LIMIT_S = 300.0
AFTERMATH_S = 3.0
"""An answer from before may be told so much later; no node is called dead that soon."""
ASKERS = {"a1": "n1", "a2": "n2"}
SIZE = {"image": "micro", "cpus": 1, "memory_mib": 128, "keypairs": ["default"], "nics": [{"subnet": "default"}]}
AIMS = {"default": 90.0, "fast": 20.0}
STEPS = ("dead", "fenced", "running")


class Asker:
    """Tries to connect from a guest, again and again; `answered` are moments of success, on this machine's clock."""

    def __init__(self, lab: StorageLab, name: str, address: str) -> None:
        self.answered: list[float] = []
        loop = (
            f"while :; do timeout 1 nc -w 1 {address} 22 < /dev/null > /dev/null 2>&1 && echo yes; usleep 200000; done"
        )
        self._argv = [str(REPO / "scloud"), "vm", "ssh", name, "--", loop]
        self._env = lab.env
        self._over = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        """The login goes by way of its node's agent; where that is lost, it is made anew."""
        while not self._over.is_set():
            self._process = subprocess.Popen(
                self._argv, env=self._env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True, start_new_session=True,
            )  # fmt: skip
            assert self._process.stdout is not None
            for _ in self._process.stdout:
                self.answered.append(time.time())
            self._process.wait()

    def end(self) -> None:
        self._over.set()
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._thread.join()


@contextlib.contextmanager
def asking(lab: StorageLab, node: str, address: str) -> Iterator[Asker]:
    """From a guest of another node than this one."""
    asker = Asker(lab, next(name for name, home in ASKERS.items() if home != node), address)
    try:
        until(lambda: len(asker.answered) > 3, "the VM answers another one")
        yield asker
    finally:
        asker.end()


def until(check: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not check():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {LIMIT_S:g} s: {what}")
        time.sleep(0.05)


def whole(lab: StorageLab, client: Client) -> bool:
    """All nodes are let in, and every placement group is active and clean."""
    if client.get("/ha")["incidents"] or any(one["status"]["state"] != "ready" for one in client.pages("/nodes")):
        return False
    try:
        with lab.cluster("n1") as handle:
            code, out, _ = handle.mon_command(json.dumps({"prefix": "status", "format": "json"}), b"")
    except rados.PermissionDeniedError:
        return False  # n1 was the lost one, and has not got its new key yet
    said = json.loads(out) if code == 0 else {}
    return bool(said) and {one["state_name"] for one in said["pgmap"]["pgs_by_state"]} == {"active+clean"}


def run(lab: StorageLab, client: Client) -> dict[str, float]:
    """Seconds since the kill of each step, and of the first answer."""
    vm = client.get("/vms/safe")
    node = client.get(f"/nodes/{vm['status']['node']}")["name"]
    with asking(lab, node, vm["status"]["addresses"][0]) as asker:
        began = time.time()
        lab.scloud("lab", "fail", node, "--how", "kill")
        killed = time.time()
        until(lambda: any(at > killed + AFTERMATH_S for at in asker.answered), "the VM answers again")
        answered = next(at for at in asker.answered if at > killed + AFTERMATH_S)
    incident = next(iter(client.pages("/ha/incidents", {"node": node}, limit=1)))
    moments: dict[str, Any] = {one["what"]: one["at"] for one in incident["moments"]}
    lab.scloud("lab", "heal", node)
    until(lambda: whole(lab, client), "all is whole again")
    for name in ASKERS:
        lab.scloud("vm", "ssh", name, "--", "true")
    return {step: moments[step] - began for step in STEPS} | {"answers": answered - began}


def measure(runs: int, profiles: list[str]) -> dict[str, list[dict[str, float]]]:
    with storage_lab() as lab, lab.client() as client:
        for name, node in ASKERS.items():
            finished(client, client.post("/vms", {"name": name, "spec": SIZE | {"node": node}}))
        finished(client, client.post("/vms", {"name": "safe", "spec": SIZE | {"disk_type": DISK_TYPE}}))
        for name in (*ASKERS, "safe"):
            lab.scloud("vm", "ssh", name, "--", "true")
        rows: dict[str, list[dict[str, float]]] = {profile: [] for profile in profiles}
        for profile in profiles:
            lab.scloud("ha", "settings", "--profile", profile)
            for _ in range(runs):
                rows[profile].append(run(lab, client))
                print(profile, " ".join(f"{step} {at:.1f} s" for step, at in rows[profile][-1].items()), flush=True)
        print(lab.scloud("ha", "log", "--limit", "1"))
    return rows


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):5.1f} ({min(values):.1f} - {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--profiles", nargs="+", choices=list(AIMS), default=list(AIMS))
    options = parser.parse_args()
    rows = measure(options.runs, options.profiles)
    print(f"node killed, {options.runs} runs each: seconds since the kill, median (min - max)")
    steps = (*STEPS, "answers")
    print(f"{'profile':9}" + "".join(f"{step:22}" for step in steps) + "aim")
    for profile, found in rows.items():
        print(
            f"{profile:9}" + "".join(f"{spread([one[step] for one in found]):22}" for step in steps)
            + f"{AIMS[profile]:g}"
        )  # fmt: skip


if __name__ == "__main__":
    main()
