"""Names for the ids that resources hold."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from scloud.console.api import Api

Resource = dict[str, Any]


class Names:
    """Id to name; an id that is not known stays as it is."""

    def __init__(self, *lists: Iterable[Resource]) -> None:
        self._names = {item["id"]: str(item["name"]) for items in lists for item in items}

    def __call__(self, id: str | None) -> str:
        return self._names.get(id, id) if id else ""

    def has(self, id: str | None) -> bool:
        return id in self._names


async def lists(api: Api, *paths: str, **params: Any) -> list[list[Resource]]:
    """Several lists at once."""
    return await asyncio.gather(*(api.all(f"/{path}", **params) for path in paths))
