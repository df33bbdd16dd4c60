"""Incidents: nodes that were lost, what was seen and done when, and why nothing is done where nothing is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.responses import Response

from scloud.client.incidents import story
from scloud.console.visit import Handler, Visit

PAGE = 20


async def show(visit: Visit) -> Response:
    ha, found = await asyncio.gather(
        visit.api.get("/ha"),
        visit.api.get("/ha/incidents", limit=PAGE, cursor=visit.query("incidents")),
    )
    return await visit.page(
        "incidents.html",
        title="Incidents",
        clusters=ha["clusters"],
        conditions=ha["conditions"],
        incidents=[story(item) for item in found["items"]],
        older=found["next"],
    )


PAGES: Mapping[str, Handler] = {"/incidents": show}
