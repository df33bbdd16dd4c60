"""Images."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response
from starlette.responses import StreamingResponse

from scloud.api.commands import CommandDep
from scloud.api.context import CallerDep, ContextDep, accepted, begin, send
from scloud.api.intents import networks
from scloud.api.reading import add_reading, fetch, router_for
from scloud.api.schemas import BYTES, Accepted, ImageCreate, OperationOut, RefPath, Rename
from scloud.controllers import finishing
from scloud.controllers.image_files import UPLOAD, ImageFiles
from scloud.model.errors import CloudError, ErrorKind, invalid
from scloud.model.kinds import Kind, State
from scloud.model.specs import ImageFormat, ImageSpec
from scloud.model.statuses import ImageStatus
from scloud.store import operations
from scloud.store.database import Tx
from scloud.store.resources import SYSTEM, Resource, create, refuse_if_used, save

router = router_for(Kind.IMAGE)
add_reading(router, Kind.IMAGE)


def _files(context: ContextDep) -> ImageFiles:
    files = context.manager.images
    if not isinstance(files, ImageFiles):
        raise CloudError(ErrorKind.UNAVAILABLE, "this manager keeps no image files")
    return files


def _own(tx: Tx, ref: str, caller: CallerDep) -> Resource:
    """An image the caller may change: its own, and an administrator the public ones."""
    row = fetch(tx, Kind.IMAGE, ref, caller)
    if row.account != caller.account:
        caller.need_admin()
    return row


@router.post("", status_code=202, response_model=Accepted)
async def import_image(body: ImageCreate, command: CommandDep) -> Response:
    """Import from a URL, from a file of the manager's host (administrators), or by `upload` with PUT of the bytes."""
    source = body.spec.source
    if source.startswith("file://"):
        command.caller.need_admin()
        if not source.startswith("file:///"):
            raise invalid("spec.source", "must be file:// and an absolute path")
    elif source != UPLOAD and not source.startswith(("http://", "https://")):
        raise invalid("spec.source", "must be an http:// or https:// URL, file:///PATH, or the word upload")
    if body.spec.public:
        command.caller.need_admin()

    def make(tx: Tx) -> dict[str, object]:
        waiting = source == UPLOAD
        status = ImageStatus(
            state=State.PENDING if waiting else State.CREATING, reason="waiting for the upload" if waiting else ""
        )
        owner = SYSTEM if body.spec.public else command.caller.account
        row = create(tx, Kind.IMAGE, owner, body.name, body.spec, status)
        op = operations.begin(tx, "image.import", row, seconds=3600.0, account=command.caller.account)
        if not waiting:
            operations.enqueue(tx, row.key)
        return accepted(op, row)

    return await command.run(make)


@router.put(
    "/{ref}/data",
    status_code=202,
    response_model=OperationOut,
    openapi_extra={"requestBody": {**BYTES, "required": True}},
)
async def upload_image(ref: RefPath, request: Request, context: ContextDep, caller: CallerDep) -> Response:
    """The bytes of an image whose source is `upload`; an upload that breaks off may be begun anew."""
    files = _files(context)
    row = await context.store.read(lambda tx: _own(tx, ref, caller))
    if row.state != State.PENDING or row.spec_as(ImageSpec).source != UPLOAD:
        raise CloudError(ErrorKind.CONFLICT, f"image '{row.name}' is {row.state} and waits for no upload")
    await files.receive(row.id, request.stream())

    def begin_import(tx: Tx) -> dict[str, object]:
        current = _own(tx, row.id, caller)
        if current.state != State.PENDING:
            raise CloudError(ErrorKind.CONFLICT, f"image '{row.name}' is {current.state} and waits for no upload")
        save(tx, current, status=ImageStatus(state=State.CREATING))
        operations.enqueue(tx, current.key)
        return operations.open_for(tx, current.id)[0].public()

    return send(await context.store.write(begin_import), 202)


@router.get("/{ref}/data", response_class=StreamingResponse, responses={200: BYTES})
async def download_image(
    ref: RefPath,
    context: ContextDep,
    caller: CallerDep,
    format: Annotated[ImageFormat, Query(description="converted on the way if need be")] = ImageFormat.RAW,
) -> Response:
    """The image's bytes."""
    files = _files(context)
    row = await context.store.read(lambda tx: fetch(tx, Kind.IMAGE, ref, caller))
    if row.state != State.READY:
        raise CloudError(ErrorKind.CONFLICT, f"image '{row.name}' is {row.state}; it has no bytes to give")
    size, stream = await files.export(row.id, format)
    return StreamingResponse(stream, media_type="application/octet-stream", headers={"Content-Length": str(size)})


@router.patch("/{ref}", status_code=202, response_model=Accepted)
async def rename_image(ref: RefPath, body: Rename, command: CommandDep) -> Response:
    """Give it another name."""
    return await command.run(
        lambda tx: networks.rename_plain(tx, Kind.IMAGE, _own(tx, ref, command.caller).account, ref, body.name)
    )


@router.delete("/{ref}", status_code=202, response_model=Accepted)
async def delete_image(ref: RefPath, command: CommandDep) -> Response:
    """Delete it; refused, with the list of users, while VMs or disks are made from it."""

    def delete(tx: Tx) -> dict[str, object]:
        row = _own(tx, ref, command.caller)
        refuse_if_used(tx, row)
        op = begin(tx, "image.delete", row)
        return accepted(op, finishing.leave_image(tx, row))

    return await command.run(delete)
