"""A lab of three nodes with a real storage cluster, for the benchmarks of storage: up, used, gone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rados

from scloud.client.contexts import Context
from scloud.client.http import Client
from scloud.drivers.storage.rbd_cluster import OPTIONS

REPO = Path(__file__).resolve().parent.parent
DISK_TYPE = "standard"
OPERATION_S = 300.0


@dataclass
class StorageLab:
    """`root` has the lab and the command line's configuration."""

    root: Path

    def __post_init__(self) -> None:
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("SCLOUD_")}
        self.env |= {"SCLOUD_LAB_ROOT": str(self.root / "lab"), "SCLOUD_CONFIG": str(self.root / "config")}

    def scloud(self, *words: str, stdin: str | None = None) -> str:
        """What a command prints; the benchmark ends with its words if it fails."""
        done = subprocess.run(
            [str(REPO / "scloud"), *words], env=self.env, capture_output=True, text=True, input=stdin or ""
        )
        if done.returncode:
            raise SystemExit(f"scloud {' '.join(words)}: {done.stderr or done.stdout}")
        return done.stdout

    def node(self, node: str, *words: str) -> str:
        """What a command prints that is run inside a node."""
        return self.scloud("lab", "exec", node, "--", *words)

    def node_root(self, node: str) -> Path:
        return self.root / "lab" / "nodes" / node

    def client(self) -> Client:
        """One for each thread, as the lab's administrator."""
        contexts = json.loads((self.root / "config" / "contexts.json").read_text())
        current = contexts["contexts"][contexts["current"]]
        return Client(Context(name="bench", url=current["url"], token=current["token"]))

    def ceph_folder(self, node: str) -> Path:
        """The folder with a node's ceph.conf and its key."""
        (conf,) = (self.node_root(node) / "ceph").glob("*/ceph.conf")
        return conf.parent

    def user(self, node: str) -> tuple[str, Path]:
        """A node's cephx user, and the file with its key."""
        (keyring,) = self.ceph_folder(node).glob("*client.scloud-*")
        return f"client.scloud-{node}", keyring

    @contextmanager
    def cluster(self, node: str) -> Iterator[rados.Rados]:
        """A connection to the storage cluster as a node has it."""
        name, keyring = self.user(node)
        conf = {**OPTIONS, "keyring": str(keyring)}
        handle = rados.Rados(name=name, conffile=str(self.ceph_folder(node) / "ceph.conf"), conf=conf)
        handle.connect()
        try:
            yield handle
        finally:
            handle.shutdown()


def finished(client: Client, answer: Any) -> dict[str, Any]:
    """The operation that a request began, at its end."""
    return client.finish(answer["operation"]["id"], timeout=OPERATION_S)


@contextmanager
def storage_lab(nodes: int = 3) -> Iterator[StorageLab]:
    root = Path(tempfile.mkdtemp(prefix="scloud-storage-"))
    root.chmod(0o711)  # dnsmasq reads its files as another user
    lab = StorageLab(root)
    try:
        lab.scloud("lab", "up", "--nodes", str(nodes), "--ceph")
        yield lab
    finally:
        lab.scloud("lab", "down", "--purge")
        shutil.rmtree(root, ignore_errors=True)
