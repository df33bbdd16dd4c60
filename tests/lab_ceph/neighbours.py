"""Who talks to a guest while something is broken, and what they notice: by pings, and on TCP connections it serves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lab.cloud import Guest, Lab, until
from lab.traffic import Pinging, Talking
from support.figures import Figures

NODES = ("n1", "n2", "n3")
UNNOTICED_S = 3.0
"""No longer may packets stand still where nothing is promised to happen to them: emulated guests share processors, with
one another and with others. How long they do is in the figures."""
ANSWERS_S = 180.0
"""So soon a guest that was lost is to answer at its address again: a verdict, a start and a boot, on a machine that may
be several times slower than another. How soon it does is in the figures."""


@dataclass
class Flow:
    """What was noticed, in seconds: the longest time without an answer to pings; the longest without a number on a TCP
    connection, which lived on and lost nothing."""

    gap: float = 0.0
    silence: float = 0.0

    def unnoticed(self, most_s: float = UNNOTICED_S) -> bool:
        """TCP sends again at doubled times: it may stand still for twice as long as the way does."""
        return self.gap <= most_s and self.silence <= 2 * most_s + 1.0


class Neighbours:
    """Two other guests of the VPC of one that things happen to; each of the three on a node of its own."""

    def __init__(self, lab: Lab, figures: Figures, guest: Guest, near: Guest, far: Guest) -> None:
        self.lab, self.figures, self.guest, self.near, self.far = lab, figures, guest, near, far

    @property
    def others(self) -> tuple[Guest, Guest]:
        return self.near, self.far

    def apart(self) -> None:
        """Those that are not on a node of their own are moved: all traffic goes through tunnels then."""
        free = [node for node in NODES if node != self.guest.node]
        for other in sorted(self.others, key=lambda guest: guest.node not in free):
            if other.node not in free:
                self._send(other, free[0])
            free.remove(other.node)

    def _send(self, other: Guest, node: str) -> None:
        self.lab.ok("vm", "migrate", other.name, "--to", node)
        other.forget()
        until(lambda: not other.resource["status"]["leaving"], f"{other.name} has left its node", 60.0)

    @contextmanager
    def talk(self, what: str, most_s: float | None = None) -> Iterator[Flow]:
        """The guest serves one of them throughout, and lives; for `most_s` at most nothing comes through."""
        self.apart()
        with self._flow(self.guest, self.near) as found:
            yield found
        self.figures.note(f"{what}: between the guest and one elsewhere {_words(found)}")
        assert most_s is None or found.unnoticed(most_s), found

    @contextmanager
    def lose_it(self, what: str) -> Iterator[None]:
        """The guest's node is lost, and it comes back elsewhere: the two notice nothing of each other, and reach it at
        its address again."""
        self.apart()
        address = self.guest.ip
        pinging = Pinging(self.near, address)
        with self._flow(self.far, self.near) as found:
            yield
        _, gap = pinging.stop()
        self.figures.note(f"{what}: between the guests elsewhere {_words(found)}; {address} was away for {gap:.1f} s")
        assert found.unnoticed(), found
        assert self.guest.ip == address and gap <= ANSWERS_S
        assert Talking(self.guest, self.near).stop()[0] >= 10, "it serves as before"

    @contextmanager
    def _flow(self, server: Guest, client: Guest) -> Iterator[Flow]:
        found = Flow()
        talking, pinging = Talking(server, client), Pinging(server, client.ip)
        yield found
        (_, found.gap), (_, found.silence) = pinging.stop(), talking.stop()


def _words(flow: Flow) -> str:
    return (
        f"pings went unanswered for {flow.gap:.1f} s at most, and a TCP connection that lived on stood still for "
        f"{flow.silence:.1f} s at most"
    )
