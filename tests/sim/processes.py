"""The processes of the cloud: the manager on its database, and an agent on each node, killed and started again."""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from scloud.agent.daemon import Daemon, Drivers, Surroundings
from scloud.agent.network import NetworkSettings
from scloud.agent.vms import VmSettings
from scloud.controllers.image_import import ImportedImage, Progress
from scloud.controllers.link_server import LinkServer
from scloud.controllers.manager import Manager
from scloud.controllers.settings import Settings
from scloud.controllers.storage import rows
from scloud.drivers.ceph.protocol import Access, DaemonFacts
from scloud.drivers.hypervisor.protocol import DomainSpec, MoveOptions, MoveRoute
from scloud.drivers.probe.fake import FakeProber
from scloud.drivers.storage.fake import FakeStorage
from scloud.link.channel import Channel
from scloud.model.desired import DesiredStore, StorePool
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import Kind
from scloud.model.observed import NodeFacts
from scloud.model.specs import ImageSpec
from scloud.model.statuses import Accelerator, Capacity
from scloud.model.storage import StorageClusterSpec
from scloud.store import secrets
from scloud.store.database import Store, Tx
from scloud.store.lease import Holder, take_lease
from scloud.store.resources import all_of

from .hardware import (
    CLIENT_KEY,
    IMAGE_MIB,
    TRASH_S,
    Driver,
    Hardware,
    Libvirt,
    LinkedFunctions,
    NodeImages,
    NodeSeeds,
    NoLoad,
    PoolDisk,
)
from .link import SimChannel, SimListener, Wire
from .loop import WORLD, Life, SimLoop
from .moves import Migration, Road

if TYPE_CHECKING:
    from .world import World

T = TypeVar("T")
SETTINGS = Settings(trash_hours=TRASH_S / 3600)


class LivingStore(Store):
    """One manager's way to the database. The commit is one step, hearing of it the next: it may die in between."""

    def __init__(self, base: Store, loop: SimLoop, rng: Random) -> None:
        self.__dict__.update(base.__dict__)
        self.listeners: list[Any] = []
        self._sim = loop
        self._slow = rng
        self._last = 0.0

    async def write(self, fn: Callable[[Tx], T]) -> T:
        future: asyncio.Future[T] = self._sim.create_future()
        now = self._sim.time()
        delay = 0.02 * self._slow.random() if self._slow.random() < 0.1 else 0.0
        self._last = max(now + delay, self._last)
        if self._last <= now:
            self._sim.call_soon(self._write_one, fn, future)
        else:
            self._sim.call_at(self._last, self._write_one, fn, future)
        return await future

    def _write_one(self, fn: Callable[[Tx], Any], future: asyncio.Future[Any]) -> None:
        try:
            result, touched = self.transact(fn)
        except Exception as error:
            self._sim.call_soon(self._answer, future, None, error, {})
        else:
            self._sim.call_soon(self._answer, future, result, None, touched)

    def _answer(
        self, future: asyncio.Future[Any], result: Any, error: Exception | None, touched: dict[str, None]
    ) -> None:
        if not future.done():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        self._notify(touched)

    def commit(self, fn: Callable[[Tx], T], life: Life) -> T:
        """A request of the API: committed now, heard of in the manager's next step."""
        result, touched = self.transact(fn)
        self._sim.call_soon(self._notify, touched, context=life.context)
        return result


class ImageShelf:
    """The manager's image files, imported in a few steps; a source with `bad` in it cannot be."""

    def __init__(self, files: set[str], delay: Callable[[], float]) -> None:
        self._files = files
        self._delay = delay

    async def bring_in(self, image: str, spec: ImageSpec, progress: Progress) -> ImportedImage:
        for percent in (20, 60):
            await asyncio.sleep(self._delay() * 10)
            progress(percent, "importing")
        if "bad" in spec.source:
            raise CloudError(ErrorKind.INVALID, "the source is no image")
        self._files.add(image)
        return ImportedImage(sha256=image[-16:].rjust(64, "0"), size_mib=IMAGE_MIB, file_mib=IMAGE_MIB // 2)

    async def delete(self, image: str) -> None:
        await asyncio.sleep(self._delay())
        self._files.discard(image)


class Unwatched:
    """Instead of what looks after storage clusters: the simulation has a pool, and no cluster behind it. Keys are given
    back to nodes that are let in again."""

    def __init__(self, store: Store, pool: PoolDisk) -> None:
        self._store = store
        self._pool = pool
        self._changed = asyncio.Event()

    async def run(self) -> None:
        while True:
            self._changed.clear()
            await self._store.write(self._grant)
            await self._changed.wait()

    def touched(self, kind: str, id: str) -> None:
        if kind == Kind.STORAGE_CLUSTER:
            self._changed.set()

    def _grant(self, tx: Tx) -> None:
        for row in all_of(tx, Kind.STORAGE_CLUSTER):
            known = secrets.secrets_of(tx, row.id)
            for node in row.spec_as(StorageClusterSpec).nodes:
                if rows.fenced_secret(node) not in known and rows.granted_secret(node) not in known:
                    self._pool.keyless.discard(node)
                    secrets.put(tx, row.id, rows.granted_secret(node), '["p"]')
                    tx.touch(row.key)

    def reported(self, node: str, items: object) -> None:
        pass


class NoDaemons:
    """A node without storage daemons."""

    async def ensure(self, store: DesiredStore) -> dict[str, int]:
        return {}

    async def remove(self, store: DesiredStore) -> None:
        pass

    async def numbers(self, store: DesiredStore) -> dict[str, int]:
        return {}

    async def died(self, cluster: str) -> str:
        await asyncio.get_running_loop().create_future()
        return ""

    async def daemons(self) -> list[DaemonFacts]:
        return []


class Pools:
    """Each agent opens the one pool anew."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        self._make = make

    def open(self, store: DesiredStore, pool: StorePool) -> Any:
        return self._make(store.client)


class Control:
    """Commands to the cluster: to take a node's key away, and the audit's questions."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def command(
        self, access: Access, target: str, command: dict[str, Any], data: bytes = b"", timeout_s: float = 30.0
    ) -> Any:
        await asyncio.sleep(self._world.short())
        if command["prefix"] in ("osd dump", "auth ls"):
            return {"osds": [], "auth_dump": []}  # an audit's questions: it has no daemons, and no keys of strangers
        if command["prefix"] == "auth get-key":
            name = str(command["entity"]).removeprefix("client.")
            if name in self._world.pool_disk.keyless:
                raise CloudError(ErrorKind.NOT_FOUND, f"auth get-key: don't have client.{name}")
            return {"key": CLIENT_KEY}
        assert command["prefix"] == "auth del", command
        self._world.pool_disk.keyless.add(str(command["entity"]).removeprefix("client."))
        return ""

    async def close(self) -> None:
        pass


class NoAuthority:
    """Nodes of the simulation have joined already."""

    ca = "ca"

    def issue(self, node: str, csr: str) -> str:
        raise CloudError(ErrorKind.FORBIDDEN, "nobody joins")


class ManagerProcess:
    """At most one at a time, as the lock on the database's folder has it."""

    def __init__(self, world: World, base: Store) -> None:
        self._world = world
        self._base = base
        self.listener = SimListener(world.loop)
        self.files: set[str] = set()
        self.life: Life | None = None
        self.manager: Manager | None = None
        self.store: LivingStore | None = None
        self.epoch = 0
        self.up_since = 0.0

    @property
    def up(self) -> bool:
        """Whether it takes requests."""
        return self.life is not None and not self.life.paused and self.listener.handler is not None

    def start(self) -> None:
        world = self._world
        epoch = self._base.write_now(
            lambda tx: take_lease(tx, Holder(id=f"manager-{self.epoch + 1}", api="", link=""), 10.0, alone=True)
        )
        assert epoch is not None and epoch > self.epoch
        self.epoch = epoch
        self.up_since = world.loop.time()
        life = self.life = Life(f"manager-{epoch}", world.loop)
        life.on_death = self._died
        self.store = LivingStore(self._base, world.loop, world.rng)
        self.manager = Manager(self.store, ImageShelf(self.files, world.short), epoch=epoch, settings=SETTINGS)
        self.manager.storage = Unwatched(self.store, world.pool_disk)  # type: ignore[assignment]
        world.note(f"manager starts, epoch {epoch}")
        life.spawn(self._main(life, self.manager))

    async def _main(self, life: Life, manager: Manager) -> None:
        running = asyncio.get_running_loop().create_task(manager.run())
        ready = asyncio.get_running_loop().create_task(manager.ready.wait())
        await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
        server = LinkServer(manager, NoAuthority(), self._no_images)
        self.listener.open(life, server.handle)
        await asyncio.wait([running])
        error = running.exception() if not running.cancelled() else None
        self._world.violation(f"the manager ended by itself: {error!r}", error)

    @staticmethod
    async def _no_images(channel: Channel, image: str) -> None:
        raise CloudError(ErrorKind.NOT_FOUND, f"no bytes of {image} are kept")

    def _died(self) -> None:
        self._world.note(f"manager of epoch {self.epoch} dies")
        self.listener.manager_died()
        self.life = self.manager = self.store = None


class AgentProcess:
    """A node: its hardware, its wire, and its agent while one lives."""

    def __init__(self, world: World, number: int, id: str) -> None:
        self._world = world
        self.id = id
        self.name = f"n{number}"
        self.tunnel_ip = f"172.31.0.{number}"
        self.hardware = Hardware(world.rng, self.tunnel_ip, world.pool_disk)
        self.wire = Wire(world.loop, delay=world.short, breaks=self._breaks, encode=world.encode)
        self.life: Life | None = None
        self.daemon: Daemon | None = None
        self.road: Road | None = None
        self.break_rate = 0.0
        self.trouble_rate = 0.0
        self._ends: list[SimChannel] = []
        self.off = False
        """Without power until somebody puts it back."""
        world.pool_disk.node_of[builtins.id(self.hardware.host)] = id
        self.cpus = world.rng.choice([2, 4])

    def _breaks(self) -> bool:
        return self.break_rate > 0 and self._world.rng.random() < self.break_rate

    def _trouble(self, method: str) -> None:
        if self.trouble_rate > 0 and self._world.rng.random() < self.trouble_rate:
            raise CloudError(ErrorKind.ENGINE, f"{method}: the engine failed, as the simulation has it")

    def start(self) -> None:
        world, machine = self._world, self.hardware
        assert not self.off
        life = self.life = Life(f"agent-{self.name}", world.loop)
        life.on_death = lambda: self._died(life)
        boot = f"boot-{machine.boots}"
        host = Libvirt(
            machine.host, machine.start_s, lambda vm: world.started(self, vm), world.pool_disk, self._begin_move
        )
        plain = (machine.switch, FakeStorage(machine.disk), LinkedFunctions(machine.kernel, machine.switch))
        base = [Driver(inner, world.short, self._trouble) for inner in (host, *plain)]
        drivers = Drivers(
            *base,
            pools=Pools(self._open_pool),
            daemons=NoDaemons(),
            control=Control(world),
            prober=FakeProber(self._hears),
        )
        around = Surroundings(
            dial=self._dial,
            journal=world.make_journal(machine.journal),
            images=NodeImages(machine.images, machine.disk, world.pool_disk, world.short, self._reaches),
            seeds=NodeSeeds(machine.seeds),
            facts=self._facts,
            load=NoLoad(),
            wall=world.clock,
            network=NetworkSettings(self.id, self.tunnel_ip, 1450, offload=False),
            vms=VmSettings(boot, Path("/fake/logs"), Path("/fake/sockets"), 1450, offload=False),
            serve_metadata=False,
            passages=Road(world, self),
        )
        self.daemon = Daemon(drivers, around)
        world.note(f"agent of {self.name} starts")
        life.spawn(self._main(self.daemon))

    def _begin_move(self, vm: str, spec: DomainSpec, route: MoveRoute, options: MoveOptions) -> Migration:
        move = Migration(self._world, vm, spec, route, options)
        self._world.loop.create_task(move.run(), context=WORLD)
        return move

    def _open_pool(self, client: str) -> Any:
        def trouble(method: str) -> None:
            self._world.pool_disk.refuse(self.id, client)
            self._trouble(method)

        return Driver(FakeStorage(self._world.pool_disk, self.id), self._world.short, trouble)

    def _hears(self, address: str) -> bool:
        """Whether a machine answers on the wire; agents have no part in it."""
        world = self._world
        there = next((node for node in world.nodes if node.tunnel_ip == address), None)
        return there is not None and not there.off and world.wires.joins(self.id, there.id)

    def cut_off(self) -> None:
        """From everything: the manager, the other nodes, the storage."""
        self.wire.part()
        self._world.wires.alone.add(self.id)

    def mend(self) -> None:
        if self.wire.dropping:
            self.wire.heal()
        self._world.wires.mend(self.id)

    async def _main(self, daemon: Daemon) -> None:
        try:
            await daemon.run()
        except Exception as error:
            self._world.violation(f"the agent of {self.name} ended by itself: {error!r}", error)
        else:
            self._world.violation(f"the agent of {self.name} ended by itself", None)

    def _reaches(self) -> bool:
        return self._world.manager.up and not self.wire.dropping

    async def _dial(self) -> Channel:
        channel = await self._world.manager.listener.connect(self.id, self.wire)
        self._ends = [end for end in self._ends if not end.gone]
        self._ends.append(channel)
        return channel

    async def _facts(self) -> NodeFacts:
        return NodeFacts(
            hostname=self.name,
            architecture="x86_64",
            capacity=Capacity(cpus=self.cpus, memory_mib=4096, disk_mib=200),
            tunnel_ip=self.tunnel_ip,
            accelerator=Accelerator(kind="fake", reason="simulated"),
            agent_version="0",
            datapath="netdev",
            boot_id=f"boot-{self.hardware.boots}",
        )

    def _died(self, life: Life) -> None:
        if self.life is not life:
            return
        self._world.note(f"agent of {self.name} dies")
        self.life = self.daemon = None
        ends, self._ends = self._ends, []
        for end in ends:
            end.drop()

    def reboot(self) -> None:
        """Without warning: whoever was connected hears nothing of it."""
        self._world.note(f"{self.name} loses power")
        ends, self._ends = self._ends, []
        for end in ends:
            end.vanish()
        if self.life is not None:
            self.life.kill()
            self.life = self.daemon = None
        self.hardware.power_failure()
