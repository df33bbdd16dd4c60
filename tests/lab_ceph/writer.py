"""A guest that writes numbered blocks to a disk, each flushed before it is acknowledged, and what must be on the disk.

Block `n` is written to a place of its own in turn: 64 of RBD's objects, and so all placement groups and all OSDs, 16
places in each. Every sector says which block it is of and which of its sectors, so what is lost, torn, stale or in the
wrong place is seen. Acknowledgements are kept in the guest's memory with the guest's time.
"""

from __future__ import annotations

import hashlib
import itertools
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
n=0
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


class Writer:
    def __init__(self, guest: Guest, device: str) -> None:
        self.guest, self.device = guest, device
        self._acks: list[Ack] = []

    def start(self) -> None:
        script = _SCRIPT.format(
            device=self.device,
            sectors=SECTORS,
            form=f"%0{SECTOR}d" * SECTORS,
            numbers=" ".join(f"$((s + {sector}))" for sector in range(SECTORS)),
            block=BLOCK,
            objects=OBJECTS,
            object_blocks=OBJECT_BLOCKS,
            places=PLACES,
        )
        self.guest.run(": > /tmp/w.acks")
        self.guest.background(script)
        self.go_on(5)

    def acks(self) -> list[Ack]:
        """All there are."""
        text = self.guest.run(f"cat /tmp/w.failed 2>/dev/null && exit 1; sed -n '{len(self._acks) + 1},$p' /tmp/w.acks")
        for line in text.splitlines():
            number, _, at = line.partition(" ")
            self._acks.append(Ack(int(number), float(at)))
        assert [ack.number for ack in self._acks] == list(range(1, len(self._acks) + 1))
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

    def mark(self) -> int:
        """How many there are now; at least one."""
        return len(self.acks())

    def stall(self, since: int) -> float:
        """The longest time between two acknowledgements, from number `since` on, in seconds."""
        times = [ack.at for ack in self.acks()[since - 1 :]]
        assert len(times) > 1
        return max(after - before for before, after in itertools.pairwise(times))

    def stop(self) -> int:
        """How many blocks it has written, all of them acknowledged."""
        self.guest.run("touch /tmp/w.stop; until [ -e /tmp/w.end ]; do usleep 50000; done")
        return len(self.acks())

    def digest(self) -> str:
        """SHA-256 of all places of the disk, read past the guest's cache."""
        run = PLACES * BLOCK
        each = OBJECT_BLOCKS // PLACES
        return self.guest.run(
            f"echo 3 > /proc/sys/vm/drop_caches; i=0; while [ $i -lt {OBJECTS} ]; do dd if=/dev/{self.device} bs={run} "
            f"skip=$((i * {each})) count=1 iflag=direct 2>/dev/null || echo failed; i=$((i + 1)); done | sha256sum",
            120.0,
        ).split()[0]


def digest(last: int) -> str:
    """What `Writer.digest` is to be once `last` blocks are written."""
    return hashlib.sha256(b"".join(runs(last))).hexdigest()
