"""Operations and events."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.responses import Response

from scloud.console.visit import Handler, Visit

PAGE = 50


async def show(visit: Visit) -> Response:
    operations, events = await asyncio.gather(
        visit.api.get(
            "/operations",
            limit=PAGE,
            cursor=visit.query("operations"),
            state=visit.query("state"),
            **visit.scope(),
        ),
        visit.api.get("/events", limit=PAGE, cursor=visit.query("events"), level=visit.query("level"), **visit.scope()),
    )
    return await visit.page(
        "activity.html",
        title="Activity",
        listed=operations["items"],
        following=operations["next"],
        events=events["items"],
        older=events["next"],
        level=visit.query("level"),
        state=visit.query("state"),
        everyone=visit.everyone,
    )


PAGES: Mapping[str, Handler] = {"/activity": show}
