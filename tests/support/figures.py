"""What tests measure, told at the end of the run, whichever process they ran in."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

PROPERTY = "figure"


class Figures:
    """The figures of one test; they travel with its report."""

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record

    def note(self, line: str) -> None:
        self._record(PROPERTY, line)


def noted(reports: Iterable[pytest.TestReport]) -> list[str]:
    return [str(text) for report in reports for name, text in report.user_properties if name == PROPERTY]
