"""Pydantic's errors as rules in words for people: what a value must be, not which check it failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from scloud.model.fields import PATTERN_RULES

Context = Mapping[str, Any]
PLACES = ("body", "query", "path", "header", "cookie")
"""Where FastAPI found a value: the first part of an error's location, of no use to whoever sent it."""


def _items(ctx: Context, key: str) -> str:
    """`16 items, not 17`; the second part only where pydantic counted."""
    number, actual = ctx[key], ctx.get("actual_length")
    counted = f", not {actual}" if isinstance(actual, int) else ""
    return f"{number} {'item' if number == 1 else 'items'}{counted}"


def _pattern(ctx: Context) -> str:
    rule = PATTERN_RULES.get(ctx["pattern"])
    return f"must be {rule}" if rule else f"must match the pattern {ctx['pattern']}"


_INTEGER = "must be a whole number"
_NUMBER = "must be a number"
_OBJECT = "must be an object: {...}"
_WORDS: dict[str, Callable[[Context], str]] = {
    "missing": lambda _: "is required",
    "extra_forbidden": lambda _: "is not a field of this request",
    "json_invalid": lambda ctx: f"is not JSON: {ctx.get('error', 'it cannot be read')}",
    "string_pattern_mismatch": _pattern,
    "string_too_short": lambda ctx: f"must have at least {ctx['min_length']} characters",
    "string_too_long": lambda ctx: f"must have at most {ctx['max_length']} characters",
    "string_type": lambda _: "must be a text",
    "string_unicode": lambda _: "must be a text of whole Unicode characters",
    "too_short": lambda ctx: f"must have at least {_items(ctx, 'min_length')}",
    "too_long": lambda ctx: f"must have at most {_items(ctx, 'max_length')}",
    "list_type": lambda _: "must be a list: [...]",
    "dict_type": lambda _: _OBJECT,
    "model_type": lambda _: _OBJECT,
    "model_attributes_type": lambda _: _OBJECT,
    "int_type": lambda _: _INTEGER,
    "int_parsing": lambda _: _INTEGER,
    "int_parsing_size": lambda _: f"{_INTEGER} of a sensible size",
    "int_from_float": lambda _: _INTEGER,
    "float_type": lambda _: _NUMBER,
    "float_parsing": lambda _: _NUMBER,
    "finite_number": lambda _: "must be a finite number",
    "bool_type": lambda _: "must be true or false",
    "bool_parsing": lambda _: "must be true or false",
    "greater_than": lambda ctx: f"must be more than {_number(ctx['gt'])}",
    "greater_than_equal": lambda ctx: f"must be at least {_number(ctx['ge'])}",
    "less_than": lambda ctx: f"must be less than {_number(ctx['lt'])}",
    "less_than_equal": lambda ctx: f"must be at most {_number(ctx['le'])}",
    "literal_error": lambda ctx: f"must be {ctx['expected']}",
    "enum": lambda ctx: f"must be {ctx['expected']}",
}


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else f"{value:.0f}"


def field_of(error: Mapping[str, Any]) -> str:
    """The path of the value: `spec.nics.0.ip`, or `body` for the whole of it."""
    parts = [str(part) for part in error["loc"]]
    if parts and parts[0] in PLACES:
        parts = parts[1:]
    if error["type"] == "json_invalid":
        parts = []  # a position in the text, which the rule tells
    return ".".join(parts) or "body"


def rule_of(error: Mapping[str, Any]) -> str:
    """One of pydantic's errors as a rule, without the field's name."""
    say = _WORDS.get(error["type"])
    if say is not None:
        return say(error.get("ctx") or {})
    return str(error["msg"]).removeprefix("Value error, ")
