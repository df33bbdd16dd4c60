"""When libvirt has given a migrated domain up at its source, told earlier than its API tells it.

Once the target has said that it has everything, libvirt ends the source's QEMU, and holds the domain's lock until the
process is no more; with disks in a pool that takes more than a second, as each image is closed first. The guest pauses
that long if it waits for the call to return. What is certain before: libvirt writes a line into the domain's log when
it begins to end QEMU (`qemuProcessStop`, after the phase in which it could still let the source run has passed and was
saved; a libvirtd that is restarted then ends that QEMU too).
"""

from __future__ import annotations

import asyncio
from pathlib import Path

LOOK_EVERY_S = 0.005
"""A file has no event that asyncio knows; this much is lost of the guest's pause, on average half of it."""
_SAID = b": shutting down, reason=migrated"


class Farewell:
    """Of one domain, from now on: what its log says already is of an earlier migration."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._file, self._read = self._at_end()

    def _at_end(self) -> tuple[int, int]:
        try:
            status = self._log.stat()
        except OSError:
            return 0, 0
        return status.st_ino, status.st_size

    async def said(self) -> None:
        """Returns once it has. Never, where the log cannot be read or libvirt's words are others."""
        while not self._new():
            await asyncio.sleep(LOOK_EVERY_S)

    def _new(self) -> bool:
        file, size = self._at_end()
        if file != self._file or size < self._read:  # begun anew by whoever keeps the logs small
            self._file, self._read = file, 0
        if size == self._read:
            return False
        try:
            with self._log.open("rb") as log:
                log.seek(self._read)
                added = log.read()
        except OSError:
            return False
        whole = added.rfind(b"\n") + 1
        self._read += whole
        return any(line.endswith(_SAID) for line in added[:whole].splitlines())
