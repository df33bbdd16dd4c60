"""Nodes of a storage cluster, fake or real, and the means to disturb them."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from scloud.drivers.ceph import keyring
from scloud.drivers.ceph.control import RadosControl
from scloud.drivers.ceph.daemons import NodeDaemons
from scloud.drivers.ceph.fake import FakeCeph, FakeCephControl, FakeCephDaemons, FakeNode
from scloud.drivers.ceph.protocol import Access, CephControl, CephDaemons, DaemonFacts
from scloud.drivers.supervisor.identity import Identity
from scloud.drivers.supervisor.process import ProcessSupervisor
from scloud.model.desired import DesiredStore, MgrDaemon, MonDaemon, OsdDaemon
from scloud.model.errors import CloudError, ErrorKind

OSD_MIB = 2048
_numbers = itertools.count(os.getpid() % 200)


def new_key() -> str:
    return keyring.secret(os.urandom(keyring.SECRET_BYTES), int(time.time()))


class Host(Protocol):
    """One node."""

    daemons: CephDaemons

    def reopen(self) -> CephDaemons:
        """A new driver over the same node, as after a crash of the first."""
        ...

    async def kill(self, name: str) -> None: ...

    def holds(self, path: str) -> bool:
        """Whether an OSD's bytes are on a device."""
        ...


class FakeBenchHost:
    def __init__(self, ceph: FakeCeph) -> None:
        self._ceph = ceph
        self._node = FakeNode()
        self.daemons: CephDaemons = self.reopen()

    def reopen(self) -> CephDaemons:
        self.daemons = self._fake = FakeCephDaemons(self._ceph, self._node)
        return self.daemons

    async def kill(self, name: str) -> None:
        self._fake.kill(CLUSTER, name)

    def holds(self, path: str) -> bool:
        return self._node.devices.get(path, "") != ""


class RealHost:
    """On an address of its own of the loopback device."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address
        self.supervisor = ProcessSupervisor(folder / "run", folder / "log")
        self.daemons: CephDaemons = self.reopen()

    def reopen(self) -> CephDaemons:
        self.supervisor = ProcessSupervisor(self.folder / "run", self.folder / "log")
        self.daemons = NodeDaemons(
            *(self.folder / name for name in ("ceph", "s", "log")), self.supervisor, lambda: self.address
        )
        return self.daemons

    async def kill(self, name: str) -> None:
        facts = {item.name: item for item in await self.daemons.daemons()}
        pid = facts[name].pid
        assert pid is not None, f"{name} does not run"
        known = Identity.of(pid)
        assert known is not None
        os.kill(pid, signal.SIGKILL)
        assert await known.ended(10.0)

    def holds(self, path: str) -> bool:
        file = Path(path)
        if not file.exists():
            return False
        with file.open("rb") as device:
            return device.read(22) == b"bluestore block device"

    async def close(self) -> None:
        for item in await self.supervisor.processes():
            await self.supervisor.stop(item.name, 0.5)


CLUSTER = "sc-0000000000000001"


class Bench:
    """`names` are nodes with a monitor each; `stores` what each of them is to be."""

    def __init__(self, names: Sequence[str] = ("n1", "n2", "n3"), osds: int = 2, managers: int = 1) -> None:
        number = next(_numbers)
        self.folder = Path(tempfile.mkdtemp(prefix="scloud-ceph-"))
        self.first_port = 18000 + 210 * (number % 60)
        self.addresses = {name: f"127.66.{number % 250}.{i}" for i, name in enumerate(names, 1)}
        self.keys = {entity: new_key() for entity in ("mon.", "client.admin", "client.bootstrap-osd")}
        self.mgr_keys = {name: new_key() for name in names[:managers]}
        initial = tuple((name, f"{address}:{self.first_port}") for name, address in self.addresses.items())
        mon_host = ",".join(f"[v2:{address}]" for _, address in initial)
        fsid = str(uuid.uuid4())
        self.access = Access(cluster=CLUSTER, fsid=fsid, mon_host=mon_host, user="admin", key=self.keys["client.admin"])
        self.stores: dict[str, DesiredStore] = {}
        for name in names:
            daemons: list[Any] = [MonDaemon(name=name, address=dict(initial)[name])]
            if name in self.mgr_keys:
                daemons.append(MgrDaemon(name=name, key=self.mgr_keys[name]))
            daemons += [self.osd(name, index) for index in range(osds)]
            self.stores[name] = DesiredStore(
                id=f"{CLUSTER}.{name}",
                generation=1,
                cluster=CLUSTER,
                fsid=fsid,
                mon_host=mon_host,
                client=f"scloud-{name}",
                first_port=self.first_port,
                initial_monitors=initial,
                mon_key=self.keys["mon."],
                admin_key=self.keys["client.admin"],
                bootstrap_key=self.keys["client.bootstrap-osd"],
                daemons=tuple(daemons),
            )
        self.hosts: dict[str, Any] = {}
        self.control: CephControl

    def osd(self, node: str, index: int, **more: Any) -> OsdDaemon:
        values = {
            "uuid": str(uuid.uuid4()),
            "key": new_key(),
            "path": str(self.folder / node / f"osd-{index}.img"),
            "size_mib": OSD_MIB,
            "media": ("ssd", "hdd")[index % 2],
            "crush": {"root": "default", "rack": f"rack-{node}", "host": node},
            **more,
        }
        return OsdDaemon(**values)

    def osds(self, node: str) -> list[OsdDaemon]:
        return [item for item in self.stores[node].daemons if isinstance(item, OsdDaemon)]

    def change(self, node: str, *daemons: Any) -> DesiredStore:
        """The node's store with these daemons instead."""
        store = self.stores[node]
        self.stores[node] = store.model_copy(update={"daemons": daemons, "generation": store.generation + 1})
        return self.stores[node]

    async def ensure(self, node: str) -> dict[str, int]:
        numbers: dict[str, int] = await self.hosts[node].daemons.ensure(self.stores[node])
        return numbers

    async def facts(self, node: str) -> dict[str, DaemonFacts]:
        return {item.name: item for item in await self.hosts[node].daemons.daemons()}

    async def ask(self, prefix: str, data: bytes = b"", target: str = "mon", **more: Any) -> Any:
        return await self.control.command(self.access, target, {"prefix": prefix, **more}, data)

    async def tell_managers(self) -> None:
        """The manager's work: the cluster is told of its managers' keys."""
        caps = ["mon", "allow profile mgr", "osd", "allow *", "mds", "allow *"]
        for name, key in self.mgr_keys.items():
            entry = keyring.entry(f"mgr.{name}", key)
            await self.ask("auth add", entry.encode(), entity=f"mgr.{name}", caps=caps)

    async def up(self) -> dict[str, int]:
        """Everything started, every OSD up; all OSDs' numbers."""

        async def manage() -> None:
            await until(lambda: self.ask("fsid"), "a quorum")
            await self.tell_managers()

        async def one(node: str) -> dict[str, int]:
            return await until(lambda: self.ensure(node), f"the daemons of {node}")

        *found, _ = await asyncio.gather(*(one(node) for node in self.stores), manage())
        await self.healthy()
        return {uuid: number for numbers in found for uuid, number in (numbers or {}).items()}

    async def healthy(self) -> None:
        total = sum(not osd.absent for node in self.stores for osd in self.osds(node))

        async def look() -> Any:
            status = await self.ask("status")
            return status if status["osdmap"]["num_up_osds"] == total else None

        await until(look, f"{total} OSDs up")

    async def close(self) -> None:
        await self.control.close()
        for host in self.hosts.values():
            if isinstance(host, RealHost):
                await host.close()
        shutil.rmtree(self.folder)


def fake_bench(**options: Any) -> Bench:
    bench = Bench(**options)
    ceph = FakeCeph()
    bench.hosts = {name: FakeBenchHost(ceph) for name in bench.stores}
    bench.control = FakeCephControl(ceph)
    return bench


def real_bench(**options: Any) -> Bench:
    bench = Bench(**options)
    bench.hosts = {name: RealHost(bench.folder / name, bench.addresses[name]) for name in bench.stores}
    bench.control = RadosControl()
    return bench


async def until(step: Any, what: str, seconds: float = 60.0) -> Any:
    """The first answer of a step that is not None; what it waits for may be unavailable meanwhile."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    last: object = None
    while loop.time() < deadline:
        try:
            last = await step()
            if last is not None:
                return last
        except CloudError as error:
            if error.kind is not ErrorKind.UNAVAILABLE:
                raise
            last = error
        await asyncio.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what}; last: {last}")
