"""Streams: bytes both ways, reasons of a close, and a guest that still boots."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from fake_cloud import FakeCloud

from scloud.client import streams
from scloud.client.contexts import Context
from scloud.client.http import Client
from scloud.model.errors import CloudError, ErrorKind


class Feed:
    """A source that gives its pieces, then ends or, without `ends`, stays silent."""

    def __init__(self, *pieces: bytes, ends: bool = True) -> None:
        self.pieces = list(pieces)
        self.ends = ends

    async def read(self) -> bytes:
        if self.pieces:
            return self.pieces.pop(0)
        if not self.ends:
            await asyncio.Event().wait()
        return b""


class Sink:
    def __init__(self) -> None:
        self.data = b""

    async def write(self, data: bytes) -> None:
        self.data += data


@asynccontextmanager
async def guest(cloud: FakeCloud, greeting: bytes = b"SSH-2.0-guest\r\n") -> AsyncIterator[list[bytes]]:
    """A server in place of a guest's port: greets, answers one line in reverse, closes. Gives what it heard."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        heard.append(await reader.readline())
        writer.write(heard[-1].strip()[::-1] + b"\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        cloud.guest_port = server.sockets[0].getsockname()[1]
        yield heard


@pytest.fixture
def vm(context: Context) -> str:
    return str(Client(context).post("/vms", {"name": "a", "spec": {}})["resource"]["id"])


async def test_console_bytes_go_both_ways_until_the_far_side_closes(context: Context, vm: str) -> None:
    sink = Sink()
    async with streams.open_stream(context, streams.console_path(vm)) as connection:
        await streams.relay(connection, Feed(b"hello\n", b"exit\n", ends=False).read, sink.write)
    assert sink.data == b"HELLO\n"


async def test_another_manager_opens_the_stream_when_the_first_one_is_dead(context: Context, vm: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        dead = f"http://127.0.0.1:{server.getsockname()[1]}"  # nobody listens there from here on
    sink = Sink()
    two = replace(context, url=dead, others=(context.url,))
    async with streams.open_stream(two, streams.console_path(vm)) as connection:
        await streams.relay(connection, Feed(b"hello\n", b"exit\n", ends=False).read, sink.write)
    assert sink.data == b"HELLO\n"
    with pytest.raises(CloudError, match=f"{dead} does not open the stream.*`scloud status`"):
        async with streams.open_stream(replace(context, url=dead), streams.console_path(vm)):
            pass


async def test_another_manager_opens_the_stream_when_the_first_one_hangs(
    context: Context, vm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HURRY_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as hangs:  # takes connections, and never answers
        hung = replace(context, url=f"http://127.0.0.1:{hangs.getsockname()[1]}", others=(context.url,))
        sink = Sink()
        async with asyncio.timeout(10), streams.open_stream(hung, streams.console_path(vm)) as connection:
            await streams.relay(connection, Feed(b"hello\n", b"exit\n", ends=False).read, sink.write)
    assert sink.data == b"HELLO\n"


async def test_after_the_input_has_ended_silence_ends_the_relay(context: Context, vm: str) -> None:
    sink = Sink()
    async with asyncio.timeout(10), streams.open_stream(context, streams.console_path(vm)) as connection:
        await streams.relay(connection, Feed(b"hello\n").read, sink.write, after_end=0.3)
    assert sink.data == b"HELLO\n"


async def test_the_reason_of_a_close_is_the_error(context: Context) -> None:
    with pytest.raises(CloudError, match="there is no vm 'nobody'") as caught:
        async with streams.open_stream(context, streams.console_path("nobody")) as connection:
            await streams.relay(connection, Feed(ends=False).read, Sink().write)
    assert caught.value.kind is ErrorKind.NOT_FOUND


async def test_a_refused_handshake_is_an_error(context: Context, vm: str) -> None:
    stranger = Context("stranger", context.url, "wrong")
    with pytest.raises(CloudError) as caught:
        async with streams.open_stream(stranger, streams.forward_path(vm, 22)):
            pass
    assert caught.value.kind is ErrorKind.FORBIDDEN


async def test_nobody_there_is_unavailable() -> None:
    with pytest.raises(CloudError) as caught:
        async with streams.open_stream(Context("gone", "http://127.0.0.1:1", "t"), "/vms/a/console"):
            pass
    assert caught.value.kind is ErrorKind.UNAVAILABLE


async def test_a_booting_guest_is_tried_again_and_hears_everything_once(
    context: Context, cloud: FakeCloud, vm: str
) -> None:
    cloud.closed_forwards = ["engine: connection refused", "unavailable: it has no address yet"]
    sink, reasons = Sink(), []
    async with guest(cloud) as heard:
        await streams.relay_until_answered(
            context,
            streams.forward_path(vm, 22),
            Feed(b"abc\n", ends=False).read,
            sink.write,
            patience=30,
            on_wait=reasons.append,
        )
    assert heard == [b"abc\n"]
    assert sink.data == b"SSH-2.0-guest\r\ncba\n"
    assert reasons == ["connection refused", "it has no address yet"]


async def test_a_guest_that_never_answers_ends_at_the_time_limit(context: Context, cloud: FakeCloud, vm: str) -> None:
    async with guest(cloud, greeting=b""):
        with pytest.raises(CloudError, match=r"no answer within 0\.5 s") as caught:
            await streams.relay_until_answered(
                context,
                streams.forward_path(vm, 22),
                Feed(ends=False).read,
                Sink().write,
                patience=0.5,
                on_wait=lambda _: None,
            )
    assert caught.value.kind is ErrorKind.TIMED_OUT


async def test_what_cannot_come_right_is_not_tried_again(context: Context, cloud: FakeCloud, vm: str) -> None:
    cloud.closed_forwards = ["not_found: there is no vm 'a' in this account"]
    with pytest.raises(CloudError) as caught:
        await streams.relay_until_answered(
            context,
            streams.forward_path(vm, 22),
            Feed(ends=False).read,
            Sink().write,
            patience=30,
            on_wait=lambda _: None,
        )
    assert caught.value.kind is ErrorKind.NOT_FOUND


async def test_a_local_connection_is_carried_to_the_guest(context: Context, cloud: FakeCloud, vm: str) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await streams.forward_connection(context, vm, 80, reader, writer)

    async with guest(cloud), await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        writer.write(b"xyz\n")
        answer = await reader.read()
        writer.close()
    assert answer == b"SSH-2.0-guest\r\nzyx\n"
