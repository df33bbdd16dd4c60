"""Bringing images in: from a URL, a file or an upload to a checked raw file."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from scloud.controllers import bases, finishing, snapshots
from scloud.controllers.settings import seconds_for
from scloud.model.base import Value
from scloud.model.errors import CloudError
from scloud.model.kinds import Kind, State
from scloud.model.snapshots import SnapshotStatus
from scloud.model.specs import ImageSpec
from scloud.model.statuses import ImageStatus
from scloud.store import operations
from scloud.store.database import Store, Tx
from scloud.store.resources import Resource, find, remove, save, unrefer

SNAPSHOT = "snapshot:"
"""A source that is a snapshot taken for the image alone: its id follows."""
log = logging.getLogger(__name__)
Progress = Callable[[int, str], None]
"""Told the percentage and what is being done."""


class ImportedImage(Value):
    """`sha256` is of the raw bytes as stored; sizes in MiB, rounded up."""

    sha256: str
    size_mib: int
    file_mib: int


class ImageStore(Protocol):
    """Where the manager keeps image files."""

    async def bring_in(self, image: str, spec: ImageSpec, progress: Progress) -> ImportedImage:
        """All or nothing, however often it is begun anew. CloudError says what is wrong with the source."""
        ...

    async def delete(self, image: str) -> None: ...


class ImageImporter:
    """Carries out `image.import` operations and removes the files of deleted images."""

    def __init__(self, store: Store, images: ImageStore) -> None:
        self._store = store
        self._images = images
        self._running: dict[str, asyncio.Task[ImportedImage]] = {}

    def cancel(self, image: str) -> None:
        """Stop an import that is under way."""
        task = self._running.get(image)
        if task is not None:
            task.cancel()

    async def work(self, id: str) -> None:
        row = await self._store.read(lambda tx: find(tx, id))
        if row is None:
            await self._images.delete(id)
            return
        if row.state == State.DELETING:
            self.cancel(id)
            await self._images.delete(id)
            await self._store.write(lambda tx: _forget(tx, id))
            return
        if row.state == State.CREATING and await self._has_source(row):
            await self._import(row)

    async def _has_source(self, row: Resource) -> bool:
        """Of an image from a disk: whether the snapshot is there. If it is still to be taken, that wakes us again."""
        source = row.spec_as(ImageSpec).source
        if not source.startswith(SNAPSHOT):
            return True
        snapshot = await self._store.read(lambda tx: find(tx, source.removeprefix(SNAPSHOT)))
        if snapshot is None or snapshot.state in (State.ERROR, State.DELETING):
            why = snapshot.status_as(SnapshotStatus).reason if snapshot is not None else "it is gone"
            await self._store.write(lambda tx: _failed(tx, row.id, f"the snapshot of its disk failed: {why}"))
            return False
        return snapshot.state == State.READY

    async def _import(self, row: Resource) -> None:
        loop = asyncio.get_running_loop()
        told = -1
        telling: set[asyncio.Task[None]] = set()

        def progress(percent: int, message: str) -> None:
            nonlocal told
            if percent != told:
                told = percent
                write = self._store.write(lambda tx: _progress(tx, row.id, percent, message))
                telling.add(loop.create_task(write))

        task = loop.create_task(self._images.bring_in(row.id, row.spec_as(ImageSpec), progress))
        self._running[row.id] = task
        try:
            imported = await task
        except CloudError as error:
            message = error.message
            await self._store.write(lambda tx: _failed(tx, row.id, message))
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                task.cancel()
                raise
            await self._store.write(lambda tx: _failed(tx, row.id, "the import was cancelled; delete the image"))
        else:
            await self._store.write(lambda tx: _imported(tx, row.id, imported))
        finally:
            self._running.pop(row.id, None)
            await asyncio.gather(*telling, return_exceptions=True)


def _progress(tx: Tx, id: str, percent: int, message: str) -> None:
    for op in operations.open_for(tx, id):
        operations.progress(tx, op.id, percent, message)


def _imported(tx: Tx, id: str, imported: ImportedImage) -> None:
    row = find(tx, id)
    if row is None or row.state == State.DELETING:
        return
    status = ImageStatus(
        state=State.READY, size_mib=imported.size_mib, sha256=imported.sha256, file_mib=imported.file_mib
    )
    save(tx, row, status=status, observed_generation=row.generation)
    operations.record(tx, row, "info", f"imported: {imported.size_mib} MiB")
    finishing.complete(tx, row, row.generation)
    _let_go(tx, row)


def _failed(tx: Tx, id: str, reason: str) -> None:
    row = find(tx, id)
    if row is None or row.state == State.DELETING:
        return
    save(tx, row, status=row.status_as(ImageStatus).model_copy(update={"state": State.ERROR, "reason": reason}))
    operations.record(tx, row, "error", reason)
    finishing.fail(tx, row, row.generation, reason)
    _let_go(tx, row)


def _let_go(tx: Tx, image: Resource) -> None:
    """The snapshot that was taken only for this image goes with the work."""
    source = image.spec_as(ImageSpec).source
    snapshot = find(tx, source.removeprefix(SNAPSHOT)) if source.startswith(SNAPSHOT) else None
    if snapshot is None or snapshot.kind != Kind.SNAPSHOT or snapshot.state == State.DELETING:
        return
    unrefer(tx, image.id, snapshot.id, "snapshot")
    operations.begin(tx, "snapshot.delete", snapshot, seconds=seconds_for("snapshot.delete"))
    snapshots.leave(tx, snapshot)


def _forget(tx: Tx, id: str) -> None:
    row = find(tx, id)
    if row is not None and row.kind == Kind.IMAGE:
        _let_go(tx, row)
        finishing.complete_deletion(tx, row)
        remove(tx, row)
        bases.forget(tx, id)
