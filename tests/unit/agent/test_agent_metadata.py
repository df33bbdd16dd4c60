"""The metadata service: a VM is told about itself only, whatever it sends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from agent_node import GROUP, IMAGE, VPC, one_vm, port, vm, vm_id
from hypothesis import given
from hypothesis import strategies as st

from scloud.agent import http
from scloud.agent.http import Answer, HttpServer, Request
from scloud.agent.journal import MemoryJournal
from scloud.agent.metadata import Metadata
from scloud.drivers.netfunc.fake import FakeNetwork, FakeNetworkFunctions

KEYS = ("ssh-ed25519 AAAA one", "ssh-ed25519 BBBB two")


async def service() -> Metadata:
    journal = MemoryJournal()
    items = one_vm(keys=KEYS, user_data="#!/bin/sh\necho hello\n")
    twin = port(7, 7).model_copy(update={"vpc": "vpc-0000000000000002", "ip": "10.0.0.11"})
    await journal.apply([*items, twin, vm(7, nics=(twin.id,))], [])
    return Metadata(FakeNetworkFunctions(FakeNetwork()), journal)


def get(metadata: Metadata, path: str, client: str = "10.0.0.11", vpc: str = VPC, **headers: str) -> Answer:
    return metadata.respond(vpc, client, Request("GET", path, dict(headers)))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/latest/meta-data/instance-id", vm_id(1)),
        ("/2009-04-04/meta-data/instance-id", vm_id(1)),
        ("/latest/meta-data/local-hostname", "web-1.shop.internal"),
        ("/latest/meta-data/hostname", "web-1.shop.internal"),
        ("/latest/meta-data/local-ipv4", "10.0.0.11"),
        ("/latest/meta-data/mac", "02:00:00:00:00:01"),
        ("/latest/meta-data/ami-id", IMAGE),
        ("/latest/meta-data/security-groups", GROUP),
        ("/latest/meta-data/public-keys/", "0=key-0\n1=key-1"),
        ("/latest/meta-data/public-keys/0/", "openssh-key"),
        ("/latest/meta-data/public-keys/1/openssh-key", KEYS[1]),
        ("/latest/meta-data/placement/", "availability-zone\nregion"),
        ("/latest/meta-data/network/interfaces/macs/", "02:00:00:00:00:01/"),
        ("/latest/meta-data/network/interfaces/macs/02:00:00:00:00:01/subnet-ipv4-cidr-block", "10.0.0.0/24"),
        ("/latest/user-data", "#!/bin/sh\necho hello\n"),
        ("/latest/", "meta-data/\nuser-data"),
    ],
)
async def test_what_it_tells(path: str, text: str) -> None:
    answer = get(await service(), path)
    assert (answer.status, answer.body.decode()) == (200, text)


@pytest.mark.parametrize("path", ["/nothing", "/latest/meta-data/nothing", "/latest/meta-data/instance-id/more", "/1/"])
async def test_what_is_not_there(path: str) -> None:
    assert get(await service(), path).status == 404


async def test_equal_addresses_in_two_vpcs_are_two_vms() -> None:
    metadata = await service()
    path = "/latest/meta-data/instance-id"
    assert get(metadata, path).body.decode() == vm_id(1)
    assert get(metadata, path, vpc="vpc-0000000000000002").body.decode() == vm_id(7)


async def test_a_stranger_is_told_nothing() -> None:
    metadata = await service()
    assert get(metadata, "/latest/meta-data/instance-id", client="10.0.0.99").status == 404
    assert get(metadata, "/latest/user-data", client="10.0.0.11", vpc="vpc-0000000000000009").status == 404


HEADER_NAMES = ["x-forwarded-for", "forwarded", "host", "x-real-ip", "x-instance-id", "x-aws-ec2-metadata-token"]


@given(st.dictionaries(st.sampled_from(HEADER_NAMES), st.sampled_from(["10.0.0.12", vm_id(7), "for=10.0.0.12"])))
def test_no_header_makes_it_another_vm(headers: dict[str, str]) -> None:
    metadata = asyncio.run(service())
    answer = get(metadata, "/latest/meta-data/instance-id", **headers)
    assert answer.body.decode() == vm_id(1)


async def test_tokens_are_given_and_not_needed() -> None:
    metadata = await service()
    name = "x-aws-ec2-metadata-token-ttl-seconds"
    request = Request("PUT", "/latest/api/token", {name: "60"})
    answer = metadata.respond(VPC, "10.0.0.11", request)
    assert answer.status == 200 and answer.body and answer.headers[name] == "60"
    for bad in ("", "0", "99999", "x", "-1", "²"):
        assert metadata.respond(VPC, "10.0.0.11", Request("PUT", "/latest/api/token", {name: bad})).status == 400
    assert metadata.respond(VPC, "10.0.0.11", Request("POST", "/latest/user-data", {})).status == 405


@asynccontextmanager
async def served(respond: http.Respond) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    server = HttpServer(respond)
    listener = socket.create_server(("127.0.0.1", 0))
    await server.start(listener)
    reader, writer = await asyncio.open_connection(*listener.getsockname()[:2])
    try:
        yield reader, writer
    finally:
        writer.close()
        await server.stop()


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length"))
    return int(head.split()[1]), await reader.readexactly(length)


def echo(client: str, request: Request) -> Answer:
    return Answer(200, f"{client} {request.method} {request.path}".encode())


async def test_http_answers_one_after_the_other_on_a_connection() -> None:
    async with served(echo) as (reader, writer):
        writer.write(b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\nGET /second HTTP/1.1\r\nHost: x\r\n")
        assert await answer_of(reader) == (200, b"127.0.0.1 GET /a")
        writer.write(b"Connection: close\r\n\r\n")
        assert await answer_of(reader) == (200, b"127.0.0.1 GET /second")
        assert await reader.read() == b""


async def test_http_refuses_garbage_and_floods() -> None:
    async with served(echo) as (reader, writer):
        writer.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert (await answer_of(reader))[0] == 400
        assert await reader.read() == b""
    async with served(echo) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n" + b"X-Filler: " + b"a" * (2 * http.MAX_REQUEST))
        assert (await answer_of(reader))[0] in (400, 413)
        assert await reader.read() == b""


async def test_http_holds_few_connections_for_one_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PER_CLIENT", 2)
    async with served(echo) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await answer_of(reader)
        address = writer.get_extra_info("peername")
        second, second_writer = await asyncio.open_connection(*address)
        second_writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert (await answer_of(second))[0] == 200
        third, third_writer = await asyncio.open_connection(*address)
        assert (await answer_of(third))[0] == 503
        third_writer.close()
        second_writer.close()


async def test_http_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUEST_S", 0.05)
    async with served(echo) as (reader, writer):
        writer.write(b"GET / HT")
        assert await reader.read() == b""


async def test_it_listens_in_the_vpc_and_again_when_the_namespace_was_made_anew() -> None:
    metadata = await service()
    network = metadata._functions._network  # type: ignore[attr-defined]
    network.specs[VPC] = object()
    await metadata.ensure(VPC)
    key = (VPC, "169.254.169.254", 80)
    first = network.listeners[key]
    await metadata.ensure(VPC)
    assert network.listeners[key] is first
    network.listeners.pop(key)
    metadata._checked[VPC] -= 1000
    await metadata.ensure(VPC)
    assert network.listeners[key] is not first
    reader, writer = await asyncio.open_connection(sock=network.dial(*key))
    writer.write(b"GET /latest/meta-data/ HTTP/1.0\r\n\r\n")
    # the fake's clients come from loopback, where no VM is
    assert (await answer_of(reader))[0] == 404
    writer.close()
    await metadata.close()
    assert network.listeners[key].fileno() == -1
