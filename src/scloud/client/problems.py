"""From problem+json (RFC 9457) to CloudError and back.

`scloud.model.errors` is imported when something has gone wrong and not before: it brings pydantic's model machinery,
which would be a quarter of the time a short command takes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scloud.model.errors import CloudError

_KIND_OF_STATUS = {
    400: "invalid",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    405: "invalid",
    409: "conflict",
    413: "too_large",
    422: "invalid",
    502: "engine",
    503: "unavailable",
    504: "timed_out",
}
"""For answers without a `code`: a proxy's, or another server's."""


def failure(kind: str, message: str, **details: Any) -> CloudError:
    """A CloudError of the kind with this code; an unknown code counts as `internal`."""
    from scloud.model.errors import CloudError, ErrorKind

    known = kind if kind in {item.value for item in ErrorKind} else "internal"
    return CloudError(ErrorKind(known), message, **details)


def cloud_error(error: BaseException) -> CloudError | None:
    """The error itself if it is a CloudError. Nobody can have raised one before its module was imported."""
    errors = sys.modules.get("scloud.model.errors")
    return error if errors is not None and isinstance(error, errors.CloudError) else None


def is_missing(error: BaseException) -> bool:
    """Whether it says that what was asked for does not exist."""
    found = cloud_error(error)
    return found is not None and found.kind.value == "not_found"


def from_response(status: int, body: bytes, *, what: str) -> CloudError:
    """The error that an answer of `status` carries. `what` names the request, for answers that say nothing."""
    from scloud.model.errors import FieldError

    fallback = _KIND_OF_STATUS.get(status, "internal")
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        text = body[:200].decode(errors="replace").strip()
        return failure(fallback, f"{what} was answered with status {status}" + (f": {text}" if text else ""))
    detail = problem.get("detail") or problem.get("title") or f"{what} was answered with status {status}"
    fields = [
        FieldError(field=str(item.get("field", "")), rule=str(item.get("rule", "")))
        for item in problem.get("fields") or ()
        if isinstance(item, dict)
    ]
    users = [str(user) for user in problem.get("users") or ()]
    return failure(str(problem.get("code") or fallback), str(detail), fields=fields, users=users)


def from_operation(operation: Mapping[str, Any]) -> CloudError:
    """The error of an operation that failed or was cancelled."""
    error = operation.get("error") or {}
    if operation["state"] == "cancelled":
        message = error.get("message") or f"{operation['action']} was cancelled"
        return failure(str(error.get("code") or "conflict"), str(message))
    message = error.get("message") or operation.get("message") or f"{operation['action']} failed and gave no reason"
    return failure(str(error.get("code") or "internal"), str(message))


def as_problem(error: CloudError) -> dict[str, Any]:
    """The error as problem+json, for programs that read our stderr."""
    from scloud.model.errors import HTTP_STATUS

    problem: dict[str, Any] = {
        "type": f"urn:scloud:error:{error.kind.value}",
        "title": error.kind.value.replace("_", " "),
        "status": HTTP_STATUS[error.kind],
        "code": error.kind.value,
        "detail": error.message,
    }
    if error.fields:
        problem["fields"] = [{"field": item.field, "rule": item.rule} for item in error.fields]
    if error.users:
        problem["users"] = list(error.users)
    return problem
