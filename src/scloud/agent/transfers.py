"""A disk's bytes to and from the manager, as backups (`link.backup`): `export_disk` and `restore_disk` streams.

An export is the backup and nothing else. A restore is the backup from the manager in pieces (`link.backup.pieces`),
answered with one line of JSON: `{"bytes": N}` when all of it is on the disk, or `{"error": [kind, message]}`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Coroutine
from typing import Any

from scloud.agent.deadlines import within
from scloud.agent.disks import Disks
from scloud.agent.journal import Journal
from scloud.agent.stores import Stores
from scloud.agent.usage import Usage
from scloud.drivers.storage.protocol import Storage
from scloud.link.backup import MIB, BackupHeader, Decoder, encode, joined, whole
from scloud.link.channel import Channel, Dialer
from scloud.model.desired import DesiredDisk
from scloud.model.errors import CloudError, ErrorKind, invalid, not_found
from scloud.model.wire import StreamHello

log = logging.getLogger(__name__)
MAX_TRANSFERS = 16
KINDS = ("export_disk", "restore_disk")


class Transfers:
    """`open` looks whether it can be done, so that its failure is the answer; then the link is dialled."""

    def __init__(self, dial: Dialer, stores: Stores, disks: Disks, usage: Usage, journal: Journal) -> None:
        self._dial = dial
        self._stores = stores
        self._disks = disks
        self._usage = usage
        self._journal = journal
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, stream: str, kind: str, params: dict[str, Any]) -> None:
        """Return when bytes flow. `CloudError` says why they cannot."""
        desired = self._journal.desired.get(f"disk/{params.get('disk')}")
        if not isinstance(desired, DesiredDisk) or desired.absent:
            raise not_found("disk on this node", str(params.get("disk")))
        if len(self._tasks) >= MAX_TRANSFERS:
            raise CloudError(ErrorKind.UNAVAILABLE, f"the node carries {MAX_TRANSFERS} disks already; try again later")
        storage = self._stores.of(desired.pool)
        facts = await within("query", f"looking at disk {desired.id}", storage.show(desired.id))
        if facts is None:
            raise not_found("disk on this node", desired.id)
        if kind == "restore_disk":
            self._refuse_open(desired.id)
            channel = await self._call_back(stream)
            self._keep(self._restore(channel, storage, desired.id, facts.size_mib * MIB))
            return
        sizes = dict(facts.snapshots)
        snapshot, since = params.get("snapshot"), params.get("since")
        for name, field in ((snapshot, "snapshot"), (since, "since")):
            if name not in sizes and not (field == "since" and name is None):
                raise invalid(field, f"is no snapshot of disk {desired.id}: {name}")
        header = BackupHeader(disk=desired.id, snapshot=str(snapshot), since=since, size_mib=sizes[str(snapshot)])
        channel = await self._call_back(stream)
        self._keep(self._export(channel, storage, header))

    async def close(self) -> None:
        """End every transfer."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _refuse_open(self, disk: str) -> None:
        user = self._usage.disk_open_by(disk)
        if user is not None or not self._usage.known:
            who = user or "a VM, perhaps"
            raise CloudError(ErrorKind.CONFLICT, f"disk {disk} is open in {who}; it must be detached or its VM off")

    async def _call_back(self, stream: str) -> Channel:
        try:
            channel = await within("connect", "dialling the manager", self._dial())
            await channel.send(StreamHello(stream=stream))
        except OSError as error:
            raise CloudError(ErrorKind.UNAVAILABLE, f"the manager cannot be dialled for a stream: {error}") from error
        return channel

    async def _export(self, channel: Channel, storage: Storage, header: BackupHeader) -> None:
        try:
            async for piece in encode(header, storage.export(header.disk, header.snapshot, header.since)):
                await channel.write(piece)
        except OSError as error:
            log.info("the export of %s broke off: %s", header.disk, error)
        finally:
            await channel.close()

    async def _restore(self, channel: Channel, storage: Storage, disk: str, size: int) -> None:
        decoder = Decoder(joined(channel.read))
        try:
            async with self._disks.hold([disk]):
                self._refuse_open(disk)
                header = await decoder.header()
                extents = decoder.extents(min(size, header.size_mib * MIB))
                await storage.restore(disk, extents if header.since else whole(extents, size))
            answer: dict[str, Any] = {"bytes": decoder.bytes}
        except CloudError as error:
            answer = {"error": [error.kind, error.message]}
        except OSError as error:
            answer = {"error": [ErrorKind.ENGINE, str(error)]}
        try:
            await channel.write(json.dumps(answer).encode() + b"\n")
        except OSError as error:
            log.info("the restore of %s could not be answered: %s", disk, error)
        finally:
            await channel.close()

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
