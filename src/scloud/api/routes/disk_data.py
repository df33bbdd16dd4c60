"""A disk's bytes in and out, and its figures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Query, Request, Response
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from scloud.api.commands import CommandDep
from scloud.api.context import CallerDep, ContextDep, send
from scloud.api.disk_schemas import DiskFigures, ImageAsk
from scloud.api.intents import disk_images
from scloud.api.intents.disks import refuse_while_open, usable
from scloud.api.reading import fetch, router_for
from scloud.api.schemas import BYTES, Accepted, OperationOut, RefPath
from scloud.controllers import imports
from scloud.link.backup import CHUNK, BackupHeader, Decoder, pieces
from scloud.link.channel import Channel
from scloud.model.errors import CloudError, ErrorKind, invalid
from scloud.model.fields import REF_PATTERN
from scloud.model.kinds import Kind, State
from scloud.model.specs import DiskSpec
from scloud.model.statuses import DiskStatus
from scloud.store.database import Tx
from scloud.store.resources import Resource, find

router = router_for(Kind.DISK)
SnapshotQuery = Annotated[
    str | None, Query(max_length=63, pattern=REF_PATTERN, description="the snapshot to save; required")
]
SinceQuery = Annotated[
    str | None, Query(max_length=63, pattern=REF_PATTERN, description="only what has changed from this one")
]
SAMPLE_S = 1.0


@router.get("/{ref}/export", response_class=StreamingResponse, responses={200: BYTES})
async def export_disk(
    ref: RefPath,
    context: ContextDep,
    caller: CallerDep,
    snapshot: SnapshotQuery = None,
    since: SinceQuery = None,
) -> Response:
    """A snapshot's bytes as a backup, or with `since` what has changed from an older one; nothing is kept here."""

    def look(tx: Tx) -> tuple[Resource, str, str | None]:
        disk = fetch(tx, Kind.DISK, ref, caller)
        if snapshot is None:
            raise invalid("snapshot", "is required: a snapshot of the disk")
        if disk.node is None:
            raise CloudError(ErrorKind.CONFLICT, f"disk '{disk.name}' is {disk.state} and on no node; try again later")
        ids = [
            _snapshot_of(tx, disk, name, field, caller) for name, field in ((snapshot, "snapshot"), (since, "since"))
        ]
        return disk, str(ids[0]), ids[1]

    disk, wanted, older = await context.store.read(look)
    channel, finished = await context.link.open_stream(
        disk.node, f"disk '{disk.name}'", kind="export_disk", disk=disk.id, snapshot=wanted, since=older
    )
    return StreamingResponse(_pass_on(channel, finished), media_type="application/octet-stream")


def _snapshot_of(tx: Tx, disk: Resource, name: str | None, field: str, caller: CallerDep) -> str | None:
    if name is None:
        return None
    row = fetch(tx, Kind.SNAPSHOT, name, caller)
    if row.parent != disk.id:
        raise invalid(field, f"'{row.name}' is not a snapshot of disk '{disk.name}'")
    if row.state != State.READY:
        raise CloudError(ErrorKind.CONFLICT, f"snapshot '{row.name}' is {row.state}, not ready")
    return row.id


async def _pass_on(channel: Channel, finished: asyncio.Event) -> AsyncIterator[bytes]:
    """A stream that breaks off has no end record, which whoever reads it notices."""
    try:
        while data := await channel.read(CHUNK):
            yield data
    except OSError:
        return
    finally:
        finished.set()


@router.put(
    "/{ref}/data",
    status_code=202,
    response_model=OperationOut,
    openapi_extra={"requestBody": {**BYTES, "required": True}},
)
async def import_disk(ref: RefPath, request: Request, context: ContextDep, caller: CallerDep) -> Response:
    """Write a backup over a detached disk; answers when it is done. One of changes continues the import before it."""
    await context.store.read(lambda tx: fetch(tx, Kind.DISK, ref, caller))
    upload = _Upload(request)
    header = await upload.header()

    def begin(tx: Tx) -> tuple[Resource, str]:
        disk = fetch(tx, Kind.DISK, ref, caller)
        imports.check(tx, disk, header)
        if not disk.status_as(DiskStatus).importing:
            usable(disk)
        refuse_while_open(tx, disk, "write a backup over it")
        if disk.spec_as(DiskSpec).vm is not None:
            raise CloudError(ErrorKind.CONFLICT, f"disk '{disk.name}' is attached; detach it first")
        return imports.begin(tx, disk)

    disk, op = await context.store.write(begin)
    error: CloudError | None = CloudError(ErrorKind.UNAVAILABLE, "the connection broke off")
    try:
        await _restore(context, disk, upload)
        error = None
    except CloudError as problem:
        error = problem
    except (OSError, ClientDisconnect):
        pass  # as said above
    finally:
        # Also when whoever asked has gone: without an end the disk would stay as it is now.
        ended = context.store.write(lambda tx: imports.end(tx, disk.id, op, header, error))
        result = await asyncio.shield(asyncio.ensure_future(ended))
    if error is not None and error.kind in (ErrorKind.INVALID, ErrorKind.CONFLICT):
        raise error
    return send(result, 202)


@router.post("/{ref}/actions/image", status_code=202, response_model=Accepted)
async def image_of_disk(ref: RefPath, body: ImageAsk, command: CommandDep) -> Response:
    """An image of a disk as it is now; the answer's resource is the image."""
    return await command.on(Kind.DISK, ref, disk_images.from_disk, body.name, body.login_user)


vms = router_for(Kind.VM)


@vms.post("/{ref}/actions/image", status_code=202, response_model=Accepted)
async def image_of_vm(ref: RefPath, body: ImageAsk, command: CommandDep) -> Response:
    """An image of the system disk of a VM that is off; the answer's resource is the image."""
    return await command.on(Kind.VM, ref, disk_images.from_vm, body.name, body.login_user)


class _Upload:
    """A request's body: its header first, then all of it from the beginning."""

    def __init__(self, request: Request) -> None:
        self._pieces = request.stream()
        self._seen: list[bytes] = []

    async def header(self) -> BackupHeader:
        return await Decoder(self._note).header()

    async def _note(self, _limit: int) -> bytes:
        async for piece in self._pieces:
            if piece:
                self._seen.append(piece)
                return piece
        return b""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._seen:
            yield piece
        async for piece in self._pieces:
            if piece:
                yield piece


async def _restore(context: ContextDep, disk: Resource, upload: _Upload) -> None:
    """Returns when the node has all of it on the disk."""
    channel, finished = await context.link.open_stream(
        disk.node, f"disk '{disk.name}'", kind="restore_disk", disk=disk.id
    )
    answering = asyncio.ensure_future(imports.answer(channel))
    try:
        await _send(channel, upload, answering)
        await answering
    finally:
        answering.cancel()
        finished.set()


async def _send(channel: Channel, upload: _Upload, answering: asyncio.Future[None]) -> None:
    """Until all is sent, or the node has answered early: then it has failed, and says why."""
    try:
        async for piece in upload:
            if answering.done():
                return
            await channel.write(pieces(piece))
        await channel.write(pieces(b""))
    except OSError:
        async with asyncio.timeout(5.0):  # the reason may be on its way
            await answering


@router.get("/{ref}/figures", response_model=DiskFigures)
async def disk_figures(ref: RefPath, context: ContextDep, caller: CallerDep) -> Response:
    """What it really occupies, and what is read and written a second, measured over one second."""

    def look(tx: Tx) -> tuple[Resource, Resource | None]:
        disk = fetch(tx, Kind.DISK, ref, caller)
        vm = disk.spec_as(DiskSpec).vm
        return disk, find(tx, vm) if vm else None

    disk, vm = await context.store.read(look)
    first = last = None
    if vm is not None and vm.state == State.RUNNING and vm.node == disk.node:
        first = await _counters(context, vm, disk.id)
        if first is not None:
            await asyncio.sleep(SAMPLE_S)
            last = await _counters(context, vm, disk.id)
    size, used = disk.spec_as(DiskSpec).size_mib, disk.status_as(DiskStatus).used_mib
    return send({"disk": disk.id, "size_mib": size, "used_mib": used, **rates(first, last, SAMPLE_S)})


async def _counters(context: ContextDep, vm: Resource, disk: str) -> dict[str, int] | None:
    found = await context.manager.call(vm.node, f"vm '{vm.name}'", "disk_figures", vm=vm.id)
    return next((item for item in found or () if item["disk"] == disk), None)


def rates(first: dict[str, int] | None, last: dict[str, int] | None, seconds: float) -> dict[str, Any]:
    """From counters since a domain's start (times in ns) to rates; a domain that started anew counts from zero."""
    result: dict[str, Any] = {"open": last is not None}
    for way, count, size, spent in (
        ("read", "reads", "read_bytes", "read_ns"),
        ("write", "writes", "written_bytes", "write_ns"),
    ):
        before = first or {}
        done, amount, took = ((last or {}).get(name, 0) - before.get(name, 0) for name in (count, size, spent))
        result[f"iops_{way}"] = max(done, 0) / seconds
        result[f"kib_{way}_per_s"] = max(amount, 0) / 1024 / seconds
        result[f"latency_{way}_ms"] = took / done / 1e6 if done > 0 and took >= 0 else None
    return result
