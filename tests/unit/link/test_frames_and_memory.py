"""Framing, digests, and the in-memory channel's ways of failing."""

from __future__ import annotations

import asyncio
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scloud.link import frames
from scloud.link.channel import Channel
from scloud.link.digest import digest_of
from scloud.link.memory import Conditions, MemoryListener, memory_pair
from scloud.model.desired import DesiredDisk
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.wire import StreamHello, Welcome, first_message, manager_message


def reader_of(data: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    return reader


async def test_frames_follow_each_other() -> None:
    first, second = StreamHello(stream="a"), StreamHello(stream="b" * 100_000)
    reader = reader_of(frames.encode(first) + frames.encode(second))
    assert frames.decode(await frames.read_frame(reader), first_message) == first
    assert frames.decode(await frames.read_frame(reader), first_message) == second
    with pytest.raises(ConnectionError):
        await frames.read_frame(reader)


async def test_a_frame_beyond_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(CloudError) as caught:
        await frames.read_frame(reader_of(struct.pack(">I", frames.MAX_FRAME + 1)))
    assert caught.value.kind == ErrorKind.TOO_LARGE


@given(st.binary(max_size=200))
def test_garbage_never_raises_anything_but_invalid(body: bytes) -> None:
    with pytest.raises(CloudError) as caught:
        frames.decode(body, first_message)
    assert caught.value.kind == ErrorKind.INVALID


def test_a_message_of_the_wrong_direction_is_refused() -> None:
    body = frames.encode(StreamHello(stream="a"))[4:]
    with pytest.raises(CloudError):
        frames.decode(body, manager_message)


def test_digests_differ_with_any_field_and_survive_a_round_trip() -> None:
    disk = DesiredDisk(id="dsk-1", generation=1, size_mib=10, image=None, image_sha256=None)
    assert digest_of(disk) == digest_of(DesiredDisk.model_validate_json(disk.model_dump_json()))
    assert digest_of(disk) != digest_of(disk.model_copy(update={"size_mib": 11}))


async def test_memory_messages_keep_their_order_under_varying_delay() -> None:
    delays = iter([0.03, 0.0, 0.01])
    client, server = memory_pair("nod-1", conditions=Conditions(delay=lambda: next(delays)))
    for name in "abc":
        await client.send(StreamHello(stream=name))
    got = [(await server.receive(first_message)) for _ in range(3)]
    assert [message.stream for message in got if isinstance(message, StreamHello)] == ["a", "b", "c"]
    assert (server.peer, client.peer) == ("nod-1", "manager.scloud.internal")


async def test_memory_close_lets_what_was_sent_arrive() -> None:
    client, server = memory_pair("nod-1")
    await client.send(StreamHello(stream="a"))
    await client.close()
    await server.receive(first_message)
    with pytest.raises(ConnectionError):
        await server.receive(first_message)
    assert await server.read() == b""
    with pytest.raises(ConnectionError):
        await client.send(StreamHello(stream="a"))


async def test_memory_break_loses_what_was_under_way() -> None:
    breaking = iter([False, True])
    client, server = memory_pair("nod-1", conditions=Conditions(breaks=lambda: next(breaking)))
    await client.send(StreamHello(stream="a"))
    with pytest.raises(ConnectionError):
        await client.send(StreamHello(stream="b"))
    with pytest.raises(ConnectionError):
        await server.receive(first_message)


async def test_memory_partition_swallows_silently() -> None:
    conditions = Conditions(dropping=True)
    client, server = memory_pair("nod-1", conditions=conditions)
    await client.send(StreamHello(stream="lost"))
    conditions.dropping = False
    await client.send(StreamHello(stream="kept"))
    assert await server.receive(first_message) == StreamHello(stream="kept")


async def test_memory_raw_bytes_come_in_parts() -> None:
    client, server = memory_pair("nod-1")
    await client.write(b"abcdef")
    assert [await server.read(4), await server.read(4)] == [b"abcd", b"ef"]


async def test_memory_listener_serves_and_dies() -> None:
    async def handler(channel: Channel) -> None:
        await channel.send(Welcome(epoch=1, node=channel.peer))
        await channel.receive(first_message)

    listener = MemoryListener(handler)
    channel = await listener.dial("nod-7")
    assert await channel.receive(manager_message) == Welcome(epoch=1, node="nod-7")
    await listener.stop()
    with pytest.raises(ConnectionError):
        await channel.receive(manager_message)
    with pytest.raises(ConnectionError):
        await listener.dial("nod-7")
