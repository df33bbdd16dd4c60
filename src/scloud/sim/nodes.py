"""Many agents in one process: `python -m scloud.sim.nodes --manager HOST:PORT` reads join tokens from standard input.

Each node is the real agent daemon with fake drivers and a journal in memory; it enrols with its token and keeps one TLS
connection, as a real one does. With --thin, nodes are `sim.thin`: nothing but the link. Thin nodes take orders on
standard input, after the tokens and an empty line: "crash NUMBER SECONDS" (the connection breaks, and the node is away
for so long) and "running FILE" (write what runs where, as JSON).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import ssl
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TextIO

from pydantic import TypeAdapter

from scloud import __version__
from scloud.agent import managers
from scloud.agent.daemon import Daemon, Drivers, Surroundings
from scloud.agent.journal import MemoryJournal
from scloud.agent.network import NetworkSettings
from scloud.agent.vms import VmSettings
from scloud.drivers.hypervisor.fake import FakeHypervisor
from scloud.drivers.netfunc.fake import FakeNetwork, FakeNetworkFunctions
from scloud.drivers.netfunc.protocol import VpcServiceSpec
from scloud.drivers.storage.fake import FakeDisk, FakePools, FakeStorage
from scloud.drivers.switch.fake import FakeOvs
from scloud.link import channel, pki
from scloud.link.channel import Channel, Dialer
from scloud.model.desired import DesiredPort, DesiredVm
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.observed import NodeFacts, NodeLoad
from scloud.model.statuses import Accelerator, Capacity
from scloud.model.wire import CaAnswer, CaRequest, Enroll, Enrolled, Refused
from scloud.reconcile.network import service_name
from scloud.sim.thin import ThinNode

IMAGE_MIB = 64
BOOT_S = (0.1, 0.5)
"""Seconds that a thin node's VM takes to start: shortest and longest."""
CAPACITY = Capacity(cpus=64, memory_mib=512 * 1024, disk_mib=4 * 1024 * 1024)
_ca_answer: TypeAdapter[CaAnswer] = TypeAdapter(CaAnswer)
_enrolled: TypeAdapter[Enrolled | Refused] = TypeAdapter(Enrolled | Refused)


class _Images:
    """Every image is there at once."""

    def __init__(self, disk: FakeDisk) -> None:
        self._disk = disk

    @asynccontextmanager
    async def use(self, image: str, sha256: str) -> AsyncIterator[Path]:
        path = Path("/simulated") / sha256
        for disk in (self._disk, *_POOLS.values()):
            if path not in disk.images:
                disk.add_image(path, IMAGE_MIB, 1)
        yield path


class _Seeds:
    async def build(self, vm: DesiredVm, ports: Sequence[DesiredPort]) -> Path:
        return Path("/simulated/seeds") / vm.id

    async def remove(self, vm: str) -> None:
        return None


class _Load:
    def sample(self) -> NodeLoad:
        return NodeLoad(cpu=0.1, memory=0.1)


class _Functions(FakeNetworkFunctions):
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


async def enrol(host: str, port: int, token: str) -> tuple[str, ssl.SSLContext]:
    """(the node's id, its TLS context). CloudError if the manager refuses."""
    node, secret, pin = token.split(".")
    first = await channel.dial(host, port, pki.unverified_context())
    try:
        await first.send(CaRequest())
        ca = (await first.receive(_ca_answer)).ca
    finally:
        await first.close()
    if pki.pin_of(ca) != pin:
        raise CloudError(ErrorKind.UNAUTHENTICATED, "the manager's CA is not the token's")
    key, request = pki.make_request(node)
    second = await channel.dial(host, port, pki.client_context(ca))
    try:
        await second.send(Enroll(node=node, secret=secret, csr=request))
        answer = await second.receive(_enrolled)
    finally:
        await second.close()
    if isinstance(answer, Refused):
        raise CloudError(ErrorKind(answer.error[0]), answer.error[1])
    return node, _context(ca, answer.certificate, key)


def _context(ca: str, certificate: str, key: str) -> ssl.SSLContext:
    """From PEM texts; OpenSSL reads key and certificate from files only."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("cert.pem", "key.pem")]
        for path, text in zip(paths, (certificate, key), strict=True):
            path.write_text(text)
        return pki.client_context(ca, *paths)


_POOLS: dict[str, FakeDisk] = {}
"""Of all nodes of this process, by id."""


def _facts(number: int) -> NodeFacts:
    return NodeFacts(
        hostname=f"sim-{number}",
        architecture="x86_64",
        capacity=CAPACITY,
        tunnel_ip=f"172.{16 + number // 65025}.{number // 255 % 255}.{1 + number % 255}",
        accelerator=Accelerator(kind="fake", reason="simulated"),
        agent_version=__version__,
        datapath="fake",
        boot_id="simulated",
    )


def make_daemon(number: int, node: str, dial: Dialer) -> Daemon:
    """A whole node of fakes."""
    facts = _facts(number)
    tunnel_ip = facts.tunnel_ip
    switch = FakeOvs(tunnel_ip)
    disk = FakeDisk(capacity_mib=CAPACITY.disk_mib)
    drivers = Drivers(
        FakeHypervisor(), switch, FakeStorage(disk), _Functions(FakeNetwork(), switch), FakePools(_POOLS, node)
    )

    async def tell_facts() -> NodeFacts:
        return facts

    around = Surroundings(
        dial=dial,
        journal=MemoryJournal(),
        images=_Images(disk),
        seeds=_Seeds(),
        facts=tell_facts,
        load=_Load(),
        wall=time.time,
        network=NetworkSettings(node, tunnel_ip, 1450, False),
        vms=VmSettings("simulated", Path("/simulated/logs"), Path("/simulated/sockets"), 1450, False),
        serve_metadata=False,
    )
    return Daemon(drivers, around)


def make_thin(number: int, node: str, dial: Dialer) -> ThinNode:
    """A node that is nothing but its end of the link."""
    return ThinNode(node, dial, _facts(number), BOOT_S, random.Random(number))


Maker = Callable[[int, str, Dialer], Daemon | ThinNode]
"""Of (number, id, how to reach a manager)."""


def _dialer(addresses: Sequence[tuple[str, int]], context: ssl.SSLContext) -> Dialer:
    """Begins with another manager each time, if there are several."""
    turns = itertools.cycle(addresses)
    limit = managers.EACH_S if len(addresses) > 1 else 60.0

    async def dial() -> Channel:
        return await channel.dial(*next(turns), context, limit)

    return dial


async def run(addresses: Sequence[tuple[str, int]], tokens: Sequence[str], orders: TextIO | None) -> None:
    """Enrol and run one node for each token, until cancelled; thin ones if there are `orders` to read."""
    gate = asyncio.Semaphore(16)
    make: Maker = make_daemon if orders is None else make_thin

    async def one(number: int, token: str) -> Daemon | ThinNode:
        async with gate:
            node, context = await enrol(*addresses[0], token)
        return make(number, node, _dialer(addresses, context))

    nodes = await asyncio.gather(*(one(number, token) for number, token in enumerate(tokens)))
    async with asyncio.TaskGroup() as group:
        for node in nodes:
            group.create_task(node.run())
        if orders is not None:
            await _obey(orders, [node for node in nodes if isinstance(node, ThinNode)], group)


async def _obey(orders: TextIO, nodes: Sequence[ThinNode], group: asyncio.TaskGroup) -> None:
    """Until standard input ends."""
    while line := await asyncio.to_thread(orders.readline):
        match line.split():
            case ["crash", number, seconds]:
                group.create_task(nodes[int(number)].crash(float(seconds)))
            case ["running", path]:
                _write_running(Path(path), nodes)


def _write_running(path: Path, nodes: Sequence[ThinNode]) -> None:
    """Whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({node.name: sorted(node.running) for node in nodes}))
    unfinished.rename(path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scloud.sim.nodes", description=__doc__)
    parser.add_argument("--manager", required=True, action="append", help="HOST:PORT of a manager's link")
    parser.add_argument("--thin", action="store_true", help="nodes that are nothing but the link")
    options = parser.parse_args()
    parts = [address.rpartition(":") for address in options.manager]
    addresses = [(host, int(port)) for host, _, port in parts]
    tokens = list(iter(lambda: sys.stdin.readline().strip(), ""))
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(addresses, tokens, sys.stdin if options.thin else None))
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
