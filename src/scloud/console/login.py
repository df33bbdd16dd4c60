"""Signing in with a token, and out."""

from __future__ import annotations

import httpx
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from scloud.console import render, session
from scloud.console.api import Api
from scloud.console.forms import Form
from scloud.console.visit import Visit
from scloud.model.errors import HTTP_STATUS, CloudError, ErrorKind


def _page(next_path: str, *, error: str = "", status: int = 200) -> Response:
    return render.html("login.html", status=status, title="Sign in", next=next_path, error=error)


async def show(request: Request) -> Response:
    return _page(session.local_path(request.query_params.get("next")))


async def sign_in(request: Request) -> Response:
    """Tries the token, and keeps it in a cookie that scripts cannot read."""
    form = Form(await request.form())
    target = session.local_path(form.text("next"))
    token = form.text("token")
    http: httpx.AsyncClient = request.app.state.http
    try:
        session.check_origin(request)
        if token is None:
            return _page(target, error="Paste a token first.", status=422)
        if not token.isascii() or not token.isprintable():
            return _page(target, error="This is not a token: it has characters that no token has.", status=422)
        await Api(http, token).get("/whoami")
    except CloudError as error:
        unknown = error.kind is ErrorKind.UNAUTHENTICATED
        text = "This token is unknown or out of date." if unknown else error.message
        return _page(target, error=text, status=HTTP_STATUS[error.kind])
    response = RedirectResponse(target, 303, headers=render.HEADERS)
    session.remember(response, request, token)
    return response


async def sign_out(_visit: Visit) -> Response:
    response = RedirectResponse("/login", 303, headers=render.HEADERS)
    session.forget(response)
    return response
