"""One seed's cloud: its database, processes, nodes, and the record of what happened."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Iterable
from random import Random
from typing import Any

from scloud.api.routes.accounts import make_account
from scloud.controllers.storage import rows
from scloud.model.ha import PROFILES, HaProfile
from scloud.model.kinds import Kind, State
from scloud.model.specs import AccountSpec, ClusterSpec, ImageFormat, ImageSpec, NodeSpec
from scloud.model.statuses import ImageStatus, NodeStatus, Status
from scloud.model.storage import DiskTypeSpec, PoolSpec, PoolStatus, StorageClusterSpec, StorageClusterStatus
from scloud.store import secrets
from scloud.store.database import Store, Tx
from scloud.store.resources import SYSTEM, create, refer
from scloud.store.tables import metadata

from .hardware import CLIENT_KEY, IMAGE_MIB, Journal, JournalFile, PoolDisk
from .loop import SimLoop
from .processes import AgentProcess, ManagerProcess
from .wires import Wires

EPOCH_S = 1_700_000_000.0


class Violation(Exception):
    """Something that may never happen, happened."""


def empty_database() -> Store:
    """In memory; its clock and its randomness are set by whoever uses it."""
    store = Store("sqlite://", clock=lambda: 0.0, rng=Random(0), inline=True)
    metadata.create_all(store.engine)
    return store


class World:
    """`verbose` prints what happens as it happens."""

    def __init__(self, seed: int, *, verbose: bool = False, base: Store | None = None) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.loop = SimLoop(self.rng)
        self.verbose = verbose
        self.trace: deque[str] = deque(maxlen=200)
        self.violations: list[str] = []
        self.slowness = self.rng.choice([0.005, 0.02, 0.1])
        self.encode = self.rng.random() < 0.2
        self.base = base or empty_database()
        self.base.clock = self.clock
        self.base.rng = Random(seed ^ 0x5C10D)
        self.account = ""
        self.image = ""
        self.manager = ManagerProcess(self, self.base)
        self.nodes: list[AgentProcess] = []
        self.pool_disk = PoolDisk(capacity_mib=10_000, shared=True)
        self.pool_disk.hosts = []
        self.wires = Wires()
        self.pool_disk.node_of, self.pool_disk.wires, self.pool_disk.keyless = {}, self.wires, set()
        self.pool = ""
        self.dead_ids: set[str] = set()
        self.statistics: dict[str, int] = {}
        self.ha = PROFILES[HaProfile.FAST]
        """Its numbers fit the length of the faults; in every third seed nothing is restarted elsewhere."""
        if seed % 3 == 0:
            self.ha = self.ha.model_copy(update={"enabled": False})
        self.calm = False
        """Faults have stopped."""

    # --- time

    def clock(self) -> float:
        return EPOCH_S + self.loop.time()

    def short(self) -> float:
        """Seconds that a message or a call takes: mostly little, now and then long."""
        draw = self.rng.random()
        if draw < 0.6:
            return 0.0
        if draw < 0.98 or self.calm:
            return self.slowness * self.rng.random()
        return 3.0 * self.rng.random()

    # --- record

    def note(self, text: str) -> None:
        line = f"{self.loop.time() - 1000:9.3f}  {text}"
        self.trace.append(line)
        if self.verbose:
            print(line, flush=True)

    def count(self, what: str) -> None:
        self.statistics[what] = self.statistics.get(what, 0) + 1

    def violation(self, text: str, error: BaseException | None = None) -> None:
        if error is not None:
            text += "\n" + "".join(traceback.format_exception(error))
        self.note(f"VIOLATION {text}")
        self.violations.append(text)

    # --- making

    def make_journal(self, file: JournalFile) -> Journal:
        return Journal(file, self.rng, self.short)

    def build(self, nodes: int) -> None:
        """A cluster, an account, an image, and nodes that have joined."""

        def first(tx: Tx) -> list[str]:
            cluster = create(tx, Kind.CLUSTER, SYSTEM, "default", ClusterSpec(ha=self.ha), Status(state=State.READY))
            self.account = make_account(tx, "tenant", AccountSpec()).id
            spec = ImageSpec(source="upload", format=ImageFormat.RAW, public=True)
            ready = ImageStatus(state=State.READY, size_mib=IMAGE_MIB, sha256="0" * 64, file_mib=4)
            self.image = create(tx, Kind.IMAGE, SYSTEM, "micro", spec, ready).id
            made = []
            for number in range(1, nodes + 1):
                status = NodeStatus(state=State.JOINING, reason="waiting for the host to join")
                row = create(tx, Kind.NODE, SYSTEM, f"n{number}", NodeSpec(cluster=cluster.id), status)
                refer(tx, row.id, cluster.id, "cluster")
                made.append(row.id)
            self._make_pool(tx, made)
            return made

        for number, id in enumerate(self.base.write_now(first), 1):
            self.nodes.append(AgentProcess(self, number, id))

    def _make_pool(self, tx: Tx, nodes: list[str]) -> None:
        """A pool that all nodes reach, or all but one, as the disk type `standard`."""
        members = nodes if len(nodes) < 3 or self.rng.random() < 0.7 else nodes[:-1]
        spec = StorageClusterSpec(mode="adopted", nodes=tuple(members), fsid="f", mon_host="192.0.2.1:6789")
        cluster = create(tx, Kind.STORAGE_CLUSTER, SYSTEM, "store", spec, StorageClusterStatus(state=State.READY))
        status = PoolStatus(state=State.READY, accepts_new=True, observed_generation=1)
        of_pool = PoolSpec(cluster=cluster.id, rados_name="p")
        pool = create(tx, Kind.POOL, SYSTEM, "pool", of_pool, status, parent=cluster.id)
        create(tx, Kind.DISK_TYPE, SYSTEM, "standard", DiskTypeSpec(pool=pool.id), Status(state=State.READY))
        for node in members:
            secrets.put(tx, cluster.id, rows.client_secret(node), f"{node}:{CLIENT_KEY}")
            secrets.put(tx, cluster.id, rows.granted_secret(node), '["p"]')
        self.pool = pool.id

    def node(self, id: str) -> AgentProcess:
        return next(node for node in self.nodes if node.id == id)

    def started(self, node: AgentProcess, vm: str) -> None:
        """A guest has begun to run, or has one disk more: nowhere else may it, nor may another have its disks."""
        self.note(f"{vm} runs on {node.name}")
        self.count("starts")
        where = [
            other.name
            for other in self.nodes
            if (domain := other.hardware.host.domains.get(vm)) is not None
            and domain.running
            and not domain.paused
            # what runs on a node that is cut off writes to nothing, and nobody hears it
            and not self.harmless(other, domain.disks)
        ]
        if len(where) > 1:
            self.violation(f"{vm} runs on {' and '.join(where)}")
        for disk, vms in self.pool_disk.openers().items():
            if len(vms) > 1:
                self.violation(f"{disk} is open in {' and '.join(vms)}")

    def harmless(self, node: AgentProcess, disks: Iterable[str]) -> bool:
        """Whether a domain with these disks can do nothing any more: it is on a node that is fenced and cut off."""
        fenced = node.id in self.pool_disk.fenced
        return fenced and any(disk in self.pool_disk.volumes for disk in disks)

    def summary(self) -> dict[str, Any]:
        return {"seed": self.seed, "virtual_s": round(self.loop.time() - 1000, 1), **self.statistics}
