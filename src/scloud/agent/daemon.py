"""The node agent, put together. Everything it touches is given to it, so that a simulator can run it with fakes and
virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from scloud.agent.board import Board
from scloud.agent.calls import Calls
from scloud.agent.ceph import NoCeph
from scloud.agent.ceph_calls import CephCalls
from scloud.agent.console import Consoles
from scloud.agent.disks import Images
from scloud.agent.figures import Figures
from scloud.agent.ha_calls import HaCalls, NoBmc
from scloud.agent.journal import Journal
from scloud.agent.lease import MANAGER_S, Leases
from scloud.agent.metadata import Metadata
from scloud.agent.network import NetworkSettings
from scloud.agent.passages import NoPassages, Passages
from scloud.agent.reconciler import Reconciler
from scloud.agent.session import KnowsManagers, Session
from scloud.agent.stores import NoPools, Pools, Stores
from scloud.agent.streams import Streams
from scloud.agent.transfers import Transfers
from scloud.agent.vms import Seeds, VmSettings
from scloud.drivers.bmc.protocol import Bmc
from scloud.drivers.ceph.protocol import CephControl, CephDaemons
from scloud.drivers.hypervisor.protocol import Hypervisor
from scloud.drivers.netfunc.protocol import NetworkFunctions
from scloud.drivers.probe.fake import FakeProber
from scloud.drivers.probe.protocol import Prober
from scloud.drivers.storage.protocol import Storage
from scloud.drivers.switch.protocol import Switch
from scloud.link.channel import Dialer
from scloud.model.errors import CloudError
from scloud.model.observed import NodeFacts, NodeLoad
from scloud.model.wire import CaRequest, ca_answer

log = logging.getLogger(__name__)

SURVEY_S = 5.0
"""How long the first comparison of the node with the journal may hold up the first connection."""
LOAD_EVERY_S = 2.0


class LoadSource(Protocol):
    def sample(self) -> NodeLoad:
        """The load now; OSError if it cannot be read."""
        ...


@dataclass(frozen=True)
class Drivers:
    hypervisor: Hypervisor
    switch: Switch
    storage: Storage
    functions: NetworkFunctions
    pools: Pools = field(default_factory=NoPools)
    daemons: CephDaemons = field(default_factory=NoCeph)
    control: CephControl = field(default_factory=NoCeph)
    prober: Prober = field(default_factory=FakeProber)
    bmc: Bmc = field(default_factory=NoBmc)


@dataclass(frozen=True)
class Surroundings:
    """What an agent needs besides drivers. `wall` is seconds since 1970, for people and figures only.

    `serve_metadata` needs an event loop that has sockets.
    """

    dial: Dialer
    journal: Journal
    images: Images
    seeds: Seeds
    facts: Callable[[], Awaitable[NodeFacts]]
    load: LoadSource
    wall: Callable[[], float]
    network: NetworkSettings
    vms: VmSettings
    serve_metadata: bool = True
    managers: KnowsManagers | None = None
    passages: Passages = field(default_factory=NoPassages)


class Daemon:
    """`run` until cancelled. Cancelling leaves VMs, flows and services running; the next agent finds them."""

    def __init__(self, drivers: Drivers, around: Surroundings) -> None:
        self._around = around
        self._drivers = drivers
        self._load = NodeLoad()
        self.board = Board()
        self.stores = Stores(drivers.storage, drivers.pools, drivers.hypervisor, around.journal)
        self.reconciler = Reconciler(
            drivers.hypervisor,
            drivers.switch,
            self.stores,
            drivers.functions,
            around.journal,
            self.board,
            around.images,
            around.seeds,
            around.network,
            around.vms,
            drivers.daemons,
            around.passages,
        )
        self._metadata = Metadata(drivers.functions, around.journal) if around.serve_metadata else None
        self.reconciler.network.services.listener = self._metadata
        self._streams = Streams(around.dial, drivers.functions, around.journal, Consoles(), around.vms)
        self.reconciler.vms.gone = self._streams.guest_gone
        reconciler = self.reconciler
        self._transfers = Transfers(around.dial, self.stores, reconciler.disks, reconciler.usage, around.journal)

    async def run(self) -> None:
        """Survey the node, make it as the journal says, and serve the manager."""
        around, drivers = self._around, self._drivers
        loop = asyncio.get_running_loop()
        calls = Calls(
            *(drivers.hypervisor, drivers.switch, self.stores, drivers.functions),
            around.journal,
            self.reconciler.network,
            Figures(drivers.hypervisor, around.wall, loop.time),
            self._streams,
            around.vms,
            drivers.daemons,
            CephCalls(drivers.control),
            self._transfers,
            HaCalls(drivers.prober, drivers.bmc, self.stores, self.reconciler),
        )
        session = Session(
            around.network.node,
            around.dial,
            around.facts,
            lambda: self._load,
            around.journal,
            self.board,
            self.reconciler,
            calls.answer,
            around.managers,
        )
        self.reconciler.disks.connected = session.connected.is_set
        self.reconciler.start()
        leases = Leases(self.stores, around.journal, self.reconciler, self._manager_answers)
        beside = [
            loop.create_task(self._sample(), name="load"),
            loop.create_task(leases.run(), name="leases"),
        ]
        try:
            await self.reconciler.surveyed(SURVEY_S)
            log.info("surveyed: %d objects are desired", len(around.journal.desired))
            await session.run()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self.reconciler.stop()
            await self._around.passages.close()
            await self._transfers.close()
            await self.stores.close()
            await self._streams.close()
            if self._metadata is not None:
                await self._metadata.close()

    async def _manager_answers(self) -> bool:
        """Asked over a connection of its own: one that is broken may look whole for a while."""
        try:
            async with asyncio.timeout(MANAGER_S):
                channel = await self._around.dial()
                try:
                    await channel.send(CaRequest())
                    await channel.receive(ca_answer)
                finally:
                    await channel.close()
        except (OSError, TimeoutError, CloudError):
            return False
        return True

    async def _sample(self) -> None:
        while True:
            try:
                load = self._around.load.sample()
            except OSError as error:
                log.warning("the node's load cannot be read: %s", error)
            else:
                slowest = max(load.storage_ms, self.stores.answer_s() * 1000)
                self._load = load.model_copy(update={"storage_ms": slowest})
            await asyncio.sleep(LOAD_EVERY_S)
