"""WebSockets into a VM: its serial console, and any of its TCP ports."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.websockets import WebSocket, WebSocketDisconnect

from scloud.api.context import Context, context_of
from scloud.api.reading import fetch
from scloud.api.schemas import RefPath
from scloud.link.channel import Channel
from scloud.model.errors import CloudError
from scloud.model.kinds import Kind

router = APIRouter(prefix="/vms", tags=["vms"])
CHUNK = 65536
REFUSED = 4000
"""WebSocket close code: the reason says in words what was wrong."""


@router.websocket("/{ref}/console")
async def console(websocket: WebSocket, ref: RefPath) -> None:
    """Bytes of the serial console, both ways."""
    await _serve(websocket, ref, kind="console", port=0)


@router.websocket("/{ref}/forward")
async def forward(websocket: WebSocket, ref: RefPath, port: Annotated[int, Query(ge=1, le=65535)]) -> None:
    """Bytes of a TCP connection to a port of the VM, made from within its VPC."""
    await _serve(websocket, ref, kind="tcp", port=port)


async def _serve(websocket: WebSocket, ref: str, *, kind: str, port: int) -> None:
    context: Context = context_of(websocket)
    await websocket.accept()
    try:
        caller = await context.caller(websocket)
        row = await context.store.read(lambda tx: fetch(tx, Kind.VM, ref, caller))
        channel, finished = await context.link.open_stream(
            row.node, f"vm '{row.name}'", kind=kind, vm=row.id, port=port
        )
    except CloudError as error:
        # 123 bytes is what a close frame can carry (RFC 6455, 5.5).
        reason = f"{error.kind}: {error.message}".encode()[:123].decode(errors="ignore")
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # who asked may have gone meanwhile
            await websocket.close(REFUSED, reason)
        return
    try:
        await _splice(websocket, channel)
    finally:
        finished.set()
        with contextlib.suppress(RuntimeError, WebSocketDisconnect):
            await websocket.close()


async def _splice(websocket: WebSocket, channel: Channel) -> None:
    async def down() -> None:
        while data := await channel.read(CHUNK):
            await websocket.send_bytes(data)

    async def up() -> None:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            data = message.get("bytes") or (message.get("text") or "").encode()
            if data:
                await channel.write(data)

    tasks = [asyncio.create_task(down()), asyncio.create_task(up())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(result, OSError | WebSocketDisconnect | RuntimeError):
                raise result
