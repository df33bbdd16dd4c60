"""Who is looking: the token's cookie, and what keeps other sites from acting in its name."""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from scloud.client.problems import failure

COOKIE = "scloud_token"
CSRF_FIELD = "csrf"
KEPT_S = 30 * 86400
"""How long a browser keeps the cookie; the token itself may end earlier."""


def csrf_of(token: str) -> str:
    """What every form carries. Only who knows the token can make it, and it does not tell the token."""
    return hmac.new(token.encode(), b"scloud console form", hashlib.sha256).hexdigest()


def check_csrf(token: str, given: str | None) -> None:
    """FORBIDDEN unless the form came from one of our pages of this session."""
    if given is None or not hmac.compare_digest(csrf_of(token).encode(), given.encode()):
        raise failure("forbidden", "this form is out of date or not ours: load the page again and send it once more")


def check_origin(request: Request) -> None:
    """FORBIDDEN if the browser says that another site's page sent this."""
    origin = request.headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    if foreign or request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        raise failure("forbidden", "this was sent from a page of another site")


def remember(response: Response, request: Request, token: str) -> None:
    response.set_cookie(
        COOKIE,
        token,
        max_age=KEPT_S,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
        path="/",
    )


def forget(response: Response) -> None:
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")


def local_path(text: str | None) -> str:
    """A path of this console to go to, or `/`: never another site."""
    if not text or not text.startswith("/") or text.startswith(("//", "/\\")) or not text.isprintable():
        return "/"
    return text
