"""How long a client's writes stand still when the OSD they go to dies, and how long until redundancy is restored.

    sudo .venv/bin/python bench/osd_killed.py [--runs 3] [--more]

A lab of three nodes with a storage cluster of six OSDs and a pool of three copies. A client with librbd and the options
that nodes give to QEMU writes 4 KiB and flushes, again and again, to one object, whose primary OSD is then killed
(SIGKILL). Stall: the longest time between two acknowledged writes. Whole: from the kill until the OSD is up and every
placement group has said, since then, that it is active and clean. Three ways:

    agent    the node's agent starts it again
    by hand  the raw cluster's own: the same daemon with the same options, started by this script with the agent's hands
             tied (SIGSTOP), as soon as it is dead
    nobody   nobody does, until writes have gone on for some seconds

With --more also, whole being counted from when it is mended:

    hangs    the OSD stops where it is (SIGSTOP), which its peers find out by its silence alone
    node     all of its node is killed: the other OSD and a monitor, too
    cut off  its node's wires are cut, so that nobody is told that anything has ended
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rados
import rbd

from storage_lab import StorageLab, storage_lab

IMAGE, IMAGE_BYTES, BLOCK = "bench", 1 << 30, 4096
FILL_BYTES = 256 << 20
LIMIT_S = 120.0


class Lab(StorageLab):
    """Its cluster's administrator, and its processes."""

    def daemon(self, name: str) -> tuple[str, int]:
        """(node, pid), once it runs."""
        found: list[tuple[str, int]] = []

        def look() -> bool:
            processes = json.loads(self.scloud("lab", "status", "-o", "json"))["processes"]
            found[:] = [(p["node"], p["pid"]) for p in processes if p["daemon"] == name]
            return bool(found)

        until(look, f"{name} runs")
        return found[0]

    def agent(self, node: str) -> int:
        processes = json.loads(self.scloud("lab", "status", "-o", "json"))["processes"]
        return next(int(p["pid"]) for p in processes if p["role"] == "agent" and p["node"] == node)

    @property
    def conf(self) -> Path:
        return next((self.root / "lab/nodes/n2/ceph").glob("*/ceph.conf"))

    def administrator(self) -> Any:
        """Not connected yet; with the key that a monitor's own key can read."""
        keyring = next((self.root / "lab/nodes/n1/ceph").glob("*/mon.n1/data/keyring"))
        with rados.Rados(name="mon.", conffile=str(self.conf), conf={"keyring": str(keyring)}) as monitor:
            key = answer(monitor.mon_command(json.dumps({"prefix": "auth print-key", "entity": "client.admin"}), b""))
        return rados.Rados(name="client.admin", conffile=str(self.conf), conf={"key": key["key"], "keyring": ""})


def until(check: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not check():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {LIMIT_S:g} s: {what}")
        time.sleep(0.05)


def answer(result: tuple[int, bytes, str]) -> Any:
    code, out, words = result
    if code:
        raise SystemExit(f"ceph: {words}")
    try:
        return json.loads(out)
    except ValueError:
        return {"key": out.decode().strip()}


class Cluster:
    """What it says of itself, to its administrator."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def mon(self, prefix: str, **words: str) -> Any:
        return answer(self._handle.mon_command(json.dumps({"prefix": prefix, "format": "json", **words}), b""))

    def osd(self, number: int) -> dict[str, Any]:
        return next(osd for osd in self.mon("osd dump")["osds"] if osd["osd"] == number)

    def primary(self, pool: str, name: str) -> int:
        return int(self.mon("osd map", pool=pool, object=name)["acting_primary"])

    def clean(self, epoch: int) -> bool:
        """Whether every placement group is, and knows of this epoch of the map."""
        ask = json.dumps({"prefix": "pg dump", "dumpcontents": ["pgs"], "format": "json"})
        try:
            dump = answer(self._handle.mgr_command(ask, b""))
        except rados.Error:
            return False
        groups = dump["pg_stats"] if "pg_stats" in dump else dump["pg_map"]["pg_stats"]
        return all(
            {"active", "clean"} <= set(pg["state"].split("+")) and int(pg["reported_epoch"]) >= epoch for pg in groups
        )

    def whole_since(self, number: int, before: int) -> bool:
        """Whether the OSD has come up after epoch `before`, and all is clean."""
        osd = self.osd(number)
        return bool(osd["up"]) and osd["up_from"] > before and self.clean(osd["up_from"])


class Client:
    """Writes to one object for as long as it is told to, and remembers when each was acknowledged."""

    def __init__(self, image: Any, number: int) -> None:
        self._image, self._at = image, number << 22
        self._stop = threading.Event()
        self.times: list[float] = []
        self._thread = threading.Thread(target=self._write)

    def _write(self) -> None:
        while not self._stop.is_set():
            self._image.write(os.urandom(BLOCK), self._at)
            self._image.flush()
            self.times.append(time.monotonic())

    def __enter__(self) -> Client:
        self._thread.start()
        until(lambda: len(self.times) > 50, "the client writes")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def goes_on(self, seconds: float, since: float) -> None:
        """Until it has written for so long after its longest pause since then."""

        def steady() -> bool:
            times = [at for at in self.times if at > since]
            return bool(times) and time.monotonic() - since > seconds and times[-1] > time.monotonic() - 0.5

        until(steady, "the client writes on")

    def stall(self, since: float) -> float:
        start = max(at for at in self.times if at <= since)
        times = [start, *(at for at in self.times if at > since)]
        return max(after - before for before, after in itertools.pairwise(times))


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def argv_of(pid: int) -> list[str]:
    return [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")]


class Bench:
    def __init__(self, lab: Lab, cluster: Cluster, pool: str, image: Any) -> None:
        self.lab, self.cluster, self.pool, self.image = lab, cluster, pool, image
        self._next = 0

    def run(self, how: Callable[[Client, int, str, int, int], tuple[float, float]]) -> tuple[float, float]:
        """(stall, whole) of another object's primary."""
        self._next += 7
        number = self._next % 256
        osd = self.cluster.primary(self.pool, f"{self.image.block_name_prefix()}.{number:016x}")
        node, pid = self.lab.daemon(f"osd.{osd}")
        epoch = int(self.cluster.mon("osd dump")["epoch"])
        with Client(self.image, number) as client:
            result = how(client, osd, node, pid, epoch)
        until(lambda: self.cluster.clean(epoch), "all clean")
        return result

    def _whole(self, osd: int, epoch: int, began: float) -> float:
        until(lambda: self.cluster.whole_since(osd, epoch), f"osd.{osd} is back and all is clean")
        return time.monotonic() - began

    def agent(self, client: Client, osd: int, node: str, pid: int, epoch: int) -> tuple[float, float]:
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        whole = self._whole(osd, epoch, began)
        return client.stall(began), whole

    def by_hand(self, client: Client, osd: int, node: str, pid: int, epoch: int) -> tuple[float, float]:
        agent, argv = self.lab.agent(node), argv_of(pid)
        with stopped(agent):
            began = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            inside = ["nsenter", "-t", str(agent), "-m", "-n", "-u", "--", *argv]
            ours = subprocess.Popen(inside, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                whole = self._whole(osd, epoch, began)
                stall = client.stall(began)
            finally:
                ours.kill()
                ours.wait()
        later = int(self.cluster.osd(osd)["up_from"])
        self._whole(osd, later, began)
        return stall, whole

    def nobody(self, client: Client, osd: int, node: str, pid: int, epoch: int) -> tuple[float, float]:
        with stopped(self.lab.agent(node)):
            began = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            client.goes_on(8.0, began)
            stall = client.stall(began)
        return stall, self._whole(osd, epoch, time.monotonic())

    def hang(self, client: Client, osd: int, node: str, pid: int, epoch: int) -> tuple[float, float]:
        with stopped(pid):
            began = time.monotonic()
            until(lambda: not self.cluster.osd(osd)["up"], f"osd.{osd} is called dead")
            client.goes_on(8.0, began)
            stall = client.stall(began)
        return stall, self._whole(osd, epoch, time.monotonic())

    def node(self, client: Client, osd: int, node: str, pid: int, epoch: int) -> tuple[float, float]:
        return self._node(client, osd, node, epoch, "kill")

    def cut_off(self, client: Client, osd: int, node: str, pid: int, epoch: int) -> tuple[float, float]:
        return self._node(client, osd, node, epoch, "partition")

    def _node(self, client: Client, osd: int, node: str, epoch: int, how: str) -> tuple[float, float]:
        began = time.monotonic()
        self.lab.scloud("lab", "fail", node, "--how", how)
        try:
            client.goes_on(20.0, began)
            stall = client.stall(began)
        finally:
            self.lab.scloud("lab", "heal", node)
        return stall, self._whole(osd, epoch, time.monotonic())


def fill(image: Any, size_bytes: int) -> None:
    """What there is to be made whole again."""
    piece = os.urandom(1 << 22)
    for at in range(0, size_bytes, len(piece)):
        image.write(piece, at)
    image.flush()


@contextmanager
def client_image(lab: Lab, size_bytes: int) -> Iterator[tuple[Cluster, str, Any]]:
    """(the cluster, the RADOS name of a pool of three copies, a new image there that n2's client has open)."""
    with lab.administrator() as admin, rados.Rados(name="client.scloud-n2", conffile=str(lab.conf)) as handle:
        pool = json.loads(lab.scloud("pool", "show", "standard", "-o", "json"))["spec"]["rados_name"]
        with handle.open_ioctx(pool) as io:
            rbd.RBD().create(io, IMAGE, size_bytes)
            with rbd.Image(io, IMAGE) as image:
                yield Cluster(admin), pool, image


def measure(lab: Lab, runs: int, more: bool) -> dict[str, list[tuple[float, float]]]:
    with client_image(lab, IMAGE_BYTES) as (cluster, pool, image):
        fill(image, FILL_BYTES)
        bench = Bench(lab, cluster, pool, image)
        ways = {"agent": bench.agent, "by hand": bench.by_hand, "nobody": bench.nobody}
        if more:
            ways |= {"hangs": bench.hang, "node": bench.node, "cut off": bench.cut_off}
        rows: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        # In turn, so that all meet the same neighbours on the machine.
        for _ in range(runs):
            for name, way in ways.items():
                rows[name].append(bench.run(way))
        return rows


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):5.2f} ({min(values):.2f} - {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--more", action="store_true", help="also what hangs, a node killed, a node cut off")
    options = parser.parse_args()
    with storage_lab() as made:
        rows = measure(Lab(made.root), options.runs, options.more)
    print(f"primary OSD lost, {options.runs} runs each: median (min - max), seconds")
    print(f"{'':14} {'client stall':22} {'whole again':22}")
    for name, values in rows.items():
        stalls, wholes = zip(*values, strict=True)
        print(f"{name:14} {spread(list(stalls)):22} {spread(list(wholes)):22}")
    product, raw = ([whole for _, whole in rows[name]] for name in ("agent", "by hand"))
    print(f"whole again, agent against by hand: {statistics.median(product) / statistics.median(raw):.2f}")


if __name__ == "__main__":
    main()
