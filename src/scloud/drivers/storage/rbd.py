"""Disks as RBD images in one pool of a storage cluster (names: see `rbd_names`).

Limits are kept by QEMU alone (`iotune`), as for local disks: librbd's own (`rbd_qos_*`) would be a second, slower
bucket behind it, that whoever has the disk open does not always let go of when the limits are raised.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from scloud.drivers.storage import rbd_fence
from scloud.drivers.storage import rbd_names as names
from scloud.drivers.storage.answer_clock import AnswerClock
from scloud.drivers.storage.extents import Extent
from scloud.drivers.storage.place import RbdPlace, secret_of
from scloud.drivers.storage.protocol import DiskFacts, Source, StillOpen
from scloud.drivers.storage.rbd_bytes import has_parent, pieces, write
from scloud.drivers.storage.rbd_cluster import Cluster, Session, refuse_fenced, set_omap
from scloud.drivers.storage.rbd_elsewhere import Elsewhere
from scloud.drivers.storage.rbd_images import Images
from scloud.drivers.storage.sparse import Stopped
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.observed import PoolLeft
from scloud.model.snapshots import DiskLimits

log = logging.getLogger(__name__)

MIB = 1024 * 1024
SWEEP_AGAIN_S = 30.0
"""A client that was killed counts as having an image open for so long."""
TRASH_EVERY_S = 600.0
"""How often it is looked whether somebody, who may never come back, was killed while it removed something."""
AT_ONCE = 4
"""Extents told by one trip to a thread."""
Result = TypeVar("Result")


@dataclass(frozen=True)
class RadosPool:
    """A pool as its cluster calls it; an erasure-coded one has its data in `data`."""

    name: str
    data: str | None = None


class RbdStorage:
    """`conf` is the ceph.conf that QEMU opens its disks with. Nothing is asked of the cluster before the first call."""

    shared = True

    def __init__(self, cluster: Cluster, pool: RadosPool, conf: Path) -> None:
        self._cluster = cluster
        self._pool = pool
        self._conf = conf
        self._images = Images(cluster.access.node, pool.name, pool.data)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._sweeping: asyncio.Task[None] | None = None
        self._use = cluster.join(pool.name, pool.data)
        self._clock = AnswerClock()
        self._elsewhere = Elsewhere(pool.name)
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    async def _run(
        self,
        doing: str,
        work: Callable[[Any], Result],
        *,
        stop: threading.Event | None = None,
        long: bool = False,
    ) -> Result:
        """`work` with this pool's I/O context. The first call begins to remove what a crash left."""

        def inside(session: Session) -> Result:
            return work(session.pool(self._cluster.access, self._use))

        return await self._run_session(doing, inside, stop=stop, long=long)

    async def _run_session(
        self,
        doing: str,
        work: Callable[[Session], Result],
        *,
        stop: threading.Event | None = None,
        long: bool = False,
    ) -> Result:
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().create_task(self._sweep(), name=f"sweep {self._pool.name}")
        return await self._cluster.run(doing, work, stop=stop, long=long)

    async def _sweep(self) -> None:
        """What this node left is looked for until it was done once, what was half removed for ever; nobody waits."""
        swept = False
        while True:
            again_s = SWEEP_AGAIN_S
            try:
                if not swept:
                    await self._run("remove what was left unfinished", self._images.sweep, long=True)
                    swept = True
                if await self._run("end what was half removed", self._images.end_removals, long=True):
                    again_s = TRASH_EVERY_S
            except CloudError as error:
                log.info("%s", error)
            await asyncio.sleep(again_s)

    # --- disks

    async def has_image(self, image: str) -> bool:
        return await self._run(f"look for image {image}", lambda context: self._images.has_base(context, image))

    async def images(self) -> list[str]:
        found = await self._run("list images", self._images.names)
        return sorted(image for image in map(names.parse_base, found) if image is not None)

    async def strangers(self) -> list[str]:
        return [name for name in sorted(await self._run("list images", self._images.names)) if not names.is_ours(name)]

    async def delete_image(self, image: str) -> None:
        await self._run(f"delete image {image}", lambda context: self._images.delete_base(context, image), long=True)

    async def create(self, disk: str, size_mib: int, source: Source | None, incarnation: int = 0) -> DiskFacts:
        async with self._locks[disk]:
            stop = threading.Event()

            def make(session: Session) -> DiskFacts | None:
                context = session.pool(self._cluster.access, self._use)
                data = None if self._pool.data is None else int(session.rados.pool_lookup(self._pool.data))
                with suppress(Stopped):
                    return self._images.create(context, disk, size_mib, source, incarnation, data, stop.is_set)
                return None

            made = await self._run_session(f"make disk {disk}", make, stop=stop, long=True)
        if made is None:
            raise CloudError(ErrorKind.CONFLICT, f"disk {disk} was deleted while it was made")
        return made

    async def resize(self, disk: str, size_mib: int) -> None:
        def grow(context: Any) -> None:
            with self._images.opened(context, disk, write=True) as image:
                size = image.size()
                if size_mib * MIB < size:
                    raise CloudError(
                        ErrorKind.INVALID, f"a disk cannot shrink: it has {size // MIB} MiB, not {size_mib}"
                    )
                if size_mib * MIB > size:
                    image.resize(size_mib * MIB)

        async with self._locks[disk]:
            await self._run(f"grow disk {disk}", grow)

    async def delete(self, disk: str) -> None:
        async with self._locks[disk]:
            await self._run(f"delete disk {disk}", lambda context: self._images.delete(context, disk), long=True)

    async def remains(self, disk: str) -> bool:
        return await self._run(f"look what is left of disk {disk}", lambda context: self._images.remains(context, disk))

    async def clear(self, disk: str) -> None:
        async with self._locks[disk]:
            await self._run(
                f"remove what disk {disk} was before", lambda context: self._images.clear(context, disk), long=True
            )

    async def mend(self, disk: str) -> None:
        async with self._locks[disk]:
            await self._run(f"mend disk {disk}", lambda context: self._images.mend(context, disk), long=True)

    async def left(self) -> PoolLeft:
        return await self._run("look what else there is", self._images.left)

    async def show(self, disk: str) -> DiskFacts | None:
        return await self._show(disk)

    async def _show(self, disk: str, *, closely: bool = False) -> DiskFacts | None:
        return await self._run(f"look at disk {disk}", lambda context: self._images.facts(context, disk, closely))

    async def disks(self) -> list[DiskFacts]:
        found = await self._run("list disks", self._images.names)
        disks = sorted({one[0] for one in map(names.parse_disk, found) if one is not None})
        facts = await asyncio.gather(*(self._show(disk, closely=True) for disk in disks))
        return [one for one in facts if one is not None]

    async def owners(self, objects: Sequence[str]) -> dict[str, tuple[str, int]]:
        return await self._run("look whose objects these are", lambda context: self._images.owners(context, objects))

    async def locate(self, disk: str, beside: str | None = None) -> RbdPlace:
        """From now on the disk counts as this node's, or as both nodes', for whoever has to cut one off."""
        access = self._cluster.access

        def find(context: Any) -> str:
            refuse_fenced(context, access.node)
            name = self._images.name(context, disk)
            set_omap(context, names.NODES, disk, " ".join(filter(None, (beside, access.node))))
            return name

        return RbdPlace(
            pool=self._pool.name,
            image=await self._run(f"locate disk {disk}", find),
            monitors=tuple(monitors(access.mon_host)),
            user=access.user,
            secret=secret_of(access.cluster, access.user),
            conf=self._conf,
        )

    async def free_mib(self) -> tuple[int, int]:
        def ask(session: Session) -> tuple[int, int]:
            code, answer, words = session.rados.mon_command(json.dumps({"prefix": "df", "format": "json"}), b"")
            if code != 0:
                raise CloudError(ErrorKind.ENGINE, f"df: {words}")
            wanted = self._pool.data or self._pool.name
            stats = next((pool["stats"] for pool in json.loads(answer)["pools"] if pool["name"] == wanted), None)
            if stats is None:
                raise CloudError(ErrorKind.NOT_FOUND, f"the storage cluster has no pool {wanted}")
            return int(stats["max_avail"]) // MIB, int(stats["max_avail"] + stats["stored"]) // MIB

        return await self._cluster.run(f"ask for the space in pool {self._pool.name}", ask)

    # --- snapshots

    async def snapshot(self, disk: str, snapshot: str) -> None:
        def take(context: Any) -> None:
            with self._images.opened(context, disk, write=True) as image:
                if snapshot not in {snap["name"] for snap in image.list_snaps()}:
                    image.create_snap(snapshot)

        async with self._locks[disk]:
            await self._run(f"take snapshot {snapshot} of disk {disk}", take)

    async def delete_snapshot(self, disk: str, snapshot: str) -> None:
        async with self._locks[disk]:
            await self._run(
                f"delete snapshot {snapshot} of disk {disk}",
                lambda context: self._images.delete_snapshot(context, disk, snapshot),
                long=True,
            )

    async def roll_back(self, disk: str, snapshot: str, number: int) -> None:
        def bring_back(session: Session) -> None:
            context = session.pool(self._cluster.access, self._use)
            with self._images.opened(context, disk, write=True) as image:
                if int(dict(image.metadata_list()).get(names.ROLLED_BACK, 0)) == number:
                    return
                if snapshot not in {snap["name"] for snap in image.list_snaps()}:
                    raise CloudError(
                        ErrorKind.NOT_FOUND, f"snapshot {snapshot} of disk {disk} is not in {self._pool.name}"
                    )
                me = session.rados.get_instance_id()
                if others := [watcher["addr"] for watcher in image.watchers_list() if watcher["id"] != me]:
                    raise StillOpen(disk, others, "rolled back")
                image.rollback_to_snap(snapshot)
                image.metadata_set(names.ROLLED_BACK, str(number))
                self._images.changed(disk)

        async with self._locks[disk]:
            await self._run_session(f"roll disk {disk} back to {snapshot}", bring_back, long=True)

    async def flatten(self, disk: str) -> None:
        def copy(context: Any) -> None:
            with self._images.opened(context, disk, write=True) as image:
                if has_parent(image):
                    image.flatten()
                    self._images.changed(disk)

        async with self._locks[disk]:
            await self._run(f"flatten disk {disk}", copy, long=True)

    async def limit(self, disk: str, limits: DiskLimits) -> None:
        """Nothing of Ceph's is set: QEMU keeps them (see above). `CloudError(NOT_FOUND)` if there is no such disk."""
        await self._run(f"limit disk {disk}", lambda context: self._images.name(context, disk))

    # --- bytes in and out

    async def export(self, disk: str, snapshot: str, since: str | None) -> AsyncIterator[Extent]:
        doing = f"export snapshot {snapshot} of disk {disk}"
        image = await self._run(doing, lambda context: self._images.open_at(context, disk, snapshot, since))
        try:
            told = pieces(image, since)
            while batch := await self._run(doing, lambda _: list(islice(told, AT_ONCE)), long=True):
                for extent in batch:
                    yield extent
        finally:
            await self._run(doing, lambda _: image.close())

    async def restore(self, disk: str, extents: AsyncIterator[Extent]) -> None:
        doing = f"restore disk {disk}"
        async with self._locks[disk]:
            image = await self._run(doing, lambda context: self._images.open_to_write(context, disk))
            try:
                async for offset, piece in extents:
                    await self._run(doing, partial(_put, image, offset, piece), long=True)
                await self._run(doing, lambda _: image.flush())
            finally:
                await self._run(doing, lambda _: image.close())

    # --- who is writing

    async def fence(self, node: str) -> None:
        pools, data = self._cluster.pools(), self._cluster.data_pools()
        await self._cluster.run(f"fence {node}", lambda session: rbd_fence.fence(session, pools, data, node), long=True)

    async def is_fenced(self, node: str) -> bool:
        return await self._cluster.run(
            f"ask whether {node} is fenced",
            lambda session: rbd_fence.is_fenced(session, session.rados.open_ioctx(self._pool.name), node),
        )

    async def is_refused(self) -> bool:
        with self._clock.request():
            return await self._cluster.run("ask whether this node is let in", self._refused)

    def _refused(self, session: Session) -> bool:
        if session.registered and self._elsewhere.let_in(session):
            return False
        return rbd_fence.is_fenced(session, session.rados.open_ioctx(self._pool.name), self._cluster.access.node)

    def answer_s(self) -> float:
        return self._clock.seconds()

    async def is_cut_off(self) -> bool:
        """The monitors are asked: placement groups whose OSDs have just died say nothing for some seconds."""
        found = await self._cluster.run("ask whether this node is cut off", rbd_fence.is_cut_off)
        if not self._closed and self._elsewhere.due() and (self._looking is None or self._looking.done()):
            self._looking = asyncio.get_running_loop().create_task(self._look(), name=f"look {self._pool.name}")
        return found

    async def _look(self) -> None:
        """Nobody waits for it."""
        try:
            await self._cluster.run("find out whom else to ask", self._elsewhere.look, long=True)
        except CloudError as error:
            log.info("%s", error)
        except Exception:
            log.exception("whom else to ask in pool %s is not known", self._pool.name)

    async def unfence(self, node: str) -> None:
        pools = self._cluster.pools()
        await self._cluster.run(f"unfence {node}", lambda session: rbd_fence.unfence(session, pools, node))

    async def close(self) -> None:
        self._closed = True
        for task in (self._sweeping, self._looking):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._cluster.leave(self._use)


def _put(image: Any, offset: int, piece: bytes | int, _context: Any) -> None:
    write(image, offset, piece)


def monitors(mon_host: str) -> list[str]:
    """`[v2:10.0.0.1:3300,v1:10.0.0.1:6789],10.0.0.2` as IP:PORT, or IP where no port is said; once for each monitor."""
    found = []
    for part in mon_host.replace("]", "").replace(" ", ",").split("["):
        plain = [one.removeprefix("v2:").removeprefix("v1:") for one in part.split(",") if one]
        same: set[str] = set()
        for one in plain:
            address = one.partition("/")[0]
            if (host := address.rpartition(":")[0] or address) not in same:
                same.add(host)
                found.append(address)
    return found
