"""I/O of a VM's disk in a storage cluster's pool, beside plain librbd (`rbd bench`) on the same pool in the same run.

    apt-get install gcc          # for the guest's writer
    sudo .venv/bin/python bench/storage_io.py [--runs 5]

In a lab of three nodes with a real cluster, in turn, at the same depth, on images of the same size that are written:

- `librbd`: `rbd bench` with a node's own key, which is what the cluster gives on this machine;
- `guest`: a program in the guest reads or writes its disk past the page cache (bench/guest_io.c), so that everything is
  in it: the guest's kernel, virtio, QEMU's block layer with the options that we set, its librbd;
- `QEMU`: the same node of the block layer of the same running QEMU, read from outside by way of an NBD export, with as
  many requests under way. A disk that a guest has open can only be read so.

Guests are emulated here (TCG), and what a request costs the guest's kernel is then some hundred microseconds: with
thousands of small reads a second that is what is measured, and `QEMU` says what is left without it.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from storage_lab import DISK_TYPE, REPO, StorageLab, finished, storage_lab

NODE, VM, DISK, PLAIN = "n1", "writer", "measured", "plain"
DISK_MIB = 512
FEATURES = "layering,exclusive-lock,object-map,fast-diff,deep-flatten"
STRIDE = 10007 * 4096
"""From one read to the next, of those that are to be all over the disk."""


@dataclass(frozen=True)
class Load:
    title: str
    writing: bool
    spread: bool
    size: int
    requests: int
    depth: int = 16


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
        self._export()
        for write in (self.guest, self.librbd):
            write(LOADS[0])

    def _export(self) -> None:
        self.socket = self.lab.root / "nbd.sock"
        blocks = json.loads(self.qmp("query-block"))["return"]
        node = next(item["inserted"]["node-name"] for item in blocks if self.disk in item.get("qdev", ""))
        self.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": str(self.socket)}})
        self.qmp("block-export-add", type="nbd", id=DISK, name=DISK, **{"node-name": node})

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

    def guest(self, load: Load) -> float:
        what = f"{'write' if load.writing else 'read'} {'rand' if load.spread else 'seq'}"
        span = DISK_MIB << 20
        said = self.inside(f"/tmp/guest_io {self.device} {what} {load.size} {load.depth} {load.requests} {span}")
        seconds, requests = said.split()
        return int(requests) / float(seconds)

    def qemu(self, load: Load) -> float:
        words = ("qemu-img", "bench", "-f", "raw", "-U", "-d", str(load.depth), "-c", str(load.requests))
        step = STRIDE if load.spread else load.size
        reach = ("-s", str(load.size), "-S", str(step), f"nbd+unix:///{DISK}?socket={self.socket}")
        said = subprocess.run([*words, *reach], check=True, capture_output=True, text=True).stdout
        return load.requests / _number(r"completed in ([0-9.]+) seconds", said)

    def measure(self, load: Load, runs: int) -> dict[str, list[float]]:
        ways: dict[str, Callable[[Load], float]] = {"librbd": self.librbd, "guest": self.guest}
        if not load.writing:
            ways["QEMU"] = self.qemu
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(runs):
            for name, way in ways.items():
                found[name].append(way(load))
        return found


def _number(pattern: str, said: str) -> float:
    found = re.search(pattern, said)
    if found is None:
        raise SystemExit(f"no figure in: {said[-500:]}")
    return float(found[1])


def show(load: Load, found: dict[str, list[float]]) -> None:
    print(f"{load.title}, depth {load.depth}")
    for name, values in found.items():
        ratio = statistics.median(values) / statistics.median(found["librbd"])
        low, middle, high = min(values), statistics.median(values), max(values)
        mib = middle * load.size / 2**20
        print(f"  {name:8} {middle:7.0f}/s  ({low:.0f} - {high:.0f})  {mib:6.1f} MiB/s   {ratio:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs: int = parser.parse_args().runs
    with storage_lab() as lab:
        bench = Bench(lab)
        bench.prepare()
        print(f"requests a second, {runs} runs in turn: median (min - max), MiB/s, ratio of medians to librbd")
        for load in LOADS:
            show(load, bench.measure(load, runs))


if __name__ == "__main__":
    main()
