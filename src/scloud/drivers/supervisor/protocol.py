"""Keeps engine processes running. They outlive whoever started them, and are found again by name."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from scloud.model.base import Value


class ProcessSpec(Value):
    """A daemon in the foreground. `ready` is a socket or file that appears when it can be used."""

    name: str
    argv: tuple[str, ...]
    env: dict[str, str] = {}
    ready: Path | None = None
    ready_timeout_s: float = 15.0
    netns: str | None = None


class ProcessFacts(Value):
    """`restarts` counts starts that replaced a process which had died by itself, since it was last stopped."""

    name: str
    pid: int | None
    running: bool
    restarts: int = 0


class Supervisor(Protocol):
    async def ensure(self, spec: ProcessSpec) -> bool:
        """Running and ready when this returns; True if it had to be started. `CloudError(ENGINE)` names the log.

        A process that runs with other arguments, environment or namespace than the spec's is replaced.
        """
        ...

    async def stop(self, name: str, grace_s: float = 5.0) -> None:
        """Ask it to end, and after the grace make it; nothing to do if it does not run."""
        ...

    async def died(self, name: str) -> None:
        """Return as soon as the named process does not run; at once if there is none."""
        ...

    async def processes(self) -> list[ProcessFacts]: ...
