"""A guest that writes numbered blocks to a disk, each flushed before it is acknowledged, and what must be on the disk.

Block `n` is written to a place of its own in turn: 64 of RBD's objects, and so all placement groups and all OSDs, 16
places in each. Every sector says which block it is of and which of its sectors, so what is lost, torn, stale or in the
wrong place is seen. Acknowledgements are kept in the guest's memory with the guest's time.
"""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lab.cloud import Guest, until

BLOCK = 4096
SECTORS = 8
SECTOR = BLOCK // SECTORS
OBJECTS = 64
PLACES = 16
OBJECT_BLOCKS = 1024
"""Blocks in one of RBD's objects of 4 MiB."""
DISK_MIB = OBJECTS * OBJECT_BLOCKS * BLOCK >> 20

_SCRIPT = """
n={after}
while [ ! -e /tmp/w.stop ]; do
    n=$((n + 1)); s=$((n * {sectors}))
    printf '{form}' {numbers} > /tmp/w.block
    at=$((n % {objects} * {object_blocks} + n / {objects} % {places}))
    dd if=/tmp/w.block of=/dev/{device} bs={block} seek=$at \\
        oflag=direct conv=notrunc,fsync 2> /tmp/w.dd || {{ echo "block $n: $(cat /tmp/w.dd)" > /tmp/w.failed; break; }}
    read up rest < /proc/uptime
    echo "$n $up" >> /tmp/w.acks
done
touch /tmp/w.end
"""
# BusyBox's `tail -f` looks once a second.
_TELL = "exec 3< /tmp/w.acks; while :; do if read line <&3; then echo $line; else usleep 20000; fi; done"


def content(number: int) -> bytes:
    """Of a block."""
    return b"".join(b"%0*d" % (SECTOR, number * SECTORS + sector) for sector in range(SECTORS))


def place(number: int) -> int:
    """Where on the disk a block is written, in blocks."""
    return number % OBJECTS * OBJECT_BLOCKS + number // OBJECTS % PLACES


def written(last: int) -> dict[int, int]:
    """Place to the block that is the last one written there, once `last` blocks are."""
    return {place(number): number for number in range(max(1, last - OBJECTS * PLACES + 1), last + 1)}


def runs(last: int) -> list[bytes]:
    """What is at the places of each object."""
    there = written(last)
    return [
        b"".join(
            content(there[block]) if (block := number * OBJECT_BLOCKS + offset) in there else bytes(BLOCK)
            for offset in range(PLACES)
        )
        for number in range(OBJECTS)
    ]


@dataclass(frozen=True)
class Ack:
    """`at`: the guest's seconds since it booted."""

    number: int
    at: float


class Heard:
    """What a guest has said to be written. `last` is the number of the last block."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.last = 0
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        until(lambda: self.last, "the guest acknowledges blocks", 30.0)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):
                self.last = int(line.partition(" ")[0])


class Writer:
    def __init__(self, guest: Guest, device: str) -> None:
        self.guest, self.device = guest, device
        self._acks: list[Ack] = []
        self.after = 0

    def start(self, after: int = 0) -> None:
        """As `launch`, until some are acknowledged."""
        self.launch(after)
        self.go_on(5)

    def launch(self, after: int) -> None:
        """From block `after` + 1 on; what was acknowledged before is forgotten."""
        self._acks, self.after = [], after
        script = _SCRIPT.format(
            after=after,
            device=self.device,
            sectors=SECTORS,
            form=f"%0{SECTOR}d" * SECTORS,
            numbers=" ".join(f"$((s + {sector}))" for sector in range(SECTORS)),
            block=BLOCK,
            objects=OBJECTS,
            object_blocks=OBJECT_BLOCKS,
            places=PLACES,
        )
        self.guest.run("rm -f /tmp/w.*; : > /tmp/w.acks")
        self.guest.background(script)

    def acks(self) -> list[Ack]:
        """All there are."""
        text = self.guest.run(f"cat /tmp/w.failed 2>/dev/null && exit 1; sed -n '{len(self._acks) + 1},$p' /tmp/w.acks")
        for line in text.splitlines():
            number, _, at = line.partition(" ")
            self._acks.append(Ack(int(number), float(at)))
        assert [ack.number for ack in self._acks] == [self.after + place + 1 for place in range(len(self._acks))]
        return self._acks

    def go_on(self, more: int = 20, seconds: float = 60.0) -> None:
        """Wait for so many more acknowledgements than there are now."""
        before = len(self._acks)

        def enough() -> bool:
            return len(self.acks()) >= before + more

        if before:
            self.acks()
            before = len(self._acks)
        until(enough, f"the guest has written {more} more blocks", seconds)

    def go_on_for(self, seconds: float) -> None:
        """Wait until it has written for so long by its own clock."""
        began = self.acks()[-1].at
        until(lambda: self.acks()[-1].at - began > seconds, f"the guest writes for {seconds:g} s", seconds + 60.0)

    def mark(self) -> int:
        """How many there are now; at least one."""
        return len(self.acks())

    def stall(self, since: int) -> float:
        """The longest time between two acknowledgements, from number `since` on, in seconds."""
        return self.pause(since)[0]

    def pause(self, since: int) -> tuple[float, float]:
        """The same, and how long after acknowledgement `since` it began."""
        times = [ack.at for ack in self.acks()[since - 1 :]]
        assert len(times) > 1
        return max((after - before, before - times[0]) for before, after in itertools.pairwise(times))

    def stop(self) -> int:
        """The last block that it has written, all of them acknowledged."""
        self.guest.run("touch /tmp/w.stop; until [ -e /tmp/w.end ]; do usleep 50000; done")
        return self.after + len(self.acks())

    @contextmanager
    def heard(self) -> Iterator[Heard]:
        """Acknowledgements as they come, until the guest or the way to it is gone."""
        with self.guest.reading(_TELL) as process:
            yield Heard(process)

    def last(self, acknowledged: int) -> int:
        """The last block on the disk, once the guest has died: no earlier one than was acknowledged, and all are
        whole. AssertionError if not."""
        found = self.guest.run(self._reading(), 120.0)
        sectors = [found[at : at + SECTOR] for at in range(0, len(found), BLOCK)]
        last = max((int(text) // SECTORS for text in sectors if text[0] != "\0"), default=0)
        assert last >= acknowledged, f"block {acknowledged} was acknowledged, and {last} is the last on the disk"
        size = PLACES * BLOCK
        for number, expected in enumerate(runs(last)):
            assert found[number * size : (number + 1) * size] == expected.decode(), f"object {number} is not as written"
        return last

    def _reading(self) -> str:
        """All places of the disk, past the guest's cache."""
        run = PLACES * BLOCK
        each = OBJECT_BLOCKS // PLACES
        return (
            f"echo 3 > /proc/sys/vm/drop_caches; i=0; while [ $i -lt {OBJECTS} ]; do dd if=/dev/{self.device} bs={run} "
            f"skip=$((i * {each})) count=1 iflag=direct 2>/dev/null || echo failed; i=$((i + 1)); done"
        )

    def digest(self) -> str:
        """SHA-256 of all places of the disk."""
        return self.guest.run(f"{{ {self._reading()}; }} | sha256sum", 120.0).split()[0]


def digest(last: int) -> str:
    """What `Writer.digest` is to be once `last` blocks are written."""
    return hashlib.sha256(b"".join(runs(last))).hexdigest()
