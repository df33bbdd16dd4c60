"""Templates, and the headers that every page has."""

from __future__ import annotations

import hashlib
import time
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

from scloud import __version__
from scloud.console import words

HERE = Path(__file__).parent
STATIC = HERE / "static"

CSP = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self'",
    "connect-src": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
    "base-uri": "'none'",
}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def policy(**changes: str) -> str:
    """The content security policy; a change names a directive with `_` for `-`."""
    rules = CSP | {name.replace("_", "-"): value for name, value in changes.items()}
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _fingerprint() -> str:
    """Changes with any of our assets, so that a browser may keep them for as long as they are these."""
    digest = hashlib.sha256()
    for path in sorted(STATIC.rglob("*.*")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@cache
def assets_path() -> str:
    """Where the assets are served."""
    return f"/static/{_fingerprint()}"


def _environment() -> Environment:
    env = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters.update(
        size=words.size,
        moment=words.moment,
        plain=words.plain,
        noun=words.noun,
        ports=words.ports,
        mood=words.mood,
        progress=words.progress,
        zipped=words.zipped,
    )
    env.globals.update(
        version=__version__,
        assets=assets_path(),
        counted=words.counted,
        action=words.action,
        percent=words.percent,
        ago=lambda at: words.ago(time.time() - at),
    )
    return env


_env = _environment()


def text(template: str, **values: Any) -> str:
    return _env.get_template(template).render(**values)


def html(template: str, *, status: int = 200, csp: str | None = None, **values: Any) -> HTMLResponse:
    headers = {**HEADERS, "Content-Security-Policy": csp or policy()}
    return HTMLResponse(text(template, **values), status_code=status, headers=headers)
