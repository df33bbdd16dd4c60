"""Probes in a world without wires: `reaches` says what answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable


class FakeProber:
    def __init__(self, reaches: Callable[[str], bool] = lambda address: False) -> None:
        self._reaches = reaches

    async def probe(self, addresses: Iterable[str], count: int, interval_s: float) -> dict[str, int]:
        heard = dict.fromkeys(addresses, 0)
        for number in range(count):
            if number:
                await asyncio.sleep(interval_s)
            for address in heard:
                heard[address] += self._reaches(address)
        return heard
