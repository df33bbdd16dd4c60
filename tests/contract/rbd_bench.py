"""RBD under the storage contract: a real cluster for all tests of a run, a pool each, emptied after every test."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import rbd

from scloud.drivers.storage import extents
from scloud.drivers.storage import rbd_names as names
from scloud.drivers.storage.protocol import Storage
from scloud.drivers.storage.rbd import RadosPool, RbdStorage
from scloud.drivers.storage.rbd_bytes import has_parent
from scloud.drivers.storage.rbd_cluster import Cluster, ClusterAccess, remove_omap
from support.ceph_rig import CephRig

CEPH_POOLS = [pytest.param(name, marks=pytest.mark.engine) for name in ("rbd", "rbd-ec")]
FIRST_PORT = 17800
CLIENT = "scloud-n1"
NODE = "nod-1"


@pytest.fixture(scope="session")
def ceph() -> Iterator[CephRig]:
    with CephRig(FIRST_PORT) as rig:
        for name in ("rbd", "rbd-ec"):
            rig.make_pool(name)
        rig.make_pool("rbd-ec-data", "ec")
        rig.make_client(CLIENT, "rbd", "rbd-ec", "rbd-ec-data")
        yield rig


class RbdBench:
    """A pool, the driver on it, and the administrator's hand."""

    clone_mib = 0
    origin = "image/img"

    def __init__(self, rig: CephRig, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rig = rig
        self.pool = pool
        self.context = rig.admin.open_ioctx(pool)
        self._monkeypatch = monkeypatch
        self._made: list[Storage] = []
        self._writing = False
        self.storage: Storage = self.driver()

    async def __aenter__(self) -> RbdBench:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.clean()

    def driver(self, node: str = NODE, client: str = CLIENT, key: str | None = None) -> RbdStorage:
        """Another agent's, with a connection of its own."""
        key = key or self.rig.make_client(client, "rbd", "rbd-ec", "rbd-ec-data")
        access = ClusterAccess(node, "test", self.rig.mon_host, client, key)
        data = "rbd-ec-data" if self.pool == "rbd-ec" else None
        made = RbdStorage(Cluster(access), RadosPool(self.pool, data), self.rig.conf)
        self._made.append(made)
        return made

    def use(self, storage: Storage) -> None:
        """A driver that was made in another way; it is closed at the end."""
        self._made.append(storage)
        self.storage = storage

    def restart(self) -> Storage:
        self.storage = self.driver()
        return self.storage

    def _name(self, disk: str) -> str:
        found = (names.parse_disk(name) for name in rbd.RBD().list(self.context))
        (name,) = (names.disk_image(*one) for one in found if one is not None and one[0] == disk)
        return name

    def read(self, disk: str, offset: int, length: int) -> bytes:
        with rbd.Image(self.context, self._name(disk), read_only=True) as image:
            return bytes(image.read(offset, length))

    def write(self, disk: str, offset: int, data: bytes) -> None:
        with rbd.Image(self.context, self._name(disk)) as image:
            image.write(data, offset)
            image.flush()

    def fill(self, leave_mib: int) -> None:
        raise AssertionError("a full pool keeps its clients waiting")

    def slow(self) -> None:
        """The image's bytes never end until the import is told to stop."""

        def data_of(source: int) -> Iterator[tuple[int, bytes]]:
            while True:
                self._writing = True
                yield 0, b"x" * 4096

        self._monkeypatch.setattr(extents, "data_of", data_of)

    def put_stranger(self, name: str) -> None:
        rbd.RBD().create(self.context, name, 1 << 20)

    async def begun(self) -> None:
        while not self._writing:
            await asyncio.sleep(0.01)

    async def clean(self) -> None:
        for storage in self._made:
            await storage.close()
        left = list(rbd.RBD().list(self.context))
        for name in left:  # what is flat depends on nothing
            with rbd.Image(self.context, name) as image:
                if has_parent(image):
                    image.flatten()
        for name in left:
            with rbd.Image(self.context, name) as image:
                for snap in list(image.list_snaps()):
                    if image.is_protected_snap(snap["name"]):
                        image.unprotect_snap(snap["name"])
                    image.remove_snap(snap["name"])
            rbd.RBD().remove(self.context, name)
        for name in (names.NODES, names.FENCED, names.SESSIONS):
            for key in ("nod-1", "nod-2", "nod-3", "dsk-1", "dsk-2"):
                remove_omap(self.context, name, key)
