"""The monitors, managers and OSDs of a node: made, started by the node's supervisor, stopped and taken away.

Nothing is in memory: what there is, is found in the node's folder and with the supervisor, whoever started it.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import orjson

from scloud.drivers.ceph.conf import client_conf, daemon_conf, digest
from scloud.drivers.ceph.control import Connection
from scloud.drivers.ceph.keyring import entry
from scloud.drivers.ceph.layout import ClusterFolder, DaemonFolder, clusters, write
from scloud.drivers.ceph.monitors import make_monitor, waiting_for
from scloud.drivers.ceph.osds import check_present, give_back, make_osd
from scloud.drivers.ceph.protocol import Access, DaemonFacts
from scloud.drivers.supervisor.process import tail
from scloud.drivers.supervisor.protocol import ProcessFacts, ProcessSpec, Supervisor
from scloud.model.desired import DesiredStore, MgrDaemon, MonDaemon, OsdDaemon
from scloud.model.errors import CloudError, ErrorKind

COMMAND_S = 10.0
SETTLE_S = 3.0
"""Within this a daemon opens its socket or ends, if the monitors answer."""
_POLL_S = 0.02
GRACE_S = 10.0
"""For an OSD to end by itself; one that is to be wiped gets the second one."""
SHORT_GRACE_S = 1.0
PATIENCE_S = 5.0
_LOOK_S = 0.2
_PREFIX = "ceph-"


def process_name(cluster: str, daemon: str) -> str:
    """What the supervisor knows a daemon by: `ceph-CLUSTER-osd.3`."""
    return f"{_PREFIX}{cluster}-{daemon}"


class NodeDaemons:
    """`CephDaemons` below `root`; admin sockets in `sockets`, whose path must be short (107 bytes with the name).

    `log` is where the supervisor has the daemons' logs; `address` the node's own, where OSDs and managers listen.
    """

    def __init__(
        self, root: Path, sockets: Path, log: Path, supervisor: Supervisor, address: Callable[[], str]
    ) -> None:
        self._root = root
        self._log = log
        self._sockets = sockets
        self._supervisor = supervisor
        self._address = address

    # --- what is wanted

    async def ensure(self, store: DesiredStore) -> dict[str, int]:
        cluster = ClusterFolder(self._root / store.cluster)
        self._write_client(store, cluster)
        wanted = [daemon for daemon in store.daemons if not (isinstance(daemon, OsdDaemon) and daemon.absent)]
        await self._stop_unnamed(store, cluster)
        # What needs nobody comes first: it is what the others wait for.
        first = [daemon for daemon in wanted if self._can_start_alone(cluster, daemon)]
        errors = await _all(self._start(store, cluster, daemon) for daemon in first)
        errors += await _all(self._make(store, cluster, daemon) for daemon in wanted if daemon not in first)
        errors += await _all(
            self._give_back(cluster.daemon("osd", daemon.uuid))
            for daemon in store.daemons
            if isinstance(daemon, OsdDaemon) and daemon.absent
        )
        if errors:
            raise errors[0]
        return await self.numbers(store)

    async def numbers(self, store: DesiredStore) -> dict[str, int]:
        cluster = ClusterFolder(self._root / store.cluster)
        numbers = {folder.name.partition(".")[2]: folder.osd_number() for folder in cluster.daemons()}
        return {uuid: number for uuid, number in numbers.items() if number is not None}

    def _can_start_alone(self, cluster: ClusterFolder, daemon: MonDaemon | MgrDaemon | OsdDaemon) -> bool:
        return isinstance(daemon, MonDaemon) or self._folder(cluster, daemon).made.exists()

    def _folder(self, cluster: ClusterFolder, daemon: MonDaemon | MgrDaemon | OsdDaemon) -> DaemonFolder:
        name = daemon.uuid if isinstance(daemon, OsdDaemon) else daemon.name
        return cluster.daemon(daemon.type, name)

    def _write_client(self, store: DesiredStore, cluster: ClusterFolder) -> None:
        keyring = cluster.client_keyring(store.client)
        write(cluster.conf, client_conf(store, keyring), 0o644)
        if store.client_key:
            write(keyring, entry(f"client.{store.client}", store.client_key))

    # --- making and starting

    async def _make(
        self, store: DesiredStore, cluster: ClusterFolder, daemon: MgrDaemon | OsdDaemon | MonDaemon
    ) -> None:
        folder = self._folder(cluster, daemon)
        folder.path.mkdir(parents=True, exist_ok=True)
        match daemon:
            case MgrDaemon():
                await self._until_known(store, f"mgr.{daemon.name}", daemon.key)
                folder.data.mkdir(exist_ok=True)
                write(folder.keyring, entry(f"mgr.{daemon.name}", daemon.key))
                write(folder.made, "")
            case OsdDaemon():
                number = await self._number(store, daemon)
                self._write_conf(store, daemon, folder, f"osd.{number}")
                await make_osd(daemon, store.fsid, number, folder)
        await self._start(store, cluster, daemon)

    async def _until_known(self, store: DesiredStore, entity: str, key: str) -> None:
        """A manager that the cluster does not know ends at once. It is told of it about when we are."""
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        while True:
            try:
                async with self._connected(store, entity, key):
                    return
            except CloudError as error:
                if error.kind is not ErrorKind.UNAVAILABLE or asyncio.get_running_loop().time() > deadline:
                    raise
            await asyncio.sleep(_LOOK_S)

    @asynccontextmanager
    async def _connected(self, store: DesiredStore, entity: str, key: str) -> AsyncIterator[Connection]:
        """To the cluster as one of its daemons. UNAVAILABLE says which monitors are missing."""
        access = Access(cluster=store.cluster, fsid=store.fsid, mon_host=store.mon_host, user=entity, key=key)
        connection = Connection(access, entity)
        try:
            await connection.open()
            yield connection
        except CloudError as error:
            if error.kind is ErrorKind.FORBIDDEN:
                # Its key is told to the cluster once that has a quorum, by whoever told it to us.
                raise CloudError(ErrorKind.UNAVAILABLE, f"waiting for the cluster to be told of {entity}") from error
            raise await waiting_for(store, error) from error
        finally:
            await connection.close()

    async def _number(self, store: DesiredStore, osd: OsdDaemon) -> int:
        """The OSD's in its cluster, which says the same one to whoever asks again with the same key."""
        async with self._connected(store, "client.bootstrap-osd", store.bootstrap_key) as connection:
            secret = orjson.dumps({"cephx_secret": osd.key, "crush_device_class": osd.media})
            answer = await connection.command("mon", {"prefix": "osd new", "uuid": osd.uuid}, secret, COMMAND_S)
            return int(answer["osdid"])

    async def _start(
        self, store: DesiredStore, cluster: ClusterFolder, daemon: MonDaemon | MgrDaemon | OsdDaemon
    ) -> None:
        folder = self._folder(cluster, daemon)
        name = f"osd.{folder.osd_number()}" if isinstance(daemon, OsdDaemon) else f"{daemon.type}.{daemon.name}"
        version = self._write_conf(store, daemon, folder, name)
        if isinstance(daemon, MonDaemon):
            await make_monitor(store, daemon, folder)
        socket = self._socket(store.cluster, name)
        process = process_name(store.cluster, name)
        if not any(facts.name == process and facts.running for facts in await self._supervisor.processes()):
            if isinstance(daemon, OsdDaemon):
                await asyncio.to_thread(check_present, daemon, name)
            # One that a dead process has left would look like the new one's.
            socket.unlink(missing_ok=True)
        await self._supervisor.ensure(
            ProcessSpec(
                name=process,
                argv=(f"ceph-{daemon.type}", "-f", "-i", name.partition(".")[2], "-c", str(folder.conf)),
                env={"SCLOUD_ROLE": f"ceph-{daemon.type}", "SCLOUD_CONF": version},
            )
        )
        await self._until_open(store, process, socket)

    async def _until_open(self, store: DesiredStore, process: str, socket: Path) -> None:
        """Until its socket is there. All but monitors make it when they have heard from a quorum, and wait for that as
        long as it takes: UNAVAILABLE then says who is missing, and they go on waiting."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SETTLE_S
        died = asyncio.ensure_future(self._supervisor.died(process))
        try:
            while not socket.exists():
                if died.done():
                    file = self._log / f"{process}.log"
                    raise CloudError(ErrorKind.ENGINE, f"{process} ended at once; its log {file} ends: {tail(file)}")
                if loop.time() > deadline:
                    late = CloudError(ErrorKind.UNAVAILABLE, f"waiting for {process} to hear from the cluster")
                    raise await waiting_for(store, late)
                await asyncio.wait([died], timeout=_POLL_S)
        finally:
            died.cancel()

    def _write_conf(
        self, store: DesiredStore, daemon: MonDaemon | MgrDaemon | OsdDaemon, folder: DaemonFolder, name: str
    ) -> str:
        """The digest of what it now says."""
        self._sockets.mkdir(parents=True, exist_ok=True)
        text = daemon_conf(store, daemon, folder, self._socket(store.cluster, name), self._address())
        write(folder.conf, text)
        return digest(text)

    def _socket(self, cluster: str, name: str) -> Path:
        return self._sockets / f"{cluster}-{name}.asok"

    # --- stopping and taking away

    async def _stop_unnamed(self, store: DesiredStore, cluster: ClusterFolder) -> None:
        """Monitors and managers lose their data, which are the cluster's; an OSD keeps what is on its device."""
        named = {self._folder(cluster, daemon).name for daemon in store.daemons}
        for folder in cluster.daemons():
            if folder.name not in named:
                await self._stop(folder)
                if not folder.name.startswith("osd."):
                    await asyncio.to_thread(folder.delete)

    async def _stop(self, folder: DaemonFolder, grace_s: float = GRACE_S) -> None:
        name = folder.name
        if name.startswith("osd."):
            number = folder.osd_number()
            if number is None:
                return
            name = f"osd.{number}"
        await self._supervisor.stop(process_name(folder.cluster, name), grace_s)
        self._socket(folder.cluster, name).unlink(missing_ok=True)

    async def _give_back(self, folder: DaemonFolder) -> None:
        if folder.path.exists():
            await self._stop(folder, SHORT_GRACE_S)
            await asyncio.to_thread(give_back, folder)

    async def remove(self, store: DesiredStore) -> None:
        cluster = ClusterFolder(self._root / store.cluster)
        errors = await _all(self._take_away(folder) for folder in list(cluster.daemons()))
        if errors:
            raise errors[0]
        await asyncio.to_thread(shutil.rmtree, cluster.path, True)

    async def _take_away(self, folder: DaemonFolder) -> None:
        if folder.name.startswith("osd."):
            await self._give_back(folder)
        else:
            await self._stop(folder, SHORT_GRACE_S)
            await asyncio.to_thread(folder.delete)

    # --- what there is

    async def daemons(self) -> list[DaemonFacts]:
        running = {facts.name: facts for facts in await self._supervisor.processes()}
        return [self._facts(folder, running) for cluster in clusters(self._root) for folder in cluster.daemons()]

    def _facts(self, folder: DaemonFolder, running: dict[str, ProcessFacts]) -> DaemonFacts:
        name, uuid = folder.name, ""
        if name.startswith("osd."):
            uuid = name.partition(".")[2]
            number = folder.osd_number()
            name = f"osd.{number}" if number is not None else name
        process = running.get(process_name(folder.cluster, name))
        return DaemonFacts(
            cluster=folder.cluster,
            name=name,
            running=process is not None and process.running,
            uuid=uuid,
            pid=process.pid if process is not None else None,
        )

    async def died(self, cluster: str) -> str:
        prefix = process_name(cluster, "")
        names = [facts.name for facts in await self._supervisor.processes() if facts.name.startswith(prefix)]
        waiting = {asyncio.ensure_future(self._supervisor.died(name)): name for name in names}
        if not waiting:
            await asyncio.get_running_loop().create_future()
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        return waiting[done.pop()].removeprefix(prefix)


async def _all(steps: Iterable[Awaitable[None]]) -> list[CloudError]:
    """Do all of them side by side; what went wrong, worst first: what only waits is no reason to hide a failure."""
    results = await asyncio.gather(*steps, return_exceptions=True)
    errors: list[CloudError] = []
    for result in results:
        if isinstance(result, CloudError):
            errors.append(result)
        elif isinstance(result, OSError):
            errors.append(CloudError(ErrorKind.ENGINE, str(result)))
        elif isinstance(result, BaseException):
            raise result
    return sorted(errors, key=lambda error: error.kind is ErrorKind.UNAVAILABLE)
