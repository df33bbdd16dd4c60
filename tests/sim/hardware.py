"""What of a node outlives its agent: disks, engines, guests, the journal's file; and the drivers an agent has to them.

A driver gives every call a delay and ends it with an await, so that an agent can die before and after each effect.
What the hypervisor was asked to do it does, whether or not the one who asked is still there: as libvirtd.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from scloud.agent.journal import AnyDesired, MemoryJournal
from scloud.drivers.hypervisor.fake import FakeHost, FakeHypervisor
from scloud.drivers.hypervisor.protocol import DiskSource, DomainSpec, Gone, MoveOptions, MoveRoute
from scloud.drivers.netfunc.fake import FakeNetwork, FakeNetworkFunctions
from scloud.drivers.netfunc.protocol import VpcServiceSpec
from scloud.drivers.storage.fake import FakeDisk
from scloud.drivers.switch.fake import FakeOvs
from scloud.model.desired import DesiredPort, DesiredVm
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.observed import NodeLoad
from scloud.reconcile.network import service_name

from .loop import WORLD
from .wires import Wires

if TYPE_CHECKING:
    from .moves import Migration

IMAGE_MIB = 8
CLIENT_KEY = "a2V5"
"""Of every node, in the storage cluster."""
TRASH_S = 20.0


class LinkedDisk(FakeDisk):
    """Knows which disks running domains have open: throwing one away is an AssertionError inside the driver."""

    host: FakeHost
    pool: FakeDisk

    @property
    def in_use(self) -> set[str]:
        running = (domain for domain in self.host.domains.values() if domain.running)
        opened = {disk.disk for domain in running for disk in domain.disks.values() if not disk.read_only}
        return opened - self.pool.volumes.keys()

    @in_use.setter
    def in_use(self, value: set[str]) -> None:
        assert not value


class PoolDisk(FakeDisk):
    """One pool of all nodes. A disk that domains of two nodes can write to is a violation that the checks look for.

    A node reaches it unless its wires are cut, its key is taken away (`keyless`) or it is fenced.
    """

    hosts: list[FakeHost]
    node_of: dict[int, str]
    wires: Wires
    keyless: set[str]

    def refuse(self, node: str, client: str | None = None) -> None:
        """Nobody of this node can open anything anew; `client` is whose key is shown, the node's if it is not given."""
        if not self.wires.to_storage(node):
            raise CloudError(ErrorKind.UNAVAILABLE, "the storage cluster does not answer")
        if (client or node) in self.keyless:
            raise CloudError(ErrorKind.FORBIDDEN, "the storage cluster does not take this node's key")

    @property
    def in_use(self) -> set[str]:
        return set(self.openers())

    @in_use.setter
    def in_use(self, value: set[str]) -> None:
        assert not value

    def openers(self) -> dict[str, list[str]]:
        """Each disk that running domains can write to, with the VMs."""
        found: dict[str, list[str]] = {}
        for host in self.hosts:
            if self.node_of[id(host)] in self.fenced:
                continue  # whatever runs there writes to nothing any more
            for vm, domain in host.domains.items():
                if domain.running and not domain.paused:
                    for disk in domain.disks.values():
                        if not disk.read_only and disk.disk in self.volumes:
                            found.setdefault(disk.disk, []).append(vm)
        return found


class JournalFile:
    """The bytes on the disk. A process that dies while it writes leaves some of its records, or none."""

    def __init__(self) -> None:
        self.content = MemoryJournal()


class Journal(MemoryJournal):
    """One agent's journal: reads the file when it is made, writes to it, and dies with the agent."""

    def __init__(self, file: JournalFile, rng: Random, flush: Callable[[], float]) -> None:
        super().__init__()
        self._file = file
        self._rng = rng
        self._flush_s = flush
        self._queue: deque[Callable[[], None]] = deque()
        self._take_all(file.content._snapshot())

    async def _persist(self, records: list[dict[str, Any]]) -> None:
        """As the real one: who stops waiting does not stop the write, and what is written counts."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        # one line after the other: death may come between
        cut = self._rng.randrange(len(records)) if len(records) > 1 else 0
        steps: list[Callable[[], None]] = [lambda: self._file.content._take_all(records[cut:])]
        if cut:
            steps.insert(0, lambda: self._file.content._take_all(records[:cut]))
        steps.append(lambda: self._take_all(records))
        steps.append(lambda: None if done.done() else done.set_result(None))
        self._queue.extend(steps)
        if len(self._queue) == len(steps):
            loop.call_later(self._flush_s(), self._step)
        await done

    def _step(self) -> None:
        self._queue.popleft()()
        if self._queue:
            asyncio.get_running_loop().call_soon(self._step)


class Driver:
    """Passes calls on with a delay before and an await after. `trouble` may raise instead of the effect."""

    def __init__(self, inner: Any, delay: Callable[[], float], trouble: Callable[[str], None]) -> None:
        self._inner = inner
        self._delay = delay
        self._trouble = trouble

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name in ("answer_s", "events", "export", "set_secret", "shared"):
            return method

        async def call(*args: Any, **named: Any) -> Any:
            wait = self._delay()
            if wait > 0:
                await asyncio.sleep(wait)
            self._trouble(name)
            result = await method(*args, **named)
            await asyncio.sleep(0)
            return result

        setattr(self, name, call)
        return call


class Libvirt(FakeHypervisor):
    """A domain is active from the beginning of its start, as with libvirt: an agent that dies meanwhile has started it.

    A guest that was asked to shut down does so though nobody waits for it.
    """

    def __init__(
        self,
        host: FakeHost,
        start_s: float,
        started: Callable[[str], None],
        pool: PoolDisk,
        moving: Callable[[str, DomainSpec, MoveRoute, MoveOptions], Migration],
    ) -> None:
        super().__init__(host)
        self._moving = moving
        self._pool = pool
        self._start_s = start_s
        self._started = started

    async def start(self, spec: DomainSpec) -> None:
        before = self.host.domains.get(spec.vm)
        ran = before is not None and before.running
        if not ran:
            self._refuse_disks(spec.disks)
        await super().start(spec)
        if not ran:
            self._started(spec.vm)
            await asyncio.sleep(self._start_s)

    def _refuse_disks(self, disks: Iterable[DiskSource]) -> None:
        """QEMU cannot open an image where its node is kept out: its start fails."""
        node = self._pool.node_of[id(self.host)]
        if any(disk.disk in self._pool.volumes for disk in disks):
            self._pool.refuse(node)
            if node in self._pool.fenced:
                raise CloudError(ErrorKind.ENGINE, "the image cannot be opened: cut off from the storage cluster")

    async def attach_disk(self, vm: str, disk: DiskSource) -> None:
        self._refuse_disks([disk])
        await super().attach_disk(vm, disk)
        self._started(vm)

    async def move(self, vm: str, spec: DomainSpec, route: MoveRoute, options: MoveOptions, gone: Gone) -> None:
        await self._call("move", vm)
        migration = self._moving(vm, spec, route, options)
        await asyncio.shield(migration.given_up)
        await gone()
        await asyncio.shield(migration.done)

    async def resume(self, vm: str) -> None:
        await super().resume(vm)
        self._started(vm)

    async def shutdown(self, vm: str) -> None:
        loop = asyncio.get_running_loop()
        await self._call("shutdown", vm)
        domain = self._existing(vm)
        if not domain.running or domain.deaf or loop.time() < domain.booted:
            return
        pid = domain.pid

        def obey() -> None:
            if self.host.domains.get(vm) is domain and domain.pid == pid:
                self.host.guest_poweroff(vm)

        loop.call_later(self.host.react_s, obey, context=WORLD)


class LinkedFunctions(FakeNetworkFunctions):
    """Its veths are devices of the switch's host."""

    def __init__(self, network: FakeNetwork, switch: FakeOvs) -> None:
        super().__init__(network)
        self._switch = switch

    async def ensure(self, spec: VpcServiceSpec) -> None:
        await super().ensure(spec)
        self._switch.devices.add(spec.port)

    async def remove(self, vpc: str) -> None:
        await super().remove(vpc)
        self._switch.devices.discard(service_name(vpc))


class NodeImages:
    """Images on a node: fetched from the manager once, which takes a while and may fail."""

    def __init__(
        self, cached: set[str], disk: FakeDisk, pool: FakeDisk, delay: Callable[[], float], up: Callable[[], bool]
    ) -> None:
        self._pool = pool
        self._cached = cached
        self._disk = disk
        self._delay = delay
        self._up = up

    @asynccontextmanager
    async def use(self, image: str, sha256: str) -> AsyncIterator[Path]:
        if sha256 not in self._cached:
            if not self._up():
                raise CloudError(
                    ErrorKind.UNAVAILABLE, f"image {image} is not on this node and the manager cannot be reached"
                )
            await asyncio.sleep(self._delay() * 20)
            if not self._up():
                raise ConnectionError("the fetch of the image broke off")
            self._cached.add(sha256)
        path = Path("/fake/images") / sha256
        for disk in (self._disk, self._pool):
            if path not in disk.images:
                disk.add_image(path, IMAGE_MIB, IMAGE_MIB // 2)
        yield path


class NodeSeeds:
    """NoCloud disks."""

    def __init__(self, files: set[str]) -> None:
        self._files = files

    async def build(self, vm: DesiredVm, ports: Sequence[DesiredPort]) -> Path:
        await asyncio.sleep(0)
        self._files.add(vm.id)
        return Path("/fake/seeds") / vm.id

    async def remove(self, vm: str) -> None:
        await asyncio.sleep(0)
        self._files.discard(vm)


class NoLoad:
    def sample(self) -> NodeLoad:
        return NodeLoad()


class Hardware:
    """One machine. `power_failure` is the plug pulled and put back."""

    def __init__(self, rng: Random, tunnel_ip: str, pool: PoolDisk) -> None:
        self.pool = pool
        self.start_s = rng.choice([0.05, 0.3, 2.0])
        self.host = FakeHost(
            boot_s=rng.choice([0.0, 3.0, 12.0]),
            react_s=rng.choice([0.01, 0.5, 4.0]),
            call_timeout_s=15.0,
        )
        self.disk = LinkedDisk(capacity_mib=200, copy_s_per_mib=rng.choice([0.0, 0.02, 0.2]))
        self.disk.host = self.host
        self.disk.pool = pool
        pool.hosts.append(self.host)
        self.kernel = FakeNetwork()
        self.switch = FakeOvs(tunnel_ip)
        self.journal = JournalFile()
        self.images: set[str] = set()
        self.seeds: set[str] = set()
        self.boots = 1

    def power_failure(self) -> None:
        self.host.away = self.host.hung = False
        self.host.power_failure()
        self.switch.taps.clear()
        self.switch.devices.clear()
        self.switch.restart()
        self.kernel.specs.clear()
        self.kernel.broken.clear()
        self.boots += 1

    def repair(self) -> None:
        """Whatever was broken by us works again."""
        self.host.failures.clear()
        self.host.failing.clear()
        self.disk.failures.clear()
        self.disk.failing.clear()
        self.disk.filled_mib = 0
        self.pool.failures.clear()
        self.pool.failing.clear()
        self.kernel.failures.clear()
        self.kernel.failing.clear()
        self.switch.fail.clear()
        if not self.switch.running:
            self.switch.restart()
        if self.host.away or self.host.hung:
            self.host.engine_returns()

    def desired(self) -> Iterable[AnyDesired]:
        return self.journal.content.desired.values()
