"""The REST API as one person may use it: requests with that person's token, problems as CloudError."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx

from scloud.client.contexts import API_PREFIX
from scloud.client.problems import failure, from_response

EVERYTHING = 1000
"""The most items one page of the API has: enough for lists to choose from."""


class Api:
    """Paths are below /api/v1."""

    def __init__(self, http: httpx.AsyncClient, token: str) -> None:
        self._http = http
        self._headers = {"Authorization": f"Bearer {token}"}

    async def ask(
        self, method: str, path: str, body: Any = None, params: dict[str, Any] | None = None
    ) -> httpx.Response:
        """The answer; CloudError for a problem, UNAVAILABLE if there is no answer."""
        given = {name: value for name, value in (params or {}).items() if value is not None}
        try:
            answer = await self._http.request(
                method, API_PREFIX + path, json=body, params=given, headers=self._headers, timeout=90.0
            )
        except httpx.TransportError as error:
            raise failure("unavailable", f"the API does not answer: {error}") from error
        if answer.is_error:
            raise from_response(answer.status_code, answer.content, what=f"{method} {path}")
        return answer

    async def get(self, path: str, **params: Any) -> Any:
        return (await self.ask("GET", path, params=params)).json()

    async def text(self, path: str, **params: Any) -> str:
        return (await self.ask("GET", path, params=params)).text

    async def post(self, path: str, body: Any, **params: Any) -> Any:
        return (await self.ask("POST", path, body, params)).json()

    async def patch(self, path: str, body: Any) -> Any:
        return (await self.ask("PATCH", path, body)).json()

    async def delete(self, path: str, **params: Any) -> Any:
        answer = await self.ask("DELETE", path, params=params)
        return answer.json() if answer.content else None

    async def all(self, path: str, **params: Any) -> list[dict[str, Any]]:
        """The first thousand items: what a person can look through."""
        items: list[dict[str, Any]] = (await self.get(path, limit=EVERYTHING, **params))["items"]
        return items


def part(ref: str) -> str:
    """One part of a path, whatever a browser has sent for it."""
    if ref in ("", ".", ".."):
        raise failure("not_found", "there is nothing at this address")
    return quote(ref, safe="")
