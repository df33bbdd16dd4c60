"""Consoles and streams: bytes both ways, several viewers of one serial port."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from agent_node import NODE, VPC, one_vm, vm_id

from scloud.agent.console import Consoles, read_log
from scloud.agent.journal import MemoryJournal
from scloud.agent.streams import Streams
from scloud.agent.vms import VmSettings
from scloud.drivers.netfunc.fake import FakeNetwork, FakeNetworkFunctions
from scloud.link.channel import Channel
from scloud.link.memory import MemoryListener
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.wire import StreamHello, first_message

VM = vm_id(1)


class Guest:
    """QEMU's end of a serial port: one client at a time."""

    def __init__(self) -> None:
        self.typed = bytearray()
        self.connections = 0
        self.writer: asyncio.StreamWriter | None = None
        self.heard = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writer = writer
        while data := await reader.read(100):
            self.typed += data
            self.heard.set()
        writer.close()


class World:
    def __init__(self, folder: Path) -> None:
        self.guest = Guest()
        self.network = FakeNetwork()
        self.network.specs[VPC] = None  # type: ignore[assignment]
        self.journal = MemoryJournal()
        self.settings = VmSettings("boot", folder, folder, 1450, offload=False)
        self.arrived: asyncio.Queue[tuple[str, Channel]] = asyncio.Queue()
        self.ended = asyncio.Event()
        listener = MemoryListener(self._serve)
        functions = FakeNetworkFunctions(self.network)
        self.streams = Streams(lambda: listener.dial(NODE), functions, self.journal, Consoles(), self.settings)

    async def _serve(self, channel: Channel) -> None:
        hello = await channel.receive(first_message)
        assert isinstance(hello, StreamHello)
        await self.arrived.put((hello.stream, channel))
        await self.ended.wait()


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    one = World(folder)
    await one.journal.apply(one_vm(), [])
    server = await asyncio.start_unix_server(one.guest.serve, one.settings.socket_of(VM))
    try:
        yield one
    finally:
        await one.streams.close()
        one.ended.set()
        server.close()


async def until_bytes(channel: Channel, expected: bytes) -> None:
    got = b""
    while len(got) < len(expected):
        part = await channel.read()
        assert part, f"ended after {got!r}"
        got += part
    assert got == expected


async def test_a_console_shows_history_then_what_comes_and_takes_what_is_typed(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.settings.log_of(VM).write_bytes(b"booting...\n")
        await one.streams.open("str-1", "console", VM, None)
        name, channel = await one.arrived.get()
        assert name == "str-1"
        await until_bytes(channel, b"booting...\n")
        await channel.write(b"ls\n")
        await one.guest.heard.wait()
        assert bytes(one.guest.typed) == b"ls\n"
        assert one.guest.writer is not None
        one.guest.writer.write(b"bin etc\n")
        await until_bytes(channel, b"bin etc\n")


async def test_viewers_share_the_one_connection_and_the_last_one_closes_it(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.streams.open("a", "console", VM, None)
        await one.streams.open("b", "console", VM, None)
        (_, first), (_, second) = await one.arrived.get(), await one.arrived.get()
        await first.write(b"x")
        await one.guest.heard.wait()
        assert one.guest.writer is not None
        one.guest.writer.write(b"both")
        await until_bytes(first, b"both")
        await until_bytes(second, b"both")
        assert one.guest.connections == 1
        await first.close()
        one.guest.writer.write(b"one")
        await until_bytes(second, b"one")
        await second.close()
        async with asyncio.timeout(5):
            await one.guest.writer.wait_closed()
        await one.streams.open("c", "console", VM, None)
        await one.arrived.get()
        assert one.guest.connections == 2


async def test_a_console_ends_with_its_qemu(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        await one.streams.open("a", "console", VM, None)
        _, channel = await one.arrived.get()
        await channel.write(b"x")
        await one.guest.heard.wait()
        assert one.guest.writer is not None
        one.guest.writer.close()
        assert await channel.read() == b""


async def test_a_viewer_that_does_not_read_holds_up_nobody(tmp_path: Path) -> None:
    consoles = Consoles()
    guest = Guest()
    path = tmp_path / "sock"
    server = await asyncio.start_unix_server(guest.serve, path)
    await consoles.open("vm", path)
    slow: asyncio.Queue[bytes] = asyncio.Queue(2)
    line = consoles._lines["vm"]
    line.viewers.append(slow)
    for _ in range(5):
        line.say(b"data")
    assert slow not in line.viewers
    assert slow.get_nowait() == b""
    await consoles.close()
    server.close()


async def test_a_tcp_port_is_reached_from_inside_the_vpc(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        listener = one.network.serve(VPC, "10.0.0.11", 22)

        async def sshd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0\n" + (await reader.readline()).upper())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(sshd, sock=listener)
        await one.streams.open("s", "tcp", VM, 22)
        _, channel = await one.arrived.get()
        await channel.write(b"hello\n")
        await until_bytes(channel, b"SSH-2.0\nHELLO\n")
        assert await channel.read() == b""
        server.close()


async def test_a_port_of_a_guest_that_is_gone_ends(tmp_path: Path) -> None:
    """It has moved to another node, or lost its power: nothing more would ever be heard of it."""
    async with world(tmp_path) as one:
        listener = one.network.serve(VPC, "10.0.0.11", 22)
        for name in ("a", "b"):
            await one.streams.open(name, "tcp", VM, 22)
        channels = [(await one.arrived.get())[1] for _ in range(2)]
        one.streams.guest_gone(vm_id(2))
        one.streams.guest_gone(VM)
        async with asyncio.timeout(5):
            assert [await channel.read() for channel in channels] == [b"", b""]
        listener.close()


@pytest.mark.parametrize(
    ("kind", "vm", "port", "error"),
    [
        ("tcp", VM, 22, ErrorKind.UNAVAILABLE),
        ("tcp", VM, 0, ErrorKind.INVALID),
        ("tcp", VM, None, ErrorKind.INVALID),
        ("tcp", "vm-unknown", 22, ErrorKind.NOT_FOUND),
        ("udp", VM, 22, ErrorKind.INVALID),
    ],
)
async def test_what_cannot_be_opened_is_said_and_nothing_is_dialled(
    tmp_path: Path, kind: str, vm: str, port: int | None, error: ErrorKind
) -> None:
    async with world(tmp_path) as one:
        with pytest.raises(CloudError) as caught:
            await one.streams.open("s", kind, vm, port)
        assert caught.value.kind == error
        assert one.arrived.empty()


async def test_the_console_of_a_vm_that_is_off(tmp_path: Path) -> None:
    async with world(tmp_path) as one:
        one.settings.socket_of(VM).unlink()
        with pytest.raises(CloudError) as caught:
            await one.streams.open("s", "console", VM, None)
        assert caught.value.kind == ErrorKind.CONFLICT


def test_the_end_of_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert read_log(path, 10) == b""
    path.write_bytes(b"0123456789abc")
    assert read_log(path, 5) == b"89abc"
    assert read_log(path, 100) == b"0123456789abc"


async def test_a_guest_that_is_still_booting_is_tried_until_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as one:
        tries: list[float] = []
        real = one.streams._functions.connect

        async def silent(vpc: str, address: str, port: int, timeout_s: float) -> socket.socket:
            tries.append(timeout_s)
            if len(tries) < 3:
                raise CloudError(ErrorKind.TIMED_OUT, "no answer")
            return await real(vpc, address, port, timeout_s)

        monkeypatch.setattr(one.streams._functions, "connect", silent)
        listener = one.network.serve(VPC, "10.0.0.11", 22)
        await one.streams.open("s", "tcp", VM, 22)
        await one.arrived.get()
        assert tries == [1.0, 1.0, 1.0]
        listener.close()
