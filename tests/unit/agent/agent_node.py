"""A node made of fakes, the agent on it, and a manager that says what it is told to say."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from scloud.agent.daemon import Daemon, Drivers, Surroundings
from scloud.agent.images import ManagerAway
from scloud.agent.journal import AnyDesired, MemoryJournal
from scloud.agent.network import NetworkSettings
from scloud.agent.passages import NoPassages
from scloud.agent.vms import VmSettings
from scloud.drivers.ceph.fake import FakeCeph, FakeCephControl, FakeCephDaemons, FakeNode
from scloud.drivers.hypervisor.fake import FakeHost, FakeHypervisor
from scloud.drivers.hypervisor.protocol import DomainSpec
from scloud.drivers.netfunc.fake import FakeNetwork, FakeNetworkFunctions
from scloud.drivers.netfunc.protocol import VpcServiceSpec
from scloud.drivers.storage.fake import FakeDisk, FakePools, FakeStorage
from scloud.drivers.switch.fake import FakeOvs
from scloud.flows.ir import Match
from scloud.link.channel import Channel
from scloud.link.digest import digest_of
from scloud.link.memory import Conditions, MemoryListener
from scloud.model.desired import (
    DesiredDisk,
    DesiredGroup,
    DesiredPort,
    DesiredSubnet,
    DesiredVm,
    DesiredVpc,
    VmDisk,
    key_of,
)
from scloud.model.errors import ErrorKind
from scloud.model.observed import NodeFacts, NodeLoad, Observed
from scloud.model.specs import Direction, StoredRule
from scloud.model.statuses import Accelerator, Capacity
from scloud.model.wire import (
    Call,
    Desired,
    Hello,
    Refused,
    Removed,
    Reply,
    Report,
    Welcome,
    agent_message,
    first_message,
)
from scloud.reconcile.network import service_name

NODE = "nod-0000000000000001"
IMAGE = "img-0000000000000001"
SHA = "a" * 64
VPC = "vpc-0000000000000001"
SUBNET = "sub-0000000000000001"
GROUP = "sg-0000000000000001"
POOL = "pol-000000000000001"


class LinkedDisk(FakeDisk):
    """Knows by itself which disks running domains have open, so that throwing one away fails the test."""

    host: FakeHost

    @property
    def in_use(self) -> set[str]:  # type: ignore[override]
        running = (domain for domain in self.host.domains.values() if domain.running)
        return {disk.disk for domain in running for disk in domain.disks.values() if not disk.read_only}

    @in_use.setter
    def in_use(self, value: set[str]) -> None:
        assert not value


class LinkedPool(LinkedDisk):
    """A pool that another node may use too."""

    def __init__(self, host: FakeHost) -> None:
        super().__init__(shared=True)
        self.host = host


class LinkedSwitch(FakeOvs):
    """Takes no port away that flows still lead to."""

    async def remove_port(self, name: str) -> None:
        number = next((facts.ofport for facts in await self.ports() if facts.name == name), None)
        leading = [flow for flow in self.flows.flows() if Match("in_port", str(number)) in flow.match]
        assert not leading or name.startswith("s"), f"{name} was removed before its flows"
        await super().remove_port(name)


class LinkedHypervisor(FakeHypervisor):
    """Starts no guest whose nics are not on the switch, with flows."""

    def __init__(self, host: FakeHost, switch: FakeOvs) -> None:
        super().__init__(host)
        self._switch = switch

    async def start(self, spec: DomainSpec) -> None:
        await super().start(spec)
        numbers = {facts.name: facts.ofport for facts in await self._switch.ports()}
        for nic in spec.nics:
            wanted = Match("in_port", str(numbers[nic.tap]))
            assert any(wanted in flow.match for flow in self._switch.flows.flows()), f"{nic.nic} has no flows"


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


class FakeImages:
    """Every image is there at once, unless `missing`, or the manager that has them is `away`."""

    def __init__(self, disk: FakeDisk) -> None:
        self._disk = disk
        self.missing: set[str] = set()
        self.away = False

    @asynccontextmanager
    async def use(self, image: str, sha256: str) -> AsyncIterator[Path]:
        await asyncio.sleep(0)
        if self.away:
            raise ManagerAway(ErrorKind.UNAVAILABLE, "the manager cannot be reached")
        if image in self.missing:
            raise ConnectionError("the manager cannot be reached")
        path = Path("/fake/images") / sha256
        if path not in self._disk.images:
            self._disk.add_image(path, 64, 20)
        yield path


class FakeSeeds:
    def __init__(self) -> None:
        self.built: dict[str, DesiredVm] = {}
        self.takes_s = 0.0

    async def build(self, vm: DesiredVm, ports: Sequence[DesiredPort]) -> Path:
        await asyncio.sleep(self.takes_s)
        self.built[vm.id] = vm
        return Path("/fake/seeds") / vm.id

    async def remove(self, vm: str) -> None:
        await asyncio.sleep(0)
        self.built.pop(vm, None)


class NoLoad:
    def sample(self) -> NodeLoad:
        return NodeLoad()


class Boss:
    """The manager: remembers what it wants, sends what differs, and hears reports."""

    def __init__(self) -> None:
        self.epoch = 1
        self.revision = 0
        self.wanted: dict[str, AnyDesired] = {}
        self.heard: dict[str, Observed] = {}
        self.history: list[Observed] = []
        self.network_revision = 0
        self.hellos: list[Hello] = []
        self.heartbeats = 0
        self.load = NodeLoad()
        self.refusal: Refused | Removed | None = None
        """What every greeting is answered with instead."""
        self.lies: list[str] = []
        """Reports of what cannot be."""
        self._channel: Channel | None = None
        self._replies: dict[int, asyncio.Future[Reply]] = {}

    async def handle(self, channel: Channel) -> None:
        hello = await channel.receive(first_message)
        assert isinstance(hello, Hello)
        self.hellos.append(hello)
        if self.refusal is not None:
            await channel.send(self.refusal)
            return
        self.network_revision = 0
        await channel.send(Welcome(epoch=self.epoch, node=channel.peer))
        self._channel = channel
        await self._tell(
            [item for key, item in self.wanted.items() if hello.have.get(key) != digest_of(item)],
            [key for key in hello.have if key not in self.wanted],
            full=True,
        )
        while True:
            message = await channel.receive(agent_message)
            if isinstance(message, Report):
                if message.network_revision > self.revision:
                    self.lies.append(f"revision {message.network_revision} of {self.revision}")
                self.network_revision = max(self.network_revision, message.network_revision)
                for item in message.items:
                    self.heard[item.key] = item
                    self.history.append(item)
            elif isinstance(message, Reply):
                self._replies.pop(message.call).set_result(message)
            else:
                self.heartbeats += 1
                self.load = message.load

    async def _tell(self, items: list[AnyDesired], drop: list[str], *, full: bool = False) -> None:
        self.revision += 1
        if self._channel is None:
            return
        message = Desired(epoch=self.epoch, revision=self.revision, full=full, set=tuple(items), drop=tuple(drop))
        with contextlib.suppress(ConnectionError):
            await self._channel.send(message)

    async def want(self, *items: AnyDesired, drop: Sequence[str] = ()) -> None:
        for item in items:
            self.wanted[key_of(item)] = item
        for key in drop:
            self.wanted.pop(key, None)
        await self._tell(list(items), list(drop))

    async def change(self, key: str, **fields: Any) -> None:
        """Another generation of an object, with these fields."""
        item = self.wanted[key]
        await self.want(item.model_copy(update={"generation": item.generation + 1, **fields}))

    async def call(self, method: str, **params: Any) -> Reply:
        assert self._channel is not None
        number = len(self.history) + len(self._replies) + 1000
        self._replies[number] = asyncio.get_running_loop().create_future()
        await self._channel.send(Call(epoch=self.epoch, call=number, method=method, params=params))
        return await self._replies[number]

    def settled(self, key: str, state: str) -> bool:
        item, wanted = self.heard.get(key), self.wanted.get(key)
        return (
            item is not None
            and wanted is not None
            and item.generation == wanted.generation
            and item.settled
            and item.state == state
        )


class FakePassages(NoPassages):
    """Who is expected. What had come when it was cut off stays in the hypervisor, where a test has put it."""

    def __init__(self) -> None:
        self.expected: dict[str, tuple[str, DomainSpec]] = {}

    async def expect(self, vm: str, source: str, spec: DomainSpec) -> str:
        self.expected[vm] = (source, spec)
        return "172.31.0.1:7"

    async def forget(self, vm: str) -> None:
        self.expected.pop(vm, None)


class Node:
    """The hardware outlives agents; `start` and `kill` them."""

    def __init__(self) -> None:
        self.host = FakeHost()
        self.disk = LinkedDisk()
        self.disk.host = self.host
        self.pools: dict[str, FakeDisk] = {POOL: LinkedPool(self.host)}
        self.pools[POOL].images = self.disk.images
        self.kernel = FakeNetwork()
        self.switch = LinkedSwitch("172.31.0.1")
        self.ceph = FakeCeph()
        self.ceph_node = FakeNode()
        self.journal = MemoryJournal()
        self.images = FakeImages(self.disk)
        self.seeds = FakeSeeds()
        self.boss = Boss()
        self.passages = FakePassages()
        self.listener = MemoryListener(self.boss.handle)
        self.conditions = Conditions()
        self.boot_id = "boot-1"
        self.logs = Path("/fake/logs")
        self.daemon: Daemon | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        drivers = Drivers(
            LinkedHypervisor(self.host, self.switch),
            self.switch,
            FakeStorage(self.disk),
            LinkedFunctions(self.kernel, self.switch),
            FakePools(self.pools, NODE),
            daemons=FakeCephDaemons(self.ceph, self.ceph_node),
            control=FakeCephControl(self.ceph),
        )
        around = Surroundings(
            dial=lambda: self.listener.dial(NODE, self.conditions),
            journal=self.journal,
            images=self.images,
            seeds=self.seeds,
            facts=self._facts,
            load=NoLoad(),
            wall=lambda: 0.0,
            network=NetworkSettings(NODE, "172.31.0.1", 1450, offload=False),
            vms=VmSettings(self.boot_id, self.logs, Path("/fake/sockets"), 1450, offload=False),
            passages=self.passages,
        )
        self.daemon = Daemon(drivers, around)
        self._task = asyncio.get_running_loop().create_task(self.daemon.run())

    async def kill(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            results = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(results[0], asyncio.CancelledError), results[0]

    async def reboot(self) -> None:
        """The whole machine loses power and comes back."""
        await self.kill()
        self.host.power_failure()
        self.switch.taps.clear()
        self.switch.devices.clear()
        self.switch.restart()
        self.kernel.specs.clear()
        self.kernel.listeners.clear()
        self.boot_id += "+"
        self.start()

    @staticmethod
    async def _facts() -> NodeFacts:
        return NodeFacts(
            hostname="one",
            architecture="x86_64",
            capacity=Capacity(cpus=4, memory_mib=8192, disk_mib=100_000),
            tunnel_ip="172.31.0.1",
            accelerator=Accelerator(kind="fake", reason="a test"),
            agent_version="0",
            datapath="netdev",
            boot_id="boot-1",
        )

    async def until(self, condition: Callable[[], bool], limit_s: float = 300.0) -> None:
        """Wait in virtual time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + limit_s
        while not condition():
            if loop.time() > end:
                raise AssertionError(f"not within {limit_s} s; last heard: {self.boss.heard}")
            await asyncio.sleep(0.05)

    async def settled(self, key: str, state: str, limit_s: float = 300.0) -> None:
        await self.until(lambda: self.boss.settled(key, state), limit_s)


class Defects(logging.Handler):
    """What the agent itself calls a defect and survives; a test does not."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(f"{record.getMessage()} ({record.exc_info[1] if record.exc_info else ''!r})")


@asynccontextmanager
async def running_node() -> AsyncIterator[Node]:
    node, defects = Node(), Defects()
    logging.getLogger("scloud").addHandler(defects)
    node.start()
    try:
        yield node
    finally:
        await node.kill()
        await node.listener.stop()
        logging.getLogger("scloud").removeHandler(defects)
    assert not defects.found, defects.found
    assert not node.boss.lies, node.boss.lies


# --- desired objects


def group() -> DesiredGroup:
    rule = StoredRule(id="rul-1", mark=1, direction=Direction.OUTBOUND, cidr="0.0.0.0/0")
    return DesiredGroup(id=GROUP, generation=1, rules=(rule,))


def vpc() -> DesiredVpc:
    subnet = DesiredSubnet(id=SUBNET, name="front", cidr="10.0.0.0/24", gateway="10.0.0.1", service_ip="10.0.0.2")
    return DesiredVpc(id=VPC, generation=1, name="shop", vni=4711, subnets=(subnet,))


def port(number: int, vm: int | None, node: str = NODE) -> DesiredPort:
    return DesiredPort(
        id=f"nic-{number:016d}",
        generation=1,
        vpc=VPC,
        subnet=SUBNET,
        vm=None if vm is None else vm_id(vm),
        hostname=f"web-{number}",
        mac=f"02:00:00:00:00:{number:02x}",
        ip=f"10.0.0.{number + 10}",
        groups=(GROUP,),
        node_id=node,
        tunnel_ip="172.31.0.1" if node == NODE else "172.31.0.2",
    )


def disk(number: int, *, image: bool = True) -> DesiredDisk:
    return DesiredDisk(
        id=f"dsk-{number:016d}",
        generation=1,
        size_mib=1024,
        image=IMAGE if image else None,
        image_sha256=SHA if image else None,
    )


def vm_id(number: int) -> str:
    return f"vm-{number:016d}"


def vm(number: int, **fields: Any) -> DesiredVm:
    values: dict[str, Any] = {
        "id": vm_id(number),
        "generation": 1,
        "name": f"web-{number}",
        "account": "acc-1",
        "cpus": 1,
        "memory_mib": 256,
        "power": "on",
        "starts": 1,
        "reboots": 0,
        "restart_limit": 2,
        "disks": (VmDisk(id=f"dsk-{number:016d}", system=True),),
        "nics": (f"nic-{number:016d}",),
        **fields,
    }
    return DesiredVm.model_validate(values)


def one_vm(number: int = 1, **fields: Any) -> list[AnyDesired]:
    """A VM with all that belongs to it."""
    return [vpc(), group(), port(number, number), disk(number), vm(number, **fields)]
