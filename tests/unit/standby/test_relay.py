"""Connections passed on to whoever leads."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from scloud.link.channel import listen
from scloud.standby.relay import Address, Relay, TurnAway, apologise

Running = asyncio.Task[None]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each line in capitals, and says bye when the other end has said all."""
    while line := await reader.readline():
        writer.write(line.upper())
    writer.write(b"bye")
    writer.close()


async def hang_up(accepted: socket.socket) -> None:
    accepted.close()


@asynccontextmanager
async def relay(
    target: list[Address | None], turn_away: TurnAway = hang_up
) -> AsyncIterator[tuple[Address, asyncio.Task[None]]]:
    with listen("127.0.0.1", 0) as listener:
        running = asyncio.create_task(Relay(listener, lambda: target[0], turn_away).run())
        try:
            yield listener.getsockname(), running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_bytes_go_both_ways_and_each_direction_ends_by_itself() -> None:
    leader = await asyncio.start_server(echo, "127.0.0.1", 0, limit=1 << 20)
    async with leader, relay([leader.sockets[0].getsockname()]) as (address, _):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"one\n")
        assert await reader.readline() == b"ONE\n"
        writer.write(b"x" * 300_000 + b"\n")
        assert await reader.readexactly(300_001) == b"X" * 300_000 + b"\n"
        writer.write_eof()
        assert await reader.read() == b"bye"
        writer.close()


async def test_nobody_leads_and_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        closed = gone.getsockname()
    for target in (None, closed):
        async with relay([target], apologise) as (address, _):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 2" in answer and b"takes over" in answer
            writer.close()
        async with relay([target]) as (address, _):
            reader, writer = await asyncio.open_connection(*address)
            assert await reader.read() == b""
            writer.close()


async def test_a_relay_that_is_stopped_ends_what_it_passed_on_and_leaves_the_socket_to_the_next() -> None:
    leader = await asyncio.start_server(echo, "127.0.0.1", 0, limit=1 << 20)
    async with leader, relay([leader.sockets[0].getsockname()]) as (address, running):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"one\n")
        assert await reader.readline() == b"ONE\n"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert await reader.read() in (b"", b"bye")
        writer.close()
        # The socket still takes connections: they wait for whoever accepts them.
        _, waiting = await asyncio.open_connection(*address)
        waiting.close()
