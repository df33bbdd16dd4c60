"""Asking on the wire itself whether an address is there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Prober(Protocol):
    async def probe(self, addresses: Iterable[str], count: int, interval_s: float) -> dict[str, int]:
        """How many of `count` questions, `interval_s` seconds apart, each IPv4 address answered on layer 2.

        An address that this node has no direct network to, or could not ask for, is left out. `CloudError(ENGINE)` if
        nothing can be sent.
        """
        ...
