"""Makes the node as its journal says: disks, network and VMs, each object by itself, for as long as it runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from scloud.agent.board import Board
from scloud.agent.ceph import Ceph
from scloud.agent.deadlines import within
from scloud.agent.disks import Disks, Images
from scloud.agent.journal import AnyDesired, Journal
from scloud.agent.network import Network, NetworkSettings
from scloud.agent.passages import Passages
from scloud.agent.stores import Stores
from scloud.agent.usage import Usage, users_of_disk
from scloud.agent.vms import Seeds, Vms, VmSettings
from scloud.agent.work import Workers
from scloud.drivers.ceph.protocol import CephDaemons
from scloud.drivers.hypervisor.protocol import Hypervisor
from scloud.drivers.netfunc.protocol import NetworkFunctions
from scloud.drivers.switch.protocol import Switch
from scloud.model.desired import DesiredDisk, DesiredPort, DesiredStore, DesiredVm, key_of
from scloud.model.errors import CloudError
from scloud.model.observed import Observed
from scloud.model.wire import Desired

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 15.0
"""How often everything is listed, in case an event was missed."""
EVENTS_AGAIN_S = 1.0


class Reconciler:
    """One for each agent: `start` it, `take` desired state, `stop` it. Stopping changes nothing on the node."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        switch: Switch,
        stores: Stores,
        functions: NetworkFunctions,
        journal: Journal,
        board: Board,
        images: Images,
        seeds: Seeds,
        network: NetworkSettings,
        vms: VmSettings,
        daemons: CephDaemons,
        passages: Passages,
    ) -> None:
        self._hypervisor = hypervisor
        self._node = network.node
        self._journal = journal
        self._board = board
        self.usage = Usage()
        self._stores = stores
        self.disks = Disks(stores, journal, board, self.usage, images, self._wake)
        self.network = Network(switch, functions, journal, board, self.usage, network, self._wake)
        self.vms = Vms(
            *(hypervisor, journal, board, self.usage, self.disks, self.network, seeds, vms, self._wake, passages)
        )
        self.ceph = Ceph(daemons, journal, board)
        self._sweeps = Workers(self._sweep)
        self._events: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._seen: dict[str, asyncio.Event] = {"domains": asyncio.Event(), "switch": asyncio.Event()}

    def start(self) -> None:
        """Begin. What already runs is found, not started again."""
        self._events = asyncio.get_running_loop().create_task(self._watch(), name="hypervisor events")
        for sweep in self._seen:
            self._sweeps.wake(sweep)
        self.ceph.start()

    async def surveyed(self, timeout_s: float) -> None:
        """Return once what runs is known and was compared with what is desired, or after so many seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                for event in self._seen.values():
                    await event.wait()
                for pool in (self.network.workers, self.disks.workers, self.vms.workers):
                    if tasks := pool.tasks():
                        await asyncio.wait(tasks)
        except TimeoutError:
            log.warning("the node could not be surveyed within %g s; going on meanwhile", timeout_s)

    async def stop(self) -> None:
        """End all tasks; VMs, flows and services stay as they are."""
        for task in (self._events, self._leaving):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self.ceph.stop()
        await self.vms.departures.close()
        for pool in (self._sweeps, self.vms.workers, self.disks.workers, self.network.workers):
            await pool.stop()

    async def take(self, message: Desired) -> None:
        """Journal what the manager says, then act on it. `CloudError` when the journal cannot be written.

        A connection that breaks meanwhile does not stop it: what is journalled would never be told again, and what is
        told by the next connection must come after it.
        """
        taking = asyncio.get_running_loop().create_task(self._take(message))
        try:
            await asyncio.shield(taking)
        except asyncio.CancelledError:
            await asyncio.wait([taking])
            raise

    async def _take(self, message: Desired) -> None:
        touched = [*(key_of(item) for item in message.set), *message.drop]
        before = {key: self._journal.desired.get(key) for key in touched}
        await self._journal.apply(message.set, message.drop)
        for key in touched:
            self._desired_changed(key, before[key], self._journal.desired.get(key))
        self.network.set_target(message.revision)
        if message.full:
            self._sweeps.wake("strangers", urgent=True)

    async def evict(self, vms: Iterable[str]) -> list[str]:
        """Rid the node of these VMs, domains and taps, whatever it was told of them; their disks are left alone.

        Returns when none of them is left, with the keys of which it is to be told anew if they are wanted here; until
        then none is started.
        """
        wanted = set(vms)
        marked: list[DesiredVm | DesiredPort] = []
        for item in self._journal.desired.values():
            if isinstance(item, DesiredVm) and item.id in wanted:
                marked.append(item.model_copy(update={"power": "absent", "move_in": None, "move_out": None}))
            elif isinstance(item, DesiredPort) and item.vm in wanted and item.on(self._node):
                marked.append(item.model_copy(update={"absent": True}))
        gone = [asyncio.ensure_future(self._board.until(key_of(item), _is_absent)) for item in marked]
        try:
            before = {key_of(item): self._journal.desired.get(key_of(item)) for item in marked}
            await self._journal.apply(marked, [])
            for item in marked:
                self._desired_changed(key_of(item), before[key_of(item)], item)
            unknown = wanted - {item.id for item in marked}
            for facts in await within("query", "listing the node's VMs", self._hypervisor.domains()):
                if facts.vm in unknown:
                    await within("power", f"switching {facts.vm} off", self._hypervisor.destroy(facts.vm, at_once=True))
                    await within("power", f"forgetting {facts.vm}", self._hypervisor.undefine(facts.vm))
            await asyncio.gather(*gone)
            return [key_of(item) for item in marked]
        finally:
            for waiting in gone:
                waiting.cancel()

    def out_of_the_cloud(self) -> None:
        """The node was taken out of the cloud: its VMs are lost for their owners, who may run them elsewhere by now."""
        vms = [vm.id for vm in self._journal.desired.values() if isinstance(vm, DesiredVm) and vm.power != "absent"]
        if vms and (self._leaving is None or self._leaving.done()):
            log.warning("taken out of the cloud: %s end here; their disks are left as they are", ", ".join(vms))
            self._leaving = asyncio.get_running_loop().create_task(self._leave(vms), name="leave the cloud")

    async def _leave(self, vms: list[str]) -> None:
        try:
            await self.evict(vms)
        except (CloudError, OSError) as error:
            log.warning("not all VMs have ended yet: %s; it is gone on with", error)

    async def switch_off(self, disks: Iterable[str], why: str) -> list[str]:
        """Switch off every running VM that has one of these disks; the VMs."""
        lost = set(disks)
        victims = [
            facts.vm
            for facts in await within("query", "listing the node's VMs", self._hypervisor.domains())
            if facts.running and not lost.isdisjoint(facts.disks)
        ]
        for vm in victims:
            log.warning("%s is switched off: %s", vm, why)
        # Side by side: others may start them any moment.
        await asyncio.gather(
            *(within("power", f"switching {vm} off", self._hypervisor.destroy(vm, at_once=True)) for vm in victims)
        )
        return victims

    def new_connection(self) -> None:
        """Revisions are counted anew."""
        self.network.set_target(0)

    def engine_started(self, engine: str) -> None:
        """One of the node's engines is another process now: what it forgot is given to it at once."""
        if engine in ("ovs-vswitchd", "ovsdb-server"):
            self.network.switch_restarted()
            self._sweeps.wake("switch", urgent=True)

    def _desired_changed(self, key: str, old: AnyDesired | None, new: AnyDesired | None) -> None:
        kind, _, id = key.partition("/")
        if new is None:
            self._board.forget(key)
        if kind == "vm":
            self.vms.workers.wake(key, urgent=True)
            for item in (old, new):
                if isinstance(item, DesiredVm):
                    self._wake([f"disk/{disk.id}" for disk in item.disks])
                    self._wake([f"port/{nic}" for nic in item.nics])
            if isinstance(old, DesiredVm) and isinstance(new, DesiredVm) and new.starts > old.starts:
                self._retry(new)
        elif kind == "disk":
            self.disks.workers.wake(key, urgent=True)
            if isinstance(old, DesiredDisk) and isinstance(new, DesiredDisk) and old.limits != new.limits:
                self._wake(users_of_disk(id, self._journal.desired))
        elif kind == "store":
            self.ceph.workers.wake(key, urgent=True)
            self._store_changed(id, new if isinstance(new, DesiredStore) else None)
        else:
            if kind == "vpc" and new is None:
                self.network.services.dropped(id)
            vpcs = {item.vpc for item in (old, new) if isinstance(item, DesiredPort)}
            self.network.desired_changed(key, sorted(vpcs))
            if isinstance(new, DesiredPort) and new.vm is not None:
                self._wake([f"vm/{new.vm}"])

    def _store_changed(self, id: str, new: DesiredStore | None) -> None:
        """Disks of pools that can be reached now, or in another way, are looked at."""
        pools = set(self._stores.changed(id, new))
        for key, item in self._journal.desired.items():
            if isinstance(item, DesiredDisk) and item.pool in pools:
                self.disks.workers.wake(key, urgent=True)

    def _retry(self, vm: DesiredVm) -> None:
        """Its owner asks anew for a start: nothing that it needs is held to have failed by what happened before."""
        self.vms.workers.retry(key_of(vm))
        for disk in vm.disks:
            if f"disk/{disk.id}" in self._journal.desired:
                self.disks.workers.retry(f"disk/{disk.id}")
        for nic in vm.nics:
            port = self._journal.desired.get(f"port/{nic}")
            if isinstance(port, DesiredPort):
                for key in (key_of(port), f"vpc/{port.vpc}"):
                    if key in self._journal.desired:
                        self.network.workers.retry(key)

    def _wake(self, keys: Iterable[str]) -> None:
        """Look again at these objects, where they are desired here."""
        for key in keys:
            if key not in self._journal.desired:
                continue
            if key.startswith("vm/"):
                self.vms.workers.wake(key)
            elif key.startswith("disk/"):
                self.disks.workers.wake(key)
            else:
                self.network.usage_changed([key.partition("/")[2]])

    # --- looking at everything

    async def _sweep(self, what: str) -> float | None:
        try:
            if what == "domains":
                await self._list_domains()
            elif what == "switch":
                await self.network.list_switch()
            else:
                for vpc in await self.network.services.strangers():
                    self.network.services.dropped(vpc)
                    self.network.workers.wake(f"vpc/{vpc}", urgent=True)
                return None
        finally:
            if what in self._seen:
                self._seen[what].set()
        return self._sweeps.now() + SWEEP_EVERY_S

    async def _list_domains(self) -> None:
        first = not self.usage.known
        mark = self.usage.mark()
        domains = await within("query", "listing the node's VMs", self._hypervisor.domains())
        busy = [key for key in self._journal.desired if key.startswith("vm/") and self.vms.workers.working(key)]
        changed = self.usage.saw_all(domains, mark, {key.partition("/")[2] for key in busy} | self.vms.expected())
        if first:
            self._wake(key for key in self._journal.desired if key.startswith(("vm/", "disk/")))
            self.network.look_at_all()
        else:
            for vm, use in changed.items():
                self._wake([f"vm/{vm}", *(f"disk/{disk}" for disk in use.disks), *(f"port/{nic}" for nic in use.nics)])

    async def _watch(self) -> None:
        """Follow the hypervisor's events."""
        while True:
            try:
                async for event in self._hypervisor.events():
                    if event.vm is not None:
                        key = f"vm/{event.vm}"
                        if key in self._journal.desired:
                            self.vms.workers.wake(key, urgent=True)
                        else:
                            self._sweeps.wake("domains")
                    elif event.kind == "reconnected":
                        self._sweeps.wake("domains", urgent=True)
                        for key in self._journal.desired:
                            if key.startswith("vm/"):
                                self.vms.workers.wake(key, urgent=True)
            except (CloudError, OSError) as error:
                log.warning("the hypervisor's events broke off: %s", error)
            await asyncio.sleep(EVENTS_AGAIN_S)


def _is_absent(item: Observed) -> bool:
    return item.state == "absent" and item.settled
