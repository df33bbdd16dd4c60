"""The kinds of error, each with a stable code and an HTTP status, and the one exception that carries them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from scloud.model.base import Value


class ErrorKind(StrEnum):
    """Stable codes. Clients may rely on them; the text of a message may change."""

    INVALID = "invalid"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    IN_USE = "in_use"
    NO_CAPACITY = "no_capacity"
    TOO_LARGE = "too_large"
    UNAVAILABLE = "unavailable"
    TIMED_OUT = "timed_out"
    ENGINE = "engine"
    INTERNAL = "internal"


HTTP_STATUS: dict[ErrorKind, int] = {
    ErrorKind.INVALID: 422,
    ErrorKind.UNAUTHENTICATED: 401,
    ErrorKind.FORBIDDEN: 403,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.CONFLICT: 409,
    ErrorKind.IN_USE: 409,
    ErrorKind.NO_CAPACITY: 409,
    ErrorKind.TOO_LARGE: 413,
    ErrorKind.UNAVAILABLE: 503,
    ErrorKind.TIMED_OUT: 504,
    ErrorKind.ENGINE: 502,
    ErrorKind.INTERNAL: 500,
}


class FieldError(Value):
    """One field that breaks one rule. `field` is a path such as `spec.cpus`."""

    field: str
    rule: str


class CloudError(Exception):
    """What went wrong and what to do about it; shown to people as it is."""

    def __init__(
        self, kind: ErrorKind, message: str, *, fields: Sequence[FieldError] = (), users: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.fields = tuple(fields)
        self.users = tuple(users)


def invalid(field: str, rule: str) -> CloudError:
    """The error for one bad field."""
    return CloudError(ErrorKind.INVALID, f"{field}: {rule}", fields=[FieldError(field=field, rule=rule)])


def not_found(kind: str, ref: str) -> CloudError:
    """The same answer for what does not exist and for what is another account's."""
    return CloudError(ErrorKind.NOT_FOUND, f"there is no {kind} '{ref}' in this account")
