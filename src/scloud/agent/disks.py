"""Disks: made, grown and deleted as desired, and never while a running domain has them open."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

from scloud.agent.board import Board
from scloud.agent.deadlines import within
from scloud.agent.images import ManagerAway
from scloud.agent.journal import Journal
from scloud.agent.stores import Stores
from scloud.agent.usage import Usage, open_or_wanted, users_of_disk
from scloud.agent.work import Slots, Workers
from scloud.drivers.hypervisor.protocol import DiskSource
from scloud.drivers.storage.protocol import DiskFacts, FromImage, FromSnapshot, Source, StillOpen, Storage
from scloud.model.desired import DesiredDisk
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.migrations import DiskCopy
from scloud.model.observed import Observed
from scloud.model.snapshots import DiskLimits
from scloud.reconcile.disk import (
    HARMLESS,
    ClearDisk,
    CreateDisk,
    DeleteDisk,
    DeleteSnapshot,
    DiskAction,
    DiskHere,
    DiskPlan,
    DiskUse,
    Flatten,
    LimitDisk,
    MendDisk,
    ResizeDisk,
    RollBack,
    TakeSnapshot,
    disk_plan,
    rolling_back,
)
from scloud.reconcile.memory import FRESH, NO_LIMITS
from scloud.reconcile.vm import DiskView

log = logging.getLogger(__name__)

FAILED_AFTER = 3
"""Tries in a row after which an object is reported to be in error; it is tried on all the same."""
OPEN_FOR = 8
"""The same for a disk that is still open somewhere: the last of so many tries is a minute after the first, and who has
died with it open counts for half of that."""
CONNECTED_AGAIN_S = 1.0
"""How soon a disk that waits for the manager to be heard is looked at again."""
MEASURE_EVERY_S = 60.0
"""How often a disk's real size is looked at."""
LOOK_AGAIN_S = 2.0
"""What a look at a disk showed is good for so long, for the VMs that it is for: only its own worker changes it."""
PARALLEL = 4
"""Local disks made at the same time; in pools, where making one is mostly waiting, PARALLEL_SHARED."""
PARALLEL_SHARED = 16


class Images(Protocol):
    """Raw image files on this node."""

    def use(self, image: str, sha256: str) -> AbstractAsyncContextManager[Path]:
        """The image's file, fetched if need be; it stays until the context ends. `CloudError`, OSError."""
        ...


class Disks:
    """Handles keys `disk/ID`. `changed` is called with the VMs' keys that a disk's change concerns."""

    def __init__(
        self,
        stores: Stores,
        journal: Journal,
        board: Board,
        usage: Usage,
        images: Images,
        changed: Callable[[Iterable[str]], None],
    ) -> None:
        self._stores = stores
        self._journal = journal
        self._board = board
        self._usage = usage
        self._images = images
        self._changed = changed
        self._locks: dict[str, asyncio.Lock] = {}
        self._slots = Slots(PARALLEL)
        self._shared_slots = Slots(PARALLEL_SHARED)
        self._problems: dict[str, str] = {}
        self._waiting: set[str] = set()
        """Disks whose last try did not fail of its own accord: it waits for the manager, which is away, or for whoever
        has it open, who may be dead."""
        self._limited: dict[str, DiskLimits] = {}
        """What the storage was told since this agent began."""
        self._alone: dict[str, int] = {}
        """Incarnations of which it is known that nothing is left of what the disk was before."""
        self._looked: dict[str, tuple[DesiredDisk, DiskHere, float]] = {}
        """As each was found when there was nothing to do, by which wish, and when."""
        self.connected: Callable[[], bool] = lambda: True
        """Whether the manager is heard. While it is not, it may have given a pool's disk to another node."""
        self.workers = Workers(self._handle)

    @asynccontextmanager
    async def hold(self, disks: Iterable[str]) -> AsyncIterator[None]:
        """Nobody else makes, deletes or opens these disks meanwhile."""
        async with AsyncExitStack() as stack:
            for disk in sorted(set(disks)):
                await stack.enter_async_context(self._locks.setdefault(disk, asyncio.Lock()))
            yield

    async def view(self, disk: str) -> DiskView:
        """As a VM's plan needs it."""
        desired = self._journal.desired.get(f"disk/{disk}")
        if not isinstance(desired, DesiredDisk) or desired.absent:
            return DiskView("missing", reason="this node was not told of it")
        problem = self._problems.get(disk, "")
        failed = self._has_failed(disk)
        try:
            storage = self._stores.of(desired.pool)
        except CloudError as error:
            return DiskView("missing", reason=error.message)
        wish, here, until = self._looked.get(disk, (None, None, 0.0))
        if wish is not desired or self.workers.now() >= until:
            here = await self._here(disk, storage)
        if here is None:
            return DiskView("missing", failed=failed, reason=problem)
        if here.incarnation != desired.incarnation:
            return DiskView("stale", here.size_mib, failed=failed, reason=problem)
        if rolling_back(desired, here) and self._usage.disk_open_by(disk) is None:
            return DiskView("missing", failed=failed, reason=problem or "it is being rolled back")
        return DiskView("ready", here.size_mib, limits=desired.limits)

    def _has_failed(self, disk: str) -> bool:
        """So often that its VM is told; it is tried on."""
        return disk not in self._waiting and self.workers.failures(f"disk/{disk}") >= FAILED_AFTER

    async def source(self, disk: str) -> DiskSource:
        """How the hypervisor opens it. `CloudError(UNAVAILABLE)` while its pool is not known here."""
        desired = self._journal.desired.get(f"disk/{disk}")
        if not isinstance(desired, DesiredDisk):
            raise CloudError(ErrorKind.NOT_FOUND, f"this node was not told of disk {disk}")
        place = await within("query", f"locating disk {disk}", self._stores.of(desired.pool).locate(disk))
        return DiskSource(disk=disk, place=place, limits=desired.limits)

    async def source_in(self, disk: str, pool: str, source: str) -> DiskSource:
        """The same, of a disk of a pool that is open on another node. Limits move with the guest."""
        place = await within("query", f"locating disk {disk}", self._stores.of(pool).locate(disk, beside=source))
        return DiskSource(disk=disk, place=place)

    async def make_room(self, copy: DiskCopy) -> DiskSource:
        """Of a disk of another node's own storage: an empty one here, which the hypervisor there fills."""
        await self.drop_copy(copy.disk)
        async with self.hold([copy.disk]):
            storage = self._stores.of(None)
            making = storage.create(copy.disk, copy.size_mib, None, copy.incarnation)
            await within("disk", f"making room for disk {copy.disk}", making)
            place = await within("query", f"locating disk {copy.disk}", storage.locate(copy.disk))
        return DiskSource(disk=copy.disk, place=place)

    async def drop_copy(self, disk: str) -> None:
        """What is here of a disk whose bytes count elsewhere. `CloudError(CONFLICT)` if this node has the disk."""
        async with self.hold([disk]):
            if f"disk/{disk}" in self._journal.desired or self._usage.disk_open_by(disk) is not None:
                raise CloudError(ErrorKind.CONFLICT, f"disk {disk} is this node's: its bytes are not to be deleted")
            storage = self._stores.of(None)
            await within("delete", f"deleting what is here of disk {disk}", storage.delete(disk))

    async def _here(self, disk: str, storage: Storage) -> DiskHere | None:
        facts = await within("query", f"looking at disk {disk}", storage.show(disk))
        return None if facts is None else self._seen(facts, storage)

    def _seen(self, facts: DiskFacts, storage: Storage) -> DiskHere:
        return DiskHere(
            facts.size_mib,
            facts.used_mib,
            facts.incarnation,
            facts.snapshots,
            facts.rolled_back,
            facts.origin,
            self._limited.get(facts.disk, None if storage.shared else NO_LIMITS),
            abandoned=bool(facts.abandoned),
        )

    async def _remains(self, desired: DesiredDisk, here: DiskHere | None, storage: Storage) -> bool:
        """Whether somebody who died has left something of a pool's disk: asked when that could be."""
        disk = desired.id
        if here is None:
            wanted = desired.absent
        else:
            wanted = 0 < here.incarnation == desired.incarnation != self._alone.get(disk)
        if not storage.shared or not wanted:
            return False
        found = await within("query", f"looking what is left of disk {disk}", storage.remains(disk))
        if here is not None and not found:
            self._alone[disk] = here.incarnation
        return found

    def _plan(self, desired: DesiredDisk, here: DiskHere | None, remains: bool) -> DiskPlan:
        open_by = self._usage.disk_open_by(desired.id)
        memory = self._journal.memory(open_by) if open_by else FRESH
        use = DiskUse(
            open_by=open_by,
            wanted_by=self._usage.disk_wanted_by(desired.id, self._journal.desired),
            told_mib=memory.told.get(desired.id),
            told_limits=memory.limits.get(desired.id, NO_LIMITS),
        )
        return disk_plan(desired, here, use, remains)

    async def _handle(self, key: str) -> float | None:
        disk = key.partition("/")[2]
        made: DiskFacts | None = None
        while True:
            desired = self._journal.desired.get(key)
            if not isinstance(desired, DesiredDisk):
                self._problems.pop(disk, None)
                self._waiting.discard(disk)
                self._limited.pop(disk, None)
                self._looked.pop(disk, None)
                self._alone.pop(disk, None)
                return None
            try:
                storage = self._stores.of(desired.pool)
            except CloudError as error:
                self._wait(desired, error.message)
                return None  # woken again when its pool is known
            try:
                # What was made just now is known: to look at a disk of a pool costs as much as making it.
                here = await self._here(disk, storage) if made is None else self._seen(made, storage)
                remains = await self._remains(desired, here, storage)
            except (CloudError, OSError) as error:
                self._cannot_see(desired, error)
                raise
            plan = self._plan(desired, here, remains)
            if plan.action is None or isinstance(plan.action, MendDisk):
                self._problems.pop(disk, None)
                self._waiting.discard(disk)
                if here is not None:
                    self._looked[disk] = (desired, here, self.workers.now() + LOOK_AGAIN_S)
                if storage.shared and not self._usage.known:
                    # That nobody here has it open is what lets another node have it: not to be said by guess.
                    self._wait(desired, "looking whether a VM has it open")
                    return None
                self._board.put(plan.observed)
                self._changed(users_of_disk(disk, self._journal.desired))
                if plan.action is not None and self.connected():
                    await self._mend(desired, here, plan.action, storage)
                return asyncio.get_running_loop().time() + MEASURE_EVERY_S
            if not self._has_failed(disk):
                self._board.put(plan.observed)
            if not self._usage.known and not isinstance(plan.action, HARMLESS):
                return None  # woken again once what runs is known
            mine = open_or_wanted(self._usage, desired.id, self._journal.desired)
            if storage.shared and not mine and not self.connected():
                return self.workers.now() + CONNECTED_AGAIN_S
            began = self.workers.now()
            try:
                made = await self._act(desired, here, remains, plan.action, storage)
                log.info("%s: %s in %.3f s", disk, plan.action, self.workers.now() - began)
            except (CloudError, OSError) as error:
                self._failed(desired, error)
                raise

    async def _mend(self, desired: DesiredDisk, here: DiskHere | None, action: DiskAction, storage: Storage) -> None:
        """Nobody waits for it, and what is not mended now is tried again at the next look."""
        try:
            await self._act(desired, here, False, action, storage)
        except (CloudError, OSError) as error:
            log.warning("%s: %s", desired.id, error)

    def _cannot_see(self, desired: DesiredDisk, error: CloudError | OSError) -> None:
        """It is as it was last seen, as far as anyone knows, unless it is to be something else by now."""
        told = self._board.get(f"disk/{desired.id}")
        if told is None or told.generation != desired.generation or not told.settled:
            self._wait(desired, str(error))

    def _wait(self, desired: DesiredDisk, reason: str) -> None:
        """For what the manager will tell this node."""
        self._problems[desired.id] = reason
        self._board.put(
            Observed(
                key=f"disk/{desired.id}",
                generation=desired.generation,
                state="working",
                settled=False,
                reason=reason,
            )
        )
        self._changed(users_of_disk(desired.id, self._journal.desired))

    async def _source(self, action: CreateDisk, storage: Storage, stack: AsyncExitStack) -> Source | None:
        """What it begins with; an image's file, if it is needed, stays until the stack is left."""
        if action.origin is not None:
            return FromSnapshot(*action.origin)
        if action.image is None:
            return None
        if await within("query", f"looking for image {action.image}", storage.has_image(action.image)):
            return FromImage(action.image, None)
        if action.image_sha256 is None:
            raise CloudError(ErrorKind.ENGINE, f"image {action.image} has no checksum; import it again")
        fetching = stack.enter_async_context(self._images.use(action.image, action.image_sha256))
        return FromImage(action.image, await within("image", f"fetching image {action.image}", fetching))

    async def _act(
        self, desired: DesiredDisk, here: DiskHere | None, remains: bool, action: DiskAction, storage: Storage
    ) -> DiskFacts | None:
        """Do it, unless meanwhile something else has become right. Of a disk that was made, what it is like.

        Only the disk's own worker changes it: what may be different by now is what it is to be, and who has it open.
        """
        disk = desired.id
        async with AsyncExitStack() as stack:
            source: Source | None = None
            if isinstance(action, CreateDisk):
                source = await self._source(action, storage, stack)
            await stack.enter_async_context(self.hold([desired.id]))
            if self._journal.desired.get(f"disk/{desired.id}") is not desired:
                return None
            if self._plan(desired, here, remains).action != action:
                return None
            self._looked.pop(disk, None)
            match action:
                case CreateDisk():
                    slots = self._shared_slots if storage.shared else self._slots
                    await stack.enter_async_context(slots.hold())
                    making = storage.create(disk, action.size_mib, source, action.incarnation)
                    made = await within("disk", f"making disk {disk}", making)
                    self._limited[disk] = NO_LIMITS
                    self._alone[disk] = action.incarnation
                    return made
                case ResizeDisk():
                    await within("disk", f"growing disk {disk}", storage.resize(disk, action.size_mib))
                case DeleteDisk():
                    await within("delete", f"deleting disk {disk}", storage.delete(disk))
                case ClearDisk():
                    await within("delete", f"deleting what disk {disk} was before", storage.clear(disk))
                case MendDisk():
                    await within("disk", f"mending disk {disk}", storage.mend(disk))
                case TakeSnapshot(snapshot):
                    taking = storage.snapshot(disk, snapshot)
                    await within("disk", f"taking snapshot {snapshot} of disk {disk}", taking)
                case DeleteSnapshot(snapshot):
                    deleting = storage.delete_snapshot(disk, snapshot)
                    await within("delete", f"deleting snapshot {snapshot} of disk {disk}", deleting)
                case RollBack(snapshot, number):
                    returning = storage.roll_back(disk, snapshot, number)
                    await within("disk", f"rolling disk {disk} back to {snapshot}", returning)
                case Flatten():
                    await within("disk", f"flattening disk {disk}", storage.flatten(disk))
                case LimitDisk(limits):
                    await within("query", f"limiting disk {disk}", storage.limit(disk, limits))
                    self._limited[disk] = limits
        return None

    def _failed(self, desired: DesiredDisk, error: CloudError | OSError) -> None:
        self._problems[desired.id] = str(error)
        tries = self.workers.failures(f"disk/{desired.id}") + 1
        waits = isinstance(error, ManagerAway) or (isinstance(error, StillOpen) and tries < OPEN_FOR)
        final = not waits and tries >= FAILED_AFTER
        (self._waiting.add if waits else self._waiting.discard)(desired.id)
        self._board.put(
            Observed(
                key=f"disk/{desired.id}",
                generation=desired.generation,
                state="error" if final else "working",
                settled=final,
                reason=str(error),
            )
        )
        self._changed(users_of_disk(desired.id, self._journal.desired))
