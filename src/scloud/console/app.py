"""The console as an ASGI application, and its place in the manager."""

from __future__ import annotations

import logging
import re

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from scloud.client.problems import failure
from scloud.console import live, login, render, writes
from scloud.console.pages import activity, incidents, inventory, networks, overview, storage, vms
from scloud.console.visit import visitor

log = logging.getLogger(__name__)
_NOT_OURS = re.compile(r"/(api|docs|metrics|healthz|openapi\.json)(/|$)")


class _Assets(StaticFiles):
    """Their address changes with their contents, so they may be kept."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response


def make_console(http: httpx.AsyncClient) -> Starlette:
    """`http` reaches the manager's API; each request brings the visitor's own token."""

    async def not_http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        if status >= 500:
            log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        text = {404: "There is no such page.", 405: "This address is only for forms."}
        problem = failure(
            "internal", text.get(status, "The console made a mistake; the manager's log has the details.")
        )
        return render.html("fault.html", status=status, error=problem, title="Not found" if status == 404 else "Sorry")

    routes: list[BaseRoute] = [
        Mount(render.assets_path(), _Assets(directory=render.STATIC)),
        Route("/login", login.show, methods=["GET"]),
        Route("/login", login.sign_in, methods=["POST"]),
        Route("/logout", visitor(login.sign_out), methods=["POST"]),
        Route("/live", visitor(live.stream), methods=["GET"]),
    ]
    for module in (overview, vms, networks, inventory, storage, incidents, activity):
        routes += [Route(path, visitor(handler), methods=["GET"]) for path, handler in module.PAGES.items()]
    routes += [Route(path, visitor(handler), methods=["POST"]) for path, handler in writes.POSTS.items()]
    app = Starlette(routes=routes, exception_handlers={HTTPException: not_http, Exception: not_http})
    app.router.redirect_slashes = False
    app.state.http = http
    app.state.streams = live.Streams()
    return app


class _Place(BaseRoute):
    """Everything that is not the API's: its unknown paths keep answering with problem documents."""

    def __init__(self, console: Starlette) -> None:
        self._console = console

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or _NOT_OURS.match(scope["path"]):
            return Match.NONE, {}
        return Match.FULL, {"endpoint": self._console}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._console(scope, receive, send)


def mount(app: Starlette) -> live.Streams:
    """Show the console at `/` of an application that serves the API, which it calls without a socket between.

    Whoever stops the server closes the streams first.
    """
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    http = httpx.AsyncClient(transport=transport, base_url="http://console", trust_env=False)
    console = make_console(http)
    app.router.routes.append(_Place(console))
    streams: live.Streams = console.state.streams
    return streams
