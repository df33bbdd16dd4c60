"""Probes on real wires: two namespaces and a veth between them. About a second."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest

from scloud.drivers.probe.arp import answered, request

PROBE = """
import asyncio, json, sys
from scloud.drivers.probe.arp import ArpProber
print(json.dumps(asyncio.run(ArpProber().probe(sys.argv[1:], 3, 0.1))))
"""


def ip(*argv: str) -> None:
    subprocess.run(["ip", *argv], check=True, capture_output=True)


@pytest.fixture
def wire() -> Iterator[tuple[str, str]]:
    """Two namespaces, with 192.0.2.1 and 192.0.2.2."""
    mine, theirs = "arp-probe-a", "arp-probe-b"
    for name in (mine, theirs):
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        ip("netns", "add", name)
    try:
        ip("link", "add", "w0", "netns", mine, "type", "veth", "peer", "name", "w0", "netns", theirs)
        for name, address in ((mine, "192.0.2.1/24"), (theirs, "192.0.2.2/24")):
            ip("-netns", name, "address", "add", address, "dev", "w0")
            ip("-netns", name, "link", "set", "w0", "up")
        yield mine, theirs
    finally:
        for name in (mine, theirs):
            ip("netns", "delete", name)


async def probe(namespace: str, *addresses: str) -> str:
    argv = ["ip", "netns", "exec", namespace, sys.executable, "-c", PROBE, *addresses]
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    return out.decode().strip()


@pytest.mark.engine
async def test_who_is_there_answers_and_who_is_not_does_not(wire: tuple[str, str]) -> None:
    mine, theirs = wire
    heard = await probe(mine, "192.0.2.2", "192.0.2.9", "192.0.2.1", "203.0.113.5")
    assert heard == '{"192.0.2.2": 3, "192.0.2.9": 0}', "its own and what is behind a router are left out"
    ip("-netns", theirs, "link", "set", "w0", "down")
    assert await probe(mine, "192.0.2.2") == '{"192.0.2.2": 0}'


def test_frames() -> None:
    frame = request(b"\x02\0\0\0\0\x01", "192.0.2.1", "192.0.2.2")
    assert len(frame) == 42 and frame[:6] == b"\xff" * 6 and answered(frame) is None, "a question is no answer"
    reply = bytearray(frame)
    reply[21] = 2
    assert answered(bytes(reply)) == "192.0.2.1"
    assert answered(bytes(reply[:30])) is None and answered(b"\0" * 60) is None
