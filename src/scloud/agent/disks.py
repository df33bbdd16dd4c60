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
from scloud.agent.journal import Journal
from scloud.agent.usage import Usage, users_of_disk
from scloud.agent.work import Slots, Workers
from scloud.drivers.storage.protocol import Storage
from scloud.model.desired import DesiredDisk
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.observed import Observed
from scloud.reconcile.disk import CreateDisk, DeleteDisk, DiskHere, DiskPlan, DiskUse, ResizeDisk, disk_plan
from scloud.reconcile.vm import DiskView

log = logging.getLogger(__name__)

FAILED_AFTER = 3
"""Tries in a row after which an object is reported to be in error; it is tried on all the same."""
MEASURE_EVERY_S = 60.0
"""How often a disk's real size is looked at."""
PARALLEL = 4


class Images(Protocol):
    """Raw image files on this node."""

    def use(self, image: str, sha256: str) -> AbstractAsyncContextManager[Path]:
        """The image's file, fetched if need be; it stays until the context ends. `CloudError`, OSError."""
        ...


class Disks:
    """Handles keys `disk/ID`. `changed` is called with the VMs' keys that a disk's change concerns."""

    def __init__(
        self,
        storage: Storage,
        journal: Journal,
        board: Board,
        usage: Usage,
        images: Images,
        changed: Callable[[Iterable[str]], None],
    ) -> None:
        self._storage = storage
        self._journal = journal
        self._board = board
        self._usage = usage
        self._images = images
        self._changed = changed
        self._locks: dict[str, asyncio.Lock] = {}
        self._slots = Slots(PARALLEL)
        self._problems: dict[str, str] = {}
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
        failed = self.workers.failures(f"disk/{disk}") >= FAILED_AFTER
        here = await self._here(disk)
        if here is None:
            return DiskView("missing", failed=failed, reason=problem)
        if here.incarnation != desired.incarnation:
            return DiskView("stale", here.size_mib, failed=failed, reason=problem)
        return DiskView("ready", here.size_mib)

    async def _here(self, disk: str) -> DiskHere | None:
        facts = await within("query", f"looking at disk {disk}", self._storage.show(disk))
        return None if facts is None else DiskHere(facts.size_mib, facts.used_mib, facts.incarnation)

    async def _plan(self, desired: DesiredDisk) -> DiskPlan:
        open_by = self._usage.disk_open_by(desired.id)
        use = DiskUse(
            open_by=open_by,
            wanted_by=self._usage.disk_wanted_by(desired.id, self._journal.desired),
            told_mib=self._journal.memory(open_by).told.get(desired.id) if open_by else None,
        )
        return disk_plan(desired, await self._here(desired.id), use)

    async def _handle(self, key: str) -> float | None:
        disk = key.partition("/")[2]
        while True:
            desired = self._journal.desired.get(key)
            if not isinstance(desired, DesiredDisk):
                self._problems.pop(disk, None)
                return None
            plan = await self._plan(desired)
            if plan.action is None:
                self._problems.pop(disk, None)
                self._board.put(plan.observed)
                self._changed(users_of_disk(disk, self._journal.desired))
                return asyncio.get_running_loop().time() + MEASURE_EVERY_S
            if self.workers.failures(key) < FAILED_AFTER:
                self._board.put(plan.observed)
            if not self._usage.known and not isinstance(plan.action, ResizeDisk):
                return None  # woken again once what runs is known
            began = self.workers.now()
            try:
                await self._act(desired, plan.action)
                log.info("%s: %s in %.3f s", disk, plan.action, self.workers.now() - began)
            except (CloudError, OSError) as error:
                self._failed(desired, error)
                raise

    async def _act(self, desired: DesiredDisk, action: CreateDisk | ResizeDisk | DeleteDisk) -> None:
        """Do it, unless meanwhile something else has become right."""
        async with AsyncExitStack() as stack:
            source: Path | None = None
            if isinstance(action, CreateDisk) and action.image is not None:
                if action.image_sha256 is None:
                    raise CloudError(ErrorKind.ENGINE, f"image {action.image} has no checksum; import it again")
                what = f"fetching image {action.image}"
                source = await within(
                    "image", what, stack.enter_async_context(self._images.use(action.image, action.image_sha256))
                )
            await stack.enter_async_context(self.hold([desired.id]))
            if self._journal.desired.get(f"disk/{desired.id}") is not desired:
                return
            if (await self._plan(desired)).action != action:
                return
            match action:
                case CreateDisk():
                    await stack.enter_async_context(self._slots.hold())
                    making = self._storage.create(desired.id, action.size_mib, source, action.incarnation)
                    await within("disk", f"making disk {desired.id}", making)
                case ResizeDisk():
                    growing = self._storage.resize(desired.id, action.size_mib)
                    await within("disk", f"growing disk {desired.id}", growing)
                case DeleteDisk():
                    await within("delete", f"deleting disk {desired.id}", self._storage.delete(desired.id))

    def _failed(self, desired: DesiredDisk, error: CloudError | OSError) -> None:
        self._problems[desired.id] = str(error)
        final = self.workers.failures(f"disk/{desired.id}") + 1 >= FAILED_AFTER
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
