"""Probes as ARP requests from a packet socket, as `arping` sends them: no route, filter or agent of the other node has
a part in the answer, only its network card and its kernel."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import orjson

from scloud.drivers.netfunc.command import run
from scloud.model.errors import CloudError, ErrorKind

ETHERTYPE_ARP = 0x0806
REQUEST, REPLY = 1, 2
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_BROADCAST = b"\xff" * 6


@dataclass(frozen=True, slots=True)
class Way:
    """The device whose network has an address, and our own address there."""

    device: str
    source: str


def request(mac: bytes, source: str, target: str) -> bytes:
    """An Ethernet frame that asks who has `target`."""
    body = _ARP.pack(
        1,
        0x0800,
        6,
        4,
        REQUEST,
        mac,
        ipaddress.IPv4Address(source).packed,
        b"\0" * 6,
        ipaddress.IPv4Address(target).packed,
    )
    return _BROADCAST + mac + struct.pack("!H", ETHERTYPE_ARP) + body


def answered(frame: bytes) -> str | None:
    """The address that an ARP reply speaks for; None for any other frame."""
    if len(frame) < 14 + _ARP.size or frame[12:14] != struct.pack("!H", ETHERTYPE_ARP):
        return None
    _, _, _, _, what, _, sender, _, _ = _ARP.unpack_from(frame, 14)
    return str(ipaddress.IPv4Address(sender)) if what == REPLY else None


class ArpProber:
    """Needs CAP_NET_RAW in the node's network namespace."""

    async def probe(self, addresses: Iterable[str], count: int, interval_s: float) -> dict[str, int]:
        by_device: dict[Way, list[str]] = defaultdict(list)
        for address in dict.fromkeys(addresses):
            way = await _way(address)
            if way is not None:
                by_device[way].append(address)
        rounds = [_ask(way, targets, count, interval_s) for way, targets in by_device.items()]
        heard: dict[str, int] = {}
        for part in await asyncio.gather(*rounds):
            heard |= part
        return heard


async def _way(address: str) -> Way | None:
    """None if it is behind a router, or one of our own."""
    try:
        routes = orjson.loads(await run("ip", "-json", "-4", "route", "get", str(ipaddress.IPv4Address(address))))
    except (CloudError, OSError, ValueError):
        return None
    route = routes[0] if routes else {}
    if "gateway" in route or route.get("type") == "local" or route.get("dev") in (None, "lo"):
        return None
    return Way(str(route["dev"]), str(route["prefsrc"]))


async def _ask(way: Way, targets: list[str], count: int, interval_s: float) -> dict[str, int]:
    loop = asyncio.get_running_loop()
    heard = dict.fromkeys(targets, 0)
    try:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(ETHERTYPE_ARP))
    except OSError as error:
        raise CloudError(ErrorKind.ENGINE, f"probing needs a packet socket: {error}") from error
    with contextlib.closing(wire):
        wire.bind((way.device, ETHERTYPE_ARP))
        mac = wire.getsockname()[4]
        waiting: set[str] = set()
        unsent: set[str] = set()

        def take() -> None:
            with contextlib.suppress(BlockingIOError, InterruptedError, OSError):
                while True:
                    address = answered(wire.recv(2048))
                    if address in waiting:
                        waiting.discard(address)
                        heard[address] += 1

        loop.add_reader(wire.fileno(), take)
        try:
            for _ in range(count):
                waiting |= set(targets)
                for target in targets:
                    try:
                        wire.send(request(mac, way.source, target))
                    except OSError:  # a device that is down carries no question: that there is no answer says nothing
                        unsent.add(target)
                await asyncio.sleep(interval_s)
                waiting.clear()
        finally:
            loop.remove_reader(wire.fileno())
    return {address: count for address, count in heard.items() if count or address not in unsent}
