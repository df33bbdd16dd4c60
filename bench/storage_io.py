"""I/O of a VM's disk in a storage cluster's pool, beside plain librbd (`rbd bench`) on the same pool in the same run.

    apt-get install gcc          # for the guest's writer
    sudo .venv/bin/python bench/storage_io.py [--runs 5] [--depth 16]

In a lab of three nodes with a real cluster, in turn, at the same depth, on images of the same size that are written:

- `librbd`: `rbd bench` with a node's own key, which is what the cluster gives on this machine;
- `QEMU`: `qemu-img bench` on the same image: QEMU's block layer with the options that we set, and no guest;
- `guest`: a program in the guest reads or writes its disk past the page cache (bench/guest_io.c), so that everything is
  in it: the guest's kernel, virtio, QEMU's block layer with the options that we set, its librbd.

Guests are emulated here (TCG), on the processors that the OSDs need as well. So beside the rates is told what a request
costs, in milliseconds of processor time of the whole machine, and how much of that is the emulated processor: under KVM
that part is microseconds. What is lost between `librbd` and `QEMU` is lost everywhere, what is lost after that here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from storage_lab import DISK_TYPE, REPO, StorageLab, finished, storage_lab

NODE, VM, DISK, PLAIN = "n1", "writer", "measured", "plain"
DISK_MIB = 512
STRIDE = 7919
FLUSH = 100
"""Writes between two flushes of QEMU's: librbd holds none together before it has seen one."""
FEATURES = "layering,exclusive-lock,object-map,fast-diff,deep-flatten"


@dataclass(frozen=True)
class Load:
    title: str
    writing: bool
    spread: bool
    size: int
    requests: int
    depth: int = 16


@dataclass(frozen=True)
class Run:
    """Requests a second; milliseconds of processor time a request, of the machine and of the emulated processor."""

    rate: float
    machine: float
    emulated: float


LOADS = (
    Load("4M write, in order", True, False, 4 << 20, 96),
    Load("4M read, in order", False, False, 4 << 20, 192),
    Load("4K write, at random", True, True, 4096, 3000),
    Load("4K read, at random", False, True, 4096, 12000),
)


class Bench:
    def __init__(self, lab: StorageLab) -> None:
        self.lab = lab
        self.conf = lab.ceph_folder(NODE) / "ceph.conf"
        self.user, self.keyring = lab.user(NODE)

    def prepare(self) -> None:
        """A VM with a disk, the writer inside, and an image that nobody else uses."""
        with self.lab.client() as client:
            self.pool: str = client.get(f"/pools/{DISK_TYPE}")["spec"]["rados_name"]
            spec = {"image": "micro", "cpus": 1, "memory_mib": 512, "node": NODE, "nics": [{"subnet": "default"}]}
            finished(client, client.post("/vms", {"name": VM, "spec": {**spec, "keypairs": ["default"]}}))
            disk = {"size_mib": DISK_MIB, "type": DISK_TYPE}
            finished(client, client.post("/disks", {"name": DISK, "spec": disk}))
            finished(client, client.post(f"/disks/{DISK}/actions/attach", {"vm": VM}))
            self.disk = str(client.get(f"/disks/{DISK}")["id"])
            vm = str(client.get(f"/vms/{VM}")["id"])
        self.domain = next(name for name in self.lab.node(NODE, "virsh", "list", "--name").split() if vm in name)
        program = self.lab.root / "guest_io"
        source = str(REPO / "bench" / "guest_io.c")
        subprocess.run(["gcc", "-O2", "-static", "-o", str(program), source], check=True)
        put = [str(REPO / "scloud"), "vm", "ssh", VM, "--", "cat > /tmp/guest_io && chmod +x /tmp/guest_io"]
        with program.open("rb") as data:
            subprocess.run(put, env=self.lab.env, stdin=data, check=True, capture_output=True)
        found = self.inside(f"grep -l {self.disk[-20:]} /sys/block/vd*/serial")
        self.device = f"/dev/{Path(found.strip()).parent.name}"
        self.rbd("create", f"{self.pool}/{PLAIN}", "--size", f"{DISK_MIB}M", "--image-feature", FEATURES)
        self.processors = [int(one["thread-id"]) for one in json.loads(self.qmp("query-cpus-fast"))["return"]]
        for write in (self.guest, self.librbd):
            write(LOADS[0])

    def qmp(self, command: str, **arguments: object) -> str:
        text = json.dumps({"execute": command, "arguments": arguments})
        return self.lab.node(NODE, "virsh", "qemu-monitor-command", self.domain, text)

    def rbd(self, *words: str) -> str:
        access = ("-c", str(self.conf), "-n", self.user, "--keyring", str(self.keyring))
        return subprocess.run(["rbd", *access, *words], check=True, capture_output=True, text=True).stdout

    def inside(self, command: str) -> str:
        return self.lab.scloud("vm", "ssh", VM, "--", command)

    # --- requests a second

    def librbd(self, load: Load) -> float:
        said = self.rbd(
            *("bench", f"{self.pool}/{PLAIN}", "--io-type", "write" if load.writing else "read"),
            *("--io-size", str(load.size), "--io-threads", str(load.depth)),
            *("--io-total", str(load.size * load.requests), "--io-pattern", "rand" if load.spread else "seq"),
        )
        return _number(r"elapsed: .*ops/sec: ([0-9.]+)", said)

    def qemu(self, load: Load) -> float:
        """In steps that are prime to the number of blocks, so that all are visited in no order that a cache knows."""
        where = f"rbd:{self.pool}/{PLAIN}:id={self.user.removeprefix('client.')}"
        writing = ["-w", f"--flush-interval={FLUSH}"] if load.writing else []
        said = subprocess.run(
            ["qemu-img", "bench", "-f", "raw", "-t", "writeback", *writing,
             "-c", str(load.requests), "-d", str(load.depth), "-s", str(load.size),
             "-S", str(load.size * (STRIDE if load.spread else 1)),
             f"{where}:conf={self.conf}:keyring={self.keyring}"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        return load.requests / _number(r"completed in ([0-9.]+) seconds", said)

    def guest(self, load: Load) -> float:
        what = f"{'write' if load.writing else 'read'} {'rand' if load.spread else 'seq'}"
        span = DISK_MIB << 20
        said = self.inside(f"/tmp/guest_io {self.device} {what} {load.size} {load.depth} {load.requests} {span}")
        seconds, requests = said.split()
        return int(requests) / float(seconds)

    def measure(self, load: Load, runs: int) -> dict[str, list[Run]]:
        ways: dict[str, Callable[[Load], float]] = {"librbd": self.librbd, "QEMU": self.qemu, "guest": self.guest}
        found: dict[str, list[Run]] = {name: [] for name in ways}
        for _ in range(runs):
            for name, way in ways.items():
                machine, emulated = _busy_s(), sum(map(_thread_s, self.processors))
                rate = way(load)
                machine, emulated = _busy_s() - machine, sum(map(_thread_s, self.processors)) - emulated
                found[name].append(Run(rate, 1000 * machine / load.requests, 1000 * emulated / load.requests))
        return found


def _busy_s() -> float:
    """Processor time of the whole machine, seconds (proc(5): user, nice, system, idle, iowait, irq, softirq)."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _thread_s(thread: int) -> float:
    """A thread's own, seconds (proc(5): the 14th and 15th field)."""
    fields = Path(f"/proc/{thread}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _number(pattern: str, said: str) -> float:
    found = re.search(pattern, said)
    if found is None:
        raise SystemExit(f"no figure in: {said[-500:]}")
    return float(found[1])


def show(load: Load, found: dict[str, list[Run]]) -> None:
    print(f"{load.title}, depth {load.depth}")
    whole = statistics.median(run.rate for run in found["librbd"])
    for name, runs in found.items():
        rates = [run.rate for run in runs]
        middle = statistics.median(rates)
        machine, emulated = (
            statistics.median(values) for values in zip(*((r.machine, r.emulated) for r in runs), strict=True)
        )
        print(
            f"  {name:7} {middle:6.0f}/s ({min(rates):.0f} - {max(rates):.0f}) {middle * load.size / 2**20:7.1f} MiB/s "
            f"{middle / whole:5.2f}   {machine:6.2f} ms, emulated {emulated:.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--depth", type=int, default=16, help="requests under way at once, in all three ways")
    options = parser.parse_args()
    runs: int = options.runs
    with storage_lab() as lab:
        bench = Bench(lab)
        bench.prepare()
        print(
            f"requests a second, {runs} runs in turn: median (min - max), MiB/s, ratio to librbd; processor time of one"
        )
        for load in LOADS:
            load = replace(load, depth=options.depth, requests=load.requests * max(1, options.depth // load.depth))
            show(load, bench.measure(load, runs))


if __name__ == "__main__":
    main()
