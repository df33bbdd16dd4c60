"""Joining a cloud, over real TLS on loopback."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from scloud.agent import enroll as module
from scloud.agent.config import AgentConfig
from scloud.agent.enroll import JoinToken, address_of, enroll, parse_token
from scloud.agent.main import make_managers
from scloud.link import pki
from scloud.link.channel import Channel, listen, serve
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.wire import CaAnswer, CaRequest, Enroll, Enrolled, Refused, StreamHello, first_message

NODE = "nod-0000000000000001"


class Manager:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = pki.create_ca(time.time())
        self.shown = self.ca.certificate
        self.secret = "once"
        self.peers: list[str] = []

    def _file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    async def handle(self, channel: Channel) -> None:
        first = await channel.receive(first_message)
        if isinstance(first, CaRequest):
            await channel.send(CaAnswer(ca=self.shown))
        elif isinstance(first, Enroll) and first.secret == self.secret:
            self.secret = ""
            certificate = pki.issue_node(self.ca, first.node, first.csr, time.time())
            await channel.send(Enrolled(certificate=certificate, ca=self.ca.certificate))
        elif isinstance(first, Enroll):
            await channel.send(Refused(error=("unauthenticated", "this join token was used")))
        else:
            self.peers.append(channel.peer)

    async def start(self) -> str:
        server = pki.issue_server(self.ca, time.time())
        context = pki.server_context(
            self._file("server.pem", server.certificate),
            self._file("server.key", server.key),
            self._file("ca.pem", self.ca.certificate),
        )
        self.server = await serve(self.handle, listen("127.0.0.1", 0), context)
        return f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"


async def test_a_token_becomes_a_certificate_with_which_it_dials(tmp_path: Path) -> None:
    manager = Manager(tmp_path)
    address = await manager.start()
    token = parse_token(f"{NODE}.once.{pki.pin_of(manager.ca.certificate)}")
    config = AgentConfig(node="one", root=tmp_path / "node", manager=address, tunnel_ip="10.0.0.1")
    with pytest.raises(CloudError) as caught:
        make_managers(config)
    assert caught.value.kind == ErrorKind.UNAUTHENTICATED
    await enroll(address, token, config.pki)
    assert {path.name for path in config.pki.iterdir()} == {"key.pem", "cert.pem", "ca.pem"}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in config.pki.iterdir())
    node, managers = make_managers(config)
    assert node == NODE
    channel = await managers.dial()
    await channel.send(StreamHello(stream="x"))
    assert await channel.read() == b""
    assert manager.peers == [NODE]
    await channel.close()
    with pytest.raises(CloudError) as caught:
        await enroll(address, token, config.pki)
    assert caught.value.kind == ErrorKind.UNAUTHENTICATED
    manager.server.close()


async def test_another_clouds_ca_is_not_believed(tmp_path: Path) -> None:
    manager = Manager(tmp_path)
    address = await manager.start()
    token = JoinToken(NODE, "once", pki.pin_of(pki.create_ca(time.time()).certificate))
    with pytest.raises(CloudError) as caught:
        await enroll(address, token, tmp_path / "pki")
    assert caught.value.kind == ErrorKind.FORBIDDEN
    assert manager.secret == "once" and not (tmp_path / "pki").exists()
    manager.server.close()


async def test_a_relay_that_shows_the_right_ca_gets_no_secret(tmp_path: Path) -> None:
    """It can pass on the CA's certificate, which is public, but has no key that the CA vouches for."""
    real = pki.create_ca(time.time())
    relay = Manager(tmp_path)
    relay.shown = real.certificate
    address = await relay.start()
    with pytest.raises(CloudError) as caught:
        await enroll(address, JoinToken(NODE, "once", pki.pin_of(real.certificate)), tmp_path / "pki")
    assert caught.value.kind == ErrorKind.UNAVAILABLE
    assert relay.secret == "once"
    relay.server.close()


@pytest.mark.parametrize("text", ["", "a.b", "a.b.c", f"a..{'0' * 64}", f"a.b.c.{'0' * 64}"])
def test_bad_tokens(text: str) -> None:
    with pytest.raises(CloudError) as caught:
        parse_token(text)
    assert caught.value.kind == ErrorKind.INVALID


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "agent.json"
    config = {"node": "one", "root": str(tmp_path), "manager": "127.0.0.1:1", "tunnel_ip": "10.0.0.1"}
    path.write_text(json.dumps(config))
    token = f"{NODE}.secret.{'0' * 64}"
    assert module.main(["--config", str(path), "--token", token]) == 1
    assert "cannot be reached at 127.0.0.1:1" in capsys.readouterr().err
    assert module.main(["--config", str(tmp_path / "missing"), "--token", token]) == 1


def test_addresses() -> None:
    assert address_of("manager.example:7781") == ("manager.example", 7781)
    assert address_of("[2001:db8::1]:7781") == ("2001:db8::1", 7781)
