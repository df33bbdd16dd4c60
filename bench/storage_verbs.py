"""What each verb on disks takes in a storage cluster's pool, and `vm create` beside one with a local disk.

    sudo .venv/bin/python bench/storage_verbs.py [--runs 5]

From the request to the end of its operation, through the API of a lab of three nodes with a real cluster. VMs are of
the image `micro`, under emulation: `vm create` ends when QEMU runs the guest.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from scloud.client.http import Client
from storage_lab import DISK_TYPE, finished, storage_lab

VM = {"image": "micro", "cpus": 1, "memory_mib": 128, "nics": [{"subnet": "default"}]}


class Verbs:
    """Asks, waits, and keeps the seconds."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[what].append(time.perf_counter() - begun)

    def create(self, what: str, kind: str, name: str, **spec: object) -> None:
        with self._timed(what):
            finished(self._client, self._client.post(f"/{kind}", {"name": name, "spec": spec}))

    def act(self, what: str, path: str, **body: object) -> None:
        with self._timed(what):
            finished(self._client, self._client.post(path, body))

    def delete(self, what: str, path: str, **params: object) -> None:
        with self._timed(what):
            finished(self._client, self._client.delete(path, **params))

    def disks(self, run: int) -> None:
        """A disk's life beside the VM `holder`."""
        disk, snapshot = f"disk-{run}", f"snapshot-{run}"
        self.create("disk create", "disks", disk, size_mib=1024, type=DISK_TYPE)
        self.create("disk create --image", "disks", f"image-{run}", image="micro", type=DISK_TYPE)
        self.act("disk attach", f"/disks/{disk}/actions/attach", vm="holder")
        self.act("disk resize, attached", f"/disks/{disk}/actions/resize", size_mib=2048)
        self.act("disk limit, attached", f"/disks/{disk}/actions/limit", iops=500)
        self.create("snapshot create, attached", "snapshots", snapshot, disk=disk)
        self.create("disk create --from-snapshot", "disks", f"clone-{run}", snapshot=snapshot)
        self.act("disk detach", f"/disks/{disk}/actions/detach")
        self.act("disk resize, detached", f"/disks/{disk}/actions/resize", size_mib=3072)
        self.act("disk rollback", f"/disks/{disk}/actions/rollback", snapshot=snapshot)
        self.act("disk flatten", f"/disks/clone-{run}/actions/flatten")
        self.delete("snapshot delete", f"/snapshots/{snapshot}")
        self.delete("disk delete, to the trash", f"/disks/clone-{run}")
        self.delete("disk delete --now", f"/disks/{disk}", now=True)

    def vms(self, run: int) -> None:
        self.create("vm create, local disk", "vms", f"local-{run}", **VM)
        self.create("vm create, disk in the pool", "vms", f"pool-{run}", **VM, disk_type=DISK_TYPE)
        self.delete("vm delete, local disk", f"/vms/local-{run}")
        self.delete("vm delete, disk in the pool", f"/vms/pool-{run}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs: int = parser.parse_args().runs
    with storage_lab() as lab, lab.client() as client:
        warm = Verbs(client)
        warm.create("", "vms", "holder", **VM, keypairs=["default"])
        lab.scloud(
            "vm", "ssh", "holder", "--", "true"
        )  # a guest that boots does not hear that it is to let go of a disk
        warm.create("", "disks", "first", image="micro", type=DISK_TYPE)  # its bytes are put into the pool
        verbs = Verbs(client)
        for run in range(runs):
            verbs.disks(run)
            verbs.vms(run)
    print(f"request to end of operation, {runs} runs: median (min - max), milliseconds")
    for what, seconds in verbs.seconds.items():
        low, middle, high = (1e3 * value for value in (min(seconds), statistics.median(seconds), max(seconds)))
        print(f"{what:30} {middle:6.0f}  ({low:.0f} - {high:.0f})")


if __name__ == "__main__":
    main()
