"""One request of somebody who has signed in: their API, their forms, and how answers are given."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from scloud.console import render, session
from scloud.console.api import Api
from scloud.console.forms import Form
from scloud.model.errors import HTTP_STATUS, CloudError, ErrorKind

Handler = Callable[["Visit"], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]

_OPERATION = re.compile(r"op-[0-9a-z]{16}")
MOST_OPERATIONS = 20


class Visit:
    """`me` is the API's /whoami; `since` the newest event, and `begun` the newest operation, when the request began."""

    def __init__(self, request: Request, api: Api, csrf: str) -> None:
        self.request = request
        self.api = api
        self.csrf = csrf
        self.me: dict[str, Any] = {}
        self.since = ""
        self.begun = ""

    @property
    def admin(self) -> bool:
        return bool(self.me["admin"])

    @property
    def scripted(self) -> bool:
        """Whether our script asks, which puts the answer into the page that is shown."""
        return self.request.headers.get("x-requested-with") == "fetch"

    @property
    def everyone(self) -> bool:
        """Whether an administrator wants to see every account's things."""
        return self.admin and self.query("all") == "1"

    def query(self, name: str) -> str | None:
        return self.request.query_params.get(name) or None

    def ref(self, name: str = "ref") -> str:
        return str(self.request.path_params[name])

    def scope(self) -> dict[str, Any]:
        """The API's parameters for the accounts that are looked at."""
        return {"all_accounts": True} if self.everyone else {}

    def watched(self) -> dict[str, Any]:
        """The same for what is followed live: administrators follow the whole cloud."""
        return {"all_accounts": True} if self.admin else {}

    async def newest_operation(self) -> str:
        """Which one it is and how far; another text when anything has begun, or that one has moved on."""
        newest = (await self.api.get("/operations", limit=1, **self.watched()))["items"]
        return "".join(f"{op['id']} {op['state']} {op['progress']}" for op in newest)

    async def begin(self) -> None:
        """Before anything else is read, so that no change falls between the page and its live updates."""
        self.me = await self.api.get("/whoami")
        newest = (await self.api.get("/events", limit=1, **self.watched()))["items"]
        self.since = newest[0]["id"] if newest else ""
        self.begun = await self.newest_operation()

    async def form(self) -> Form:
        """The fields of a POST that is ours."""
        return Form(await self.request.form())

    # --- answers

    def common(self) -> dict[str, Any]:
        live = {"since": self.since, "begun": self.begun}
        return {"me": self.me, "csrf": self.csrf, "path": self.request.url.path, **live}

    async def page(
        self, template: str, *, title: str, status: int = 200, csp: str | None = None, **values: Any
    ) -> HTMLResponse:
        """A whole page. Operations named by `?op=` are shown on it."""
        wanted = _OPERATION.findall(self.query("op") or "")[:MOST_OPERATIONS]
        operations = [found for id in wanted if (found := await self._operation(id)) is not None]
        return render.html(
            template, status=status, csp=csp, title=title, operations=operations, **self.common(), **values
        )

    async def _operation(self, id: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = await self.api.get(f"/operations/{id}")
            return found
        except CloudError:
            return None

    async def began(self, answer: Mapping[str, Any], *, to: str | None = None) -> Response:
        """To a write that was accepted: the page it came from with its operation, or the page `to`."""
        operations = answer.get("operations") or [answer["operation"]]
        ids = ",".join(op["id"] for op in operations[:MOST_OPERATIONS])
        if self.scripted and to is None:
            found = render.html("operations.html", operations=operations, csrf=self.csrf)
            found.headers["X-Put"] = "operations"
            return found
        target = f"{to or self._back()}?{urlencode({'op': ids})}"
        if self.scripted:
            return Response(headers={**render.HEADERS, "X-Go": target})
        return RedirectResponse(target, 303, headers=render.HEADERS)

    async def answer(self, template: str, *, title: str, **values: Any) -> Response:
        """Something to read beside the form that asked."""
        if self.scripted:
            return render.html(template, csrf=self.csrf, **values)
        return await self.page("answer.html", title=title, answer=template, **values)

    def _back(self) -> str:
        """The page that has the form; only its path counts."""
        return session.local_path(urlsplit(self.request.headers.get("referer", "")).path)

    async def problem(self, error: CloudError) -> Response:
        """Beside the form if there is one, else as a page."""
        status = HTTP_STATUS[error.kind]
        if self.scripted and self.request.method == "POST":
            return render.html("problem.html", status=status, error=error)
        title = "Not found" if error.kind is ErrorKind.NOT_FOUND else "That did not work"
        return await self.page("error.html", title=title, status=status, error=error)


def visitor(handler: Handler) -> Endpoint:
    """The handler for those who have signed in; others are asked to."""

    async def endpoint(request: Request) -> Response:
        token = request.cookies.get(session.COOKIE)
        if not token or not token.isascii() or not token.isprintable():
            return _sign_in(request)
        http: httpx.AsyncClient = request.app.state.http
        visit = Visit(request, Api(http, token), session.csrf_of(token))
        try:
            await visit.begin()
            if request.method == "POST":
                session.check_origin(request)
                session.check_csrf(token, (await visit.form()).text(session.CSRF_FIELD))
            return await handler(visit)
        except CloudError as error:
            if error.kind is ErrorKind.UNAUTHENTICATED:
                return _sign_in(request)
            if not visit.me:
                return render.html("fault.html", status=HTTP_STATUS[error.kind], error=error, title="Not available")
            return await visit.problem(error)

    return endpoint


def _sign_in(request: Request) -> Response:
    """To the login page and, for pages, back again afterwards."""
    target = "/login"
    if request.method == "GET" and request.url.path != "/":
        target += f"?next={quote(request.url.path, safe='/')}"
    if request.headers.get("x-requested-with") == "fetch":
        response: Response = Response(status_code=401, headers={**render.HEADERS, "X-Go": target})
    else:
        response = RedirectResponse(target, 303, headers=render.HEADERS)
    session.forget(response)
    return response
