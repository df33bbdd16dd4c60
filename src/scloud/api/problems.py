"""Errors as RFC 9457 problem documents."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from scloud.api.words import field_of, rule_of
from scloud.model.base import Value
from scloud.model.errors import HTTP_STATUS, CloudError, ErrorKind, FieldError, invalid

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"


class Problem(Value):
    """What every error answers with. `code` is stable; `detail` says what was wrong and what to do."""

    type: str = "about:blank"
    title: str
    status: int
    code: ErrorKind
    detail: str
    fields: list[FieldError] = []
    users: list[str] = []


def response(error: CloudError, status: int | None = None, headers: dict[str, str] | None = None) -> Response:
    code = status or HTTP_STATUS[error.kind]
    body = Problem(
        title=error.kind.value.replace("_", " "),
        status=code,
        code=error.kind,
        detail=error.message,
        fields=list(error.fields),
        users=list(error.users),
    )
    if error.kind is ErrorKind.UNAUTHENTICATED:
        headers = {"WWW-Authenticate": "Bearer", **(headers or {})}
    return Response(body.model_dump_json(), status_code=code, media_type=MEDIA_TYPE, headers=headers)


def install(app: FastAPI) -> None:
    """Every way to fail answers with a problem document."""

    @app.exception_handler(CloudError)
    async def cloud_error(_request: Request, error: CloudError) -> Response:
        return response(error)

    @app.exception_handler(RequestValidationError)
    async def bad_request(_request: Request, error: RequestValidationError) -> Response:
        return response(from_validation(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        kinds = {
            404: ErrorKind.NOT_FOUND,
            405: ErrorKind.INVALID,
            413: ErrorKind.TOO_LARGE,
            401: ErrorKind.UNAUTHENTICATED,
        }
        kind = kinds.get(error.status_code, ErrorKind.INVALID)
        headers = dict(error.headers or {})
        if error.status_code == 400:  # FastAPI's, for what its parser chokes on: numbers or nesting without end
            return response(invalid("body", "is not JSON that can be read"))
        if error.status_code == 405:
            headers["Allow"] = ", ".join(_methods_at(app, request.url.path))
        text = {
            404: "there is nothing at this path; see /docs",
            405: f"this path takes {headers.get('Allow')} and no other method; see /docs",
        }
        message = text.get(error.status_code, str(error.detail))
        return response(CloudError(kind, message), status=error.status_code, headers=headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        log.exception("%s %s failed", request.method, request.url.path)
        return response(CloudError(ErrorKind.INTERNAL, "the manager made a mistake; its log has the details"))


def _methods_at(app: FastAPI, path: str) -> list[str]:
    """All methods of a path (RFC 9110, 15.5.6); each route by itself knows only its own."""
    found: set[str] = set()
    for template, methods in app.openapi()["paths"].items():
        if compile_path(template)[0].match(path):
            found.update(method.upper() for method in methods)
    return sorted(found) or ["GET"]


def from_validation(errors: Sequence[Any]) -> CloudError:
    """Pydantic's list as fields and rules."""
    fields = [FieldError(field=field_of(item), rule=rule_of(item)) for item in errors[:20]]
    first = fields[0] if fields else FieldError(field="body", rule="is not valid")
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return CloudError(ErrorKind.INVALID, f"{first.field}: {first.rule}{more}", fields=fields)


def as_json(value: Any) -> bytes:
    return orjson.dumps(value)
