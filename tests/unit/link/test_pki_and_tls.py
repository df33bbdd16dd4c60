"""The CA, the certificates it issues, and TLS connections made with them."""

from __future__ import annotations

import asyncio
import gc
import ssl
import time
import weakref
from pathlib import Path

import pytest
import uvloop

from scloud.link import pki
from scloud.link.channel import Channel, dial, listen, serve
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.wire import CaAnswer, CaRequest, StreamHello, ca_answer, first_message


class Authority:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = pki.create_ca(time.time())
        self.ca_file = self._write("ca.pem", self.ca.certificate)
        server = pki.issue_server(self.ca, time.time(), ["127.0.0.1", "manager.example"])
        self.server_context = pki.server_context(
            self._write("server.pem", server.certificate), self._write("server.key", server.key), self.ca_file
        )

    def _write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    def node_context(self, node: str, ca: pki.Credentials | None = None) -> ssl.SSLContext:
        key, csr = pki.make_request(node)
        certificate = pki.issue_node(ca or self.ca, node, csr, time.time())
        return pki.client_context(
            self.ca_file, self._write(f"{node}.pem", certificate), self._write(f"{node}.key", key)
        )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_messages_and_raw_bytes_pass_with_both_ends_named(authority: Authority) -> None:
    peers: list[str] = []

    async def handler(channel: Channel) -> None:
        peers.append(channel.peer)
        assert await channel.receive(first_message) == StreamHello(stream="x")
        data = b""
        while len(data) < 300_000:
            data += await channel.read()
        await channel.write(data[::-1])

    server = await serve(handler, listen("127.0.0.1", 0), authority.server_context)
    port = server.sockets[0].getsockname()[1]
    channel = await dial("127.0.0.1", port, authority.node_context("nod-1"))
    assert channel.peer == pki.MANAGER_NAME
    await channel.send(StreamHello(stream="x"))
    sent = bytes(range(256)) * 1200
    await channel.write(sent[:300_000])
    back = b""
    while part := await channel.read():
        back += part
    assert back == sent[:300_000][::-1]
    assert peers == ["nod-1"]
    await channel.close()
    server.close()


async def test_a_client_without_a_certificate_has_no_name_and_can_check_the_pin(authority: Authority) -> None:
    async def handler(channel: Channel) -> None:
        assert channel.peer == ""
        await channel.receive(first_message)
        await channel.send(CaAnswer(ca=authority.ca.certificate))

    server = await serve(handler, listen("127.0.0.1", 0), authority.server_context)
    port = server.sockets[0].getsockname()[1]
    channel = await dial("127.0.0.1", port, pki.unverified_context())
    await channel.send(CaRequest())
    answer = await channel.receive(ca_answer)
    assert isinstance(answer, CaAnswer)
    assert pki.pin_of(answer.ca) == pki.pin_of(authority.ca.certificate)
    assert pki.pin_of(answer.ca) != pki.pin_of(pki.create_ca(time.time()).certificate)
    await channel.close()
    server.close()


async def test_a_certificate_of_another_ca_is_refused(authority: Authority) -> None:
    handled = asyncio.Event()

    async def handler(channel: Channel) -> None:
        handled.set()

    server = await serve(handler, listen("127.0.0.1", 0), authority.server_context)
    port = server.sockets[0].getsockname()[1]
    stranger = authority.node_context("nod-1", pki.create_ca(time.time()))
    with pytest.raises(OSError):
        channel = await dial("127.0.0.1", port, stranger)
        # TLS 1.3: the client learns of the refusal with its first read
        await channel.receive(ca_answer)
    assert not handled.is_set()
    server.close()


async def test_a_node_cannot_pose_as_the_manager(authority: Authority) -> None:
    key, csr = pki.make_request(pki.MANAGER_NAME)
    certificate = pki.issue_node(authority.ca, "nod-evil", csr, time.time())
    context = pki.server_context(
        authority._write("evil.pem", certificate), authority._write("evil.key", key), authority.ca_file
    )

    async def handler(channel: Channel) -> None:
        await channel.read()

    server = await serve(handler, listen("127.0.0.1", 0), context)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(ssl.SSLError):
        await dial("127.0.0.1", port, authority.node_context("nod-1"))
    server.close()


def test_the_subject_of_a_request_is_not_believed(authority: Authority) -> None:
    _, csr = pki.make_request("nod-someone-else")
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(pki.issue_node(authority.ca, "nod-1", csr, time.time()).encode())
    assert certificate.subject.rfc4514_string() == "CN=nod-1"


@pytest.mark.parametrize(
    "text", ["", "nonsense", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"]
)
def test_a_bad_request_is_refused(authority: Authority, text: str) -> None:
    with pytest.raises(CloudError) as caught:
        pki.issue_node(authority.ca, "nod-1", text, time.time())
    assert caught.value.kind == ErrorKind.INVALID


async def test_an_unreachable_manager_is_an_oserror(authority: Authority) -> None:
    with pytest.raises(OSError):
        await dial("127.0.0.1", 1, authority.node_context("nod-1"), timeout_s=1)


@pytest.mark.parametrize("first_to_leave", ["node", "manager"])
def test_a_connection_that_has_ended_is_freed_without_the_collector(authority: Authority, first_to_leave: str) -> None:
    """On the manager's event loop: its collector does not look at what is old."""
    lost: list[weakref.ref[Channel]] = []

    async def run() -> None:
        left = asyncio.Event()

        async def handler(channel: Channel) -> None:
            lost.append(weakref.ref(channel))
            await channel.receive(first_message)
            if first_to_leave == "node":
                assert await channel.read() == b""
            left.set()

        server = await serve(handler, listen("127.0.0.1", 0), authority.server_context)
        port = server.sockets[0].getsockname()[1]
        channel = await dial("127.0.0.1", port, authority.node_context("nod-1"))
        await channel.send(StreamHello(stream="x"))
        if first_to_leave == "manager":
            assert await channel.read() == b""
        await channel.close()
        await left.wait()
        server.close()
        await server.wait_closed()

    gc.disable()
    try:
        uvloop.run(run())
        assert len(lost) == 1 and lost[0]() is None
    finally:
        gc.enable()
