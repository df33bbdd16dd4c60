"""Showing what is being done, step by step, and how long each step took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

from scloud.model.errors import CloudError


class Step:
    """One line of the display. `already()` says that there was nothing to do."""

    def __init__(self) -> None:
        self.changed = True
        self.note = ""

    def say(self, note: str) -> None:
        """Something worth knowing about how it went."""
        self.note = note

    def already(self, note: str = "") -> None:
        self.changed = False
        self.note = note or self.note


class Steps:
    """A display of steps on the terminal; plain lines where there is none."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.changed = 0
        self._began = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """Announce, run, and tell how long it took; a step that raises is marked as failed."""
        began = time.monotonic()
        step = Step()
        try:
            if self.console.is_terminal:
                with self.console.status(f"{title} ..."):
                    yield step
            else:
                yield step
        except (CloudError, KeyboardInterrupt):
            self._line("[red]✗[/]", title, "failed", time.monotonic() - began)
            raise
        self.changed += step.changed
        self._line("[green]✓[/]" if step.changed else "[dim]·[/]", title, step.note, time.monotonic() - began)

    def report(self, title: str, took_s: float) -> None:
        """A step that was done before there was this display."""
        self.changed += 1
        self._line("[green]✓[/]", title, "", took_s)

    def _line(self, mark: str, title: str, note: str, took: float) -> None:
        self.console.print(f"{mark} {escape(title):<28} [dim]{took:6.1f} s[/]  [dim]{escape(note)}[/]", soft_wrap=True)

    def elapsed(self) -> float:
        return time.monotonic() - self._began
