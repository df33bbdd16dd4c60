"""Probing: what ends a round, and what counts as asked."""

from __future__ import annotations

import os

import pytest

from scloud.drivers.probe import arp
from scloud.reconcile.ha.detector import Answers, ProbeOrder, Round
from support.cloud import Cloud


async def test_a_round_ends_whatever_its_probers_answer(cloud: Cloud) -> None:
    """A node that is being probed is not judged before, so its round may not be lost."""
    good, bad = await cloud.node("n1"), await cloud.node("n2")
    good.answers["probe"] = lambda params: dict.fromkeys(params["addresses"], 0)
    bad.answers["probe"] = lambda params: None
    pairs = (("192.0.2.9", "192.0.2.1"),)
    order = ProbeOrder("nod-9", 1000.0, {good.id: pairs, bad.id: pairs, "nod-gone": pairs}, 1, 0.1)
    ha = cloud.manager.ha
    ha._results.clear()
    await ha._probe(order)
    (ended,) = ha._results
    assert isinstance(ended, Round) and ended.order is order
    assert ended.answers[good.id] == Answers({"192.0.2.9": 0, "192.0.2.1": 0})
    assert "was of no use" in ended.answers[bad.id].failed and ended.answers["nod-gone"].failed


class DownWire:
    """A packet socket on a device that is down for what is asked of one address."""

    def __init__(self, *_: object) -> None:
        self._ends = os.pipe()

    def bind(self, _: object) -> None: ...

    def getsockname(self) -> tuple[object, ...]:
        return ("w0", 0, 0, 1, b"\x02\0\0\0\0\x01")

    def fileno(self) -> int:
        return self._ends[0]

    def recv(self, _: int) -> bytes:
        raise BlockingIOError

    def send(self, frame: bytes) -> None:
        if frame.endswith(bytes((192, 0, 2, 7))):
            raise OSError("network is down")

    def close(self) -> None:
        for end in self._ends:
            os.close(end)


async def test_what_could_not_be_asked_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arp.socket, "socket", DownWire)
    heard = await arp._ask(arp.Way("w0", "192.0.2.1"), ["192.0.2.7", "192.0.2.8"], 2, 0.01)
    assert heard == {"192.0.2.8": 0}
