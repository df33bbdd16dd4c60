"""Server-sent events: that something has changed, and how far operations are."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable

import orjson
from starlette.responses import Response, StreamingResponse

from scloud.client.http import ENDED
from scloud.console import render
from scloud.console.visit import MOST_OPERATIONS, Visit
from scloud.model.errors import CloudError

WAIT_S = 20.0
"""Of one long poll, and so the longest silence on the stream."""
LOOK_S = 2.0
"""Between looks for operations that have begun."""
_ID = re.compile(r"(ev|op)-[0-9a-z]{16}")


Queue = asyncio.Queue[str | None]
Look = Callable[[Visit], Awaitable[object]]
"""Returns another value when there is something new to be shown."""


class Streams:
    """Those that are open. They would hold up a server that waits for its requests to end."""

    def __init__(self) -> None:
        self.open: set[Queue] = set()

    def close(self) -> None:
        """End all of them; browsers connect again by themselves."""
        for queue in self.open:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)


async def stream(visit: Visit) -> Response:
    """`change` when there are new events, other operations than `?begun=`, or what goes on without an event has
    changed: with `?storage=1` storage clusters' or pools' figures, with `?incidents=1` the stories of lost nodes.

    `operation` with its card whenever one of `?op=` has moved on. The stream ends when the API refuses
    or is gone; the browser then connects again.
    """
    after = visit.request.headers.get("last-event-id") or visit.query("after") or ""
    operations = list(dict.fromkeys(visit.request.query_params.getlist("op")))
    operations = [id for id in operations if _ID.fullmatch(id)][:MOST_OPERATIONS]
    headers = {**render.HEADERS, "X-Accel-Buffering": "no"}
    streams: Streams = visit.request.app.state.streams
    since = after if _ID.fullmatch(after) else visit.since
    looked_at = [look for name, look in _LOOKS.items() if visit.admin and visit.query(name) == "1"]
    body = _messages(visit, streams, since, operations, looked_at)
    return StreamingResponse(body, media_type="text/event-stream", headers=headers)


async def _messages(
    visit: Visit, streams: Streams, after: str, operations: list[str], looked_at: list[Look]
) -> AsyncIterator[str]:
    queue: Queue = asyncio.Queue(maxsize=100)

    async def run(source: AsyncIterator[str], *, vital: bool) -> None:
        try:
            async for message in source:
                await queue.put(message)
        except CloudError:
            pass
        if vital:
            await queue.put(None)

    tasks = [asyncio.create_task(run(_events(visit, after), vital=True))]
    tasks.append(asyncio.create_task(run(_begun(visit), vital=False)))
    tasks += [asyncio.create_task(run(_operation(visit, id), vital=False)) for id in operations]
    tasks += [asyncio.create_task(run(_changes(visit, look), vital=False)) for look in looked_at]
    streams.open.add(queue)
    try:
        yield "retry: 1500\n\n"
        while (message := await queue.get()) is not None:
            yield message
    finally:
        streams.open.discard(queue)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _events(visit: Visit, after: str) -> AsyncIterator[str]:
    while True:
        newer = {"after": after} if after else {}
        found = (await visit.api.get("/events", wait=WAIT_S, limit=1, **newer, **visit.watched()))["items"]
        if not found or found[0]["id"] == after:
            yield ": still here\n\n"
            continue
        after = found[0]["id"]
        yield f"event: change\nid: {after}\ndata:\n\n"


async def _begun(visit: Visit) -> AsyncIterator[str]:
    """What begins is no event yet, and lists of operations cannot be waited for."""
    known = visit.query("begun")
    while True:
        found = await visit.newest_operation()
        if found != known:
            known = found
            yield f"event: change\ndata: {found}\n\n"
        await asyncio.sleep(LOOK_S)


async def _storage(visit: Visit) -> object:
    rows = [*await visit.api.all("/storage-clusters"), *await visit.api.all("/pools")]
    return [{**row["status"], "observed_at": 0} for row in rows]


async def _incidents(visit: Visit) -> object:
    newest = await visit.api.get("/ha/incidents", limit=1)
    return [await visit.api.get("/ha"), newest["items"]]


_LOOKS: dict[str, Look] = {"storage": _storage, "incidents": _incidents}


async def _changes(visit: Visit, look: Look) -> AsyncIterator[str]:
    known: object = None
    while True:
        found = await look(visit)
        if known is not None and found != known:
            yield "event: change\ndata:\n\n"
        known = found
        await asyncio.sleep(LOOK_S)


async def _operation(visit: Visit, id: str) -> AsyncIterator[str]:
    path = f"/operations/{id}"
    operation = await visit.api.get(path)
    while True:
        card = render.text("operations.html", operations=[operation], csrf=visit.csrf)
        data = orjson.dumps({"id": id, "state": operation["state"], "html": card}).decode()
        yield f"event: operation\ndata: {data}\n\n"
        if operation["state"] in ENDED:
            return
        seen = (operation["progress"], operation["message"])
        while (operation["progress"], operation["message"]) == seen and operation["state"] not in ENDED:
            operation = await visit.api.get(path, wait=WAIT_S, seen=operation["progress"])
