"""Reading plain arguments without pydantic.

Typer reads every argument through a pydantic adapter that it builds on first use, and importing pydantic takes a third
of the time of a short command. Strings, numbers and choices, which nearly all arguments are, need none. Whatever is
not recognised here is left to Typer.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

from typer import BadParameter
from typer._coercion import RuntimeParam

_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(\d{1,18}(\.\d{0,18})?|\.\d{1,18})", re.ASCII)


@dataclass(frozen=True)
class Plain(RuntimeParam):
    """A string, a list of strings, a number within its limits, or one of an enumeration's values."""

    def _coerce_value(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return self._read(value)
        except ValueError as error:
            raise BadParameter(str(error), ctx=ctx, param=param) from error

    def _read(self, value: Any) -> Any:
        annotation = self.annotation
        if annotation is str:
            return str(value)
        if annotation is bool:
            return self._flag(value)
        if isinstance(annotation, type) and issubclass(annotation, Enum):
            return self._choice(annotation, value)
        if annotation in (int, float):
            return self._number(value)
        return [str(item) for item in value]

    def _choice(self, choices: type[Enum], value: Any) -> Enum:
        if isinstance(value, choices):
            return value
        same = str if self.parameter_info.case_sensitive else str.lower
        for choice in choices:
            if same(choice.value) == same(value):
                return choice
        raise ValueError(f"'{value}' is not one of {', '.join(str(choice.value) for choice in choices)}")

    def _flag(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f"'{value}' is neither true nor false")
        return value

    def _number(self, value: Any) -> float:
        whole = self.annotation is int
        number = value
        if isinstance(value, str):
            if not (_WHOLE if whole else _DECIMAL).fullmatch(value):
                raise ValueError(f"'{value}' is not a {'whole ' if whole else ''}number")
            number = int(value) if whole else float(value)
        low, high = self.parameter_info.min, self.parameter_info.max
        if not math.isfinite(number) or (low is not None and number < low) or (high is not None and number > high):
            limits = f"from {low} to {high}" if high is not None else f"{low} or more"
            raise ValueError(f"{value} is not {limits}")
        return float(number) if not whole else number


def quickened(parameters: list[Any]) -> list[Any]:
    """These parameters of a command, the plain ones among them to be read by `Plain`."""
    for parameter in parameters:
        descriptor = parameter.type_descriptor
        if descriptor.is_file or descriptor.is_path or descriptor.parameter_info.parser:
            continue
        annotation = descriptor.annotation
        choice = isinstance(annotation, type) and issubclass(annotation, Enum)
        if choice or annotation in (str, bool, int, float, list[str]):
            parameter._runtime_param = Plain(parameter_info=descriptor.parameter_info, annotation=annotation)
    return parameters
