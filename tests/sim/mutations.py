"""Defects put in on purpose: a simulation that does not find them finds nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from scloud.agent.disks import Disks
from scloud.agent.journal import AnyDesired, MemoryJournal
from scloud.agent.reconciler import Reconciler
from scloud.agent.usage import Usage
from scloud.agent.vms import Vms
from scloud.controllers import finishing, node_removal, serving
from scloud.controllers.ha import controller
from scloud.controllers.ha.fencing import Fencer
from scloud.controllers.sessions import Session
from scloud.drivers.hypervisor.protocol import DomainFacts
from scloud.model.desired import DesiredVm, MoveIn
from scloud.model.ha import Incident
from scloud.model.statuses import DiskStatus
from scloud.model.wire import Desired
from scloud.reconcile.ha.recovery import Fences
from scloud.store.database import Tx
from scloud.store.resources import Resource, find, save

from .hardware import Journal, JournalFile
from .world import World

SLOW_DISK_S = 0.2


def _forgets_usage() -> None:
    """The manager does not take back what a deleted VM was promised."""

    def release_vm(tx: Tx, vm: Resource) -> Resource:
        return vm if vm.node is None else save(tx, vm, node=None)

    finishing.release_vm = release_vm


def _forgets_journal() -> None:
    """An agent that starts knows nothing of what it was told."""

    def make_journal(self: World, file: JournalFile) -> Journal:
        file.content = MemoryJournal()
        return Journal(file, self.rng, self.short)

    World.make_journal = make_journal  # type: ignore[method-assign]


def _takes_half() -> None:
    """What is told while the connection breaks is written down, and not acted on; slow disks make it happen."""
    persist = Journal.apply

    async def take(self: Reconciler, message: Desired) -> None:
        await self._take(message)

    async def apply(self: Journal, items: Iterable[AnyDesired], drop: Iterable[str]) -> None:
        await persist(self, items, drop)
        await asyncio.sleep(SLOW_DISK_S)

    Journal.apply = apply  # type: ignore[method-assign]

    Reconciler.take = take  # type: ignore[method-assign]


def _deletes_in_use() -> None:
    """An agent takes every disk for unused, and nobody's work for exclusive."""

    @asynccontextmanager
    async def hold(self: Disks, disks: Iterable[str]) -> AsyncIterator[None]:
        yield

    Disks.hold = hold  # type: ignore[method-assign]
    Usage.disk_open_by = lambda self, disk: None  # type: ignore[method-assign]


def _forgets_to_drop() -> None:
    """A manager never tells a node to forget something."""
    send = Session._send_some

    async def send_some(self: Session) -> None:
        for key in [key for key in self._dirty if self._directory.wish(self.node, key) is None]:
            self._sent.pop(key, None)
        await send(self)

    Session._send_some = send_some  # type: ignore[method-assign]


def _tells_two_nodes() -> None:
    """A disk of a pool is told to its VM's node though a VM elsewhere may have it open."""

    def to_vm(tx: Tx, disk: Resource, vm: Resource) -> Resource:
        node = find(tx, vm.node) if vm.node else None
        return disk if node is None else serving._tell(tx, disk, disk.status_as(DiskStatus), node, held=True)

    serving.to_vm = to_vm


def _no_fence() -> None:
    """A lost node's VMs are started elsewhere though nothing was done to keep it from its storage."""

    async def advance(self: Fencer, incident: Incident, note: object) -> None:
        return

    Fencer.advance = advance  # type: ignore[method-assign,assignment]
    Fences.certain = lambda self, clusters: True  # type: ignore[method-assign]


def _removes_uncut() -> None:
    """A lost node that is removed by force is out at once, though it may run on."""
    node_removal.certain = lambda tx, node: True


def _runs_on_outside() -> None:
    """A node that was taken out of the cloud goes on running what it ran."""
    Reconciler.out_of_the_cloud = lambda self: None  # type: ignore[method-assign]


def _no_stale_removal() -> None:
    """A node that returns is let in with all that it ran before."""

    def stale(have: object, elsewhere: object, wished: object, *, fenced: bool) -> list[str]:
        return []

    controller.stale = stale  # type: ignore[assignment]


def _runs_at_once() -> None:
    """What has come by a migration runs at once, without waiting until the source is gone."""
    expect = Vms._expect

    async def impatient(self: Vms, desired: DesiredVm, move: MoveIn, facts: DomainFacts | None) -> float:
        if facts is not None and facts.complete:
            await self._hypervisor.resume(desired.id)
        return await expect(self, desired, move, facts)

    Vms._expect = impatient  # type: ignore[method-assign]


MUTATIONS: dict[str, Callable[[], None]] = {
    "forgets-usage": _forgets_usage,
    "forgets-journal": _forgets_journal,
    "takes-half": _takes_half,
    "deletes-in-use": _deletes_in_use,
    "forgets-to-drop": _forgets_to_drop,
    "tells-two-nodes": _tells_two_nodes,
    "no-fence": _no_fence,
    "removes-uncut": _removes_uncut,
    "runs-on-outside": _runs_on_outside,
    "no-stale-removal": _no_stale_removal,
    "runs-at-once": _runs_at_once,
}


def apply(name: str) -> None:
    """Put the named defect into this process; nothing for ''."""
    if name:
        MUTATIONS[name]()
