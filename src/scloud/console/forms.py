"""From a form's fields to a request's body. Fields are named by their path in the body: `spec.memory_mib`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

from starlette.datastructures import ImmutableMultiDict

from scloud.model.errors import invalid


class Field(Enum):
    """How a field's text becomes a value. Empty ones are left out of the body."""

    TEXT = "text"
    LINES = "lines"
    NUMBER = "number"
    DECIMAL = "decimal"
    FLAG = "flag"
    MANY = "many"


Fields = Mapping[str, Field]


class Form:
    """The fields of one request."""

    def __init__(self, data: ImmutableMultiDict[str, Any]) -> None:
        self._data = data

    def text(self, name: str) -> str | None:
        value = self._data.get(name)
        return value.strip() or None if isinstance(value, str) else None

    def lines(self, name: str) -> str | None:
        """A text of several lines, as the guest shall get it: browsers send CR LF."""
        value = self._data.get(name)
        return value.replace("\r\n", "\n") or None if isinstance(value, str) else None

    def number(self, name: str) -> int | None:
        value = self.text(name)
        if value is None:
            return None
        if not value.isascii() or not value.isdigit() or len(value) > 18:
            raise invalid(name, "must be a whole number")
        return int(value)

    def decimal(self, name: str) -> float | None:
        value = self.text(name)
        try:
            return float(value) if value is not None else None
        except ValueError:
            raise invalid(name, "must be a number") from None

    def many(self, name: str) -> list[str]:
        return [value for value in self._data.getlist(name) if isinstance(value, str) and value]

    def value(self, name: str, field: Field) -> Any:
        if field is Field.FLAG:
            return True if self.text(name) else None
        if field is Field.MANY:
            return self.many(name)
        readers = {Field.TEXT: self.text, Field.LINES: self.lines, Field.NUMBER: self.number}
        return readers.get(field, self.decimal)(name)

    def body(self, fields: Fields) -> dict[str, Any]:
        """The nested body that the fields describe."""
        body: dict[str, Any] = {}
        for path, field in fields.items():
            value = self.value(path, field)
            if value is None:
                continue
            *parents, last = path.split(".")
            place = body
            for name in parents:
                place = place.setdefault(name, {})
            place[last] = value
        return body
