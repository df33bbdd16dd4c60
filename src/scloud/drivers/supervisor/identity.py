"""Which process is meant: a pid is reused, a pid with its start time and its boot is not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


def boot_id() -> str:
    """Changes at every boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """Clock ticks since boot at which the process began; None if there is none, or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The second field is the name in parentheses and may itself hold blanks and parentheses.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


@dataclass(frozen=True, slots=True)
class Identity:
    """One process for ever."""

    pid: int
    start: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        start = start_time(pid)
        return None if start is None else cls(pid, start, boot_id())

    @classmethod
    def read(cls, pidfile: Path) -> Identity | None:
        """What a pidfile names: `PID START BOOT`. None if it is absent or was cut short."""
        try:
            pid, start, boot = pidfile.read_text().split()
            return cls(int(pid), int(start), boot)
        except (OSError, ValueError):
            return None

    def alive(self) -> bool:
        return start_time(self.pid) == self.start and boot_id() == self.boot

    @contextlib.contextmanager
    def opened(self) -> Iterator[int | None]:
        """A pidfd that can mean no other process, or None if it is gone."""
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            yield None
            return
        try:
            # Compared after opening: from here on the descriptor holds the process that was compared.
            yield fd if self.alive() else None
        finally:
            os.close(fd)

    async def ended(self, timeout_s: float | None = None) -> bool:
        """Wait for its end, without polling. False if the time was over first."""
        with self.opened() as fd:
            return True if fd is None else await wait_pidfd(fd, timeout_s)

    async def end(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL after the grace; returns when it is gone."""
        with self.opened() as fd:
            if fd is None:
                return
            send(fd, signal.SIGTERM)
            # A stopped process takes no SIGTERM until it is continued.
            send(fd, signal.SIGCONT)
            if not await wait_pidfd(fd, grace_s):
                send(fd, signal.SIGKILL)
                await wait_pidfd(fd, None)


def send(pidfd: int, number: signal.Signals) -> None:
    """Signal a process that may have ended meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


async def wait_pidfd(fd: int, timeout_s: float | None) -> bool:
    """Wait until the process ends (its pidfd becomes readable). False if the time was over first."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    # Its own descriptor: two waiters on one process would else replace each other's reader.
    own = os.dup(fd)
    loop.add_reader(own, ended.set)
    try:
        async with asyncio.timeout(timeout_s):
            await ended.wait()
        return True
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(own)
        os.close(own)
