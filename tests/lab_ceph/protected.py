"""A guest that is to survive everything: it writes numbered blocks to the cluster, and is watched during each fault.

Where it has neighbours they talk to it, and to each other, meanwhile.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from lab.cloud import Guest, Lab, until
from lab_ceph.copies import Watch, never_twice
from lab_ceph.neighbours import Neighbours
from lab_ceph.storage import Storage
from lab_ceph.writer import DISK_MIB, Heard, Writer
from scloud.client.incidents import story
from support.figures import Figures

DISK = "numbered"
STEPS = ("heard", "suspected", "probed", "dead", "fencing", "key", "fenced", "placed", "running", "recovered")
RETURN = ("back", "cleaned", "let in", "closed")
Break = Callable[[str], None]
"""Does it to a node."""


class Protected:
    """With HA's numbers of the profile `fast`."""

    def __init__(
        self, lab: Lab, storage: Storage, figures: Figures, guest: Guest, writer: Writer,
        others: tuple[Guest, Guest] | None = None,
    ) -> None:  # fmt: skip
        self.lab, self.storage, self.figures = lab, storage, figures
        self.guest, self.writer = guest, writer
        self._neighbours = Neighbours(lab, figures, guest, *others) if others else None
        self.disk = str(lab.show("disks", DISK)["id"])
        self.pool = storage.pool("standard")

    @property
    def neighbours(self) -> Neighbours:
        assert self._neighbours is not None
        return self._neighbours

    @property
    def node(self) -> str:
        return self.guest.node

    def others(self) -> list[str]:
        return [node for node in ("n1", "n2", "n3") if node != self.node]

    def incidents(self, node: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.lab.json("ha", "log", "--node", node)
        return found

    @contextmanager
    def watched(self, what: str, witness: str | None = None) -> Iterator[tuple[Watch, Heard]]:
        """`witness` is a node that the fault spares."""
        with never_twice(self.lab, self.pool, witness or self.others()[0]) as watch, self.writer.heard() as heard:
            yield watch, heard
        self.figures.note(f"{what}: {watch.words(self.guest.id, self.disk)}")

    @contextmanager
    def nothing_is_done(self, what: str, undo: Callable[[str], None]) -> Iterator[str]:
        """Meanwhile something is broken that costs no VM its life; `undo` mends it. The guest and its writes go on."""
        node, boot, before = self.node, self.guest.boot_id(), len(self.incidents(self.node))
        since = self.writer.mark()
        with self.watched(what) as (watch, heard):
            try:
                yield node
            finally:
                undo(node)
            self.lab.wait_manager()
            self.guest.forget()
            self.writer.go_on(64)
        assert self.guest.node == node and self.guest.boot_id() == boot
        assert len(self.incidents(node)) == before and self.writer.mark() >= heard.last - self.writer.after
        assert watch.running.of(self.guest.id) == [[node]], watch.running.changes
        pause, at = self.writer.pause(since)
        self.figures.note(f"{what}: longest time without a write {pause:.1f} s, from {at:.1f} s on")

    def recovers(self, what: str, do: Break) -> None:
        """Its node is lost: it runs elsewhere, once, with all that it was told to be written; the node returns and is
        let in, and nothing is left there."""
        with self._neighbours.lose_it(what) if self._neighbours else nullcontext():
            self._recovers(what, do)

    def _recovers(self, what: str, do: Break) -> None:
        node = self.node
        with self.watched(what) as (watch, heard):
            do(node)
            began = time.monotonic()
            self.guest.forget()
            try:
                until(lambda: self.home() not in (node, None), "it is given to another node", 120.0)
                self.lab.wait_state(self.guest.name, "running")
            finally:
                self.lab.ok("lab", "heal", node)
            self.back_with_its_writes(heard.last)
            took = time.monotonic() - began
            until(lambda: not self.lab.json("ha", "status")["incidents"], f"{node} is let in", 90.0)
            self.storage.healthy()
            self.lab.converged()
        home = self.guest.node
        last = story(self.incidents(node)[-1])
        self.figures.note(f"{what}: lost {node}, writes read back on {home} after {took:.0f} s; its log:\n{told(last)}")
        said = [moment["what"] for moment in last["moments"]]
        # Of each the first: the lost node may have had other guests as well.
        assert list(dict.fromkeys(one for one in said if one in STEPS)) == list(STEPS), said
        assert said[-4:] == list(RETURN), said
        assert watch.running.of(self.guest.id) == [[node], [], [home]], watch.running.changes
        assert watch.open.of(self.disk)[-1] == [home], watch.open.changes

    def home(self) -> str | None:
        found: str | None = self.guest.resource["status"]["node"]
        return found

    def back_with_its_writes(self, acknowledged: int) -> None:
        """After the guest has died: what it said to be written is there; it goes on to write."""
        self.guest.wait_boot()
        self.writer.device = self.guest.device_of(self.disk)
        last = self.writer.last(acknowledged)
        self.figures.note(f"block {acknowledged} was the last acknowledged, {last} is the last on the disk")
        self.writer.start(last)


def told(incident: dict[str, Any]) -> str:
    return "\n".join(f"{one['ms']:8} ms  {one['what']:10} {one['text']}" for one in incident["moments"])


def make(lab: Lab) -> tuple[Guest, Writer]:
    lab.ok("ha", "settings", "--profile", "fast")
    disk = lab.json("disk", "create", DISK, "--size", f"{DISK_MIB}M", "--type", "standard")
    guest = lab.create("safe", "--disk-type", "standard")
    lab.ok("disk", "attach", DISK, "safe")
    writer = Writer(guest, guest.device_of(disk["id"]))
    writer.start()
    return guest, writer


def remove(lab: Lab, guest: Guest) -> None:
    guest.forget()
    lab.ok("vm", "delete", guest.name)
    lab.ok("disk", "delete", DISK, "--now")
    lab.ok("ha", "settings", "--profile", "default")


def conditions(lab: Lab) -> str:
    return json.dumps(lab.json("ha", "status")["conditions"])
