"""A snapshot's bytes from the node that serves its disk, as a backup (`link.backup`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from scloud.link.backup import Read
from scloud.link.channel import Channel
from scloud.model.errors import not_found
from scloud.model.kinds import Kind
from scloud.store.database import Store, Tx
from scloud.store.resources import Resource, find

if TYPE_CHECKING:
    from scloud.controllers.link_server import LinkServer


class DiskReader:
    """`open` gives the means to read one snapshot until the context ends."""

    def __init__(self, store: Store, link: LinkServer) -> None:
        self._store = store
        self._link = link

    @asynccontextmanager
    async def open(self, snapshot: str) -> AsyncIterator[Read]:
        """CloudError if it is not there, or its node is not."""
        disk = await self._store.read(lambda tx: _disk_of(tx, snapshot))
        channel, finished = await self._link.open_stream(
            disk.node, f"disk '{disk.name}'", kind="export_disk", disk=disk.id, snapshot=snapshot, since=None
        )
        try:
            yield channel.read
        finally:
            finished.set()

    @asynccontextmanager
    async def open_target(self, disk: Resource) -> AsyncIterator[Channel]:
        """For a backup that is to be written over a disk nobody has open; see `agent.transfers` for its answer."""
        channel, finished = await self._link.open_stream(
            disk.node, f"disk '{disk.name}'", kind="restore_disk", disk=disk.id
        )
        try:
            yield channel
        finally:
            finished.set()


def _disk_of(tx: Tx, snapshot: str) -> Resource:
    row = find(tx, snapshot)
    disk = find(tx, row.parent) if row is not None and row.parent else None
    if disk is None or disk.kind != Kind.DISK:
        raise not_found("snapshot", snapshot)
    return disk
