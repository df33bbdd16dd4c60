"""The way between two agents, on loopback: who may take it, and that every byte arrives."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from scloud.agent import passages
from scloud.agent.passages import TlsPassages
from scloud.drivers.hypervisor.protocol import DiskSource, DomainSpec
from scloud.drivers.storage.place import FilePlace
from scloud.link import pki
from scloud.model.connections import Connection
from scloud.model.errors import CloudError, ErrorKind

CONNECTION = Connection(protocol="tcp", source="10.0.0.1", target="10.0.0.2", source_port=4000, target_port=80, mark=3)
SPEC = DomainSpec(
    vm="vm-1",
    name="web",
    cpus=1,
    max_cpus=4,
    memory_mib=128,
    max_memory_mib=512,
    disks=(DiskSource(disk="dsk-1", place=FilePlace(path=Path("/there/disk"))),),
    nics=(),
    console_log=Path("/there/log"),
    console_socket=Path("/there/sock"),
)


class Nodes:
    """`source`, `target` and `other`, each with a certificate of one cloud."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = pki.create_ca(time.time())
        (folder / "ca").write_text(self.ca.certificate)

    def node(self, name: str) -> TlsPassages:
        key, csr = pki.make_request(name)
        certificate, key_file = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        certificate.write_text(pki.issue_node(self.ca, name, csr, time.time()))
        key_file.write_text(key)
        contexts = pki.node_contexts(self.folder / "ca", certificate, key_file)
        return TlsPassages(contexts, lambda: "127.0.0.1", self.folder / name)


@pytest.fixture
def nodes(tmp_path: Path) -> Nodes:
    return Nodes(tmp_path)


async def test_what_is_said_into_the_sockets_arrives_whole_and_is_answered(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = nodes.node("source"), nodes.node("target")
    received = asyncio.get_running_loop().create_future()

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeting = await reader.readexactly(5)
        writer.write(greeting.upper())
        received.set_result(await reader.read(-1))
        writer.close()

    monkeypatch.setattr(passages, "LIBVIRT", tmp_path / "libvirt")
    address = await target.expect("vm-1", "source", SPEC)
    servers = [await asyncio.start_unix_server(engine, str(tmp_path / "target" / "vm-1.memory"))]
    released: asyncio.Queue[str] = asyncio.Queue()
    target.released = released.put
    brought: asyncio.Queue[tuple[str, object]] = asyncio.Queue()

    async def take(vm: str, connections: object) -> None:
        brought.put_nowait((vm, connections))

    target.brought = take
    async with source.route("vm-1", "target", address) as way:
        route = way.route
        assert way.spec == SPEC
        reader, writer = await asyncio.open_unix_connection(str(route.memory))
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"HELLO"
        data = bytes(range(256)) * 16384  # 4 MiB
        writer.write(data)
        await writer.drain()
        writer.close()
        assert await asyncio.wait_for(received, 10) == data
        assert released.empty()
        await way.release()
        assert await asyncio.wait_for(released.get(), 10) == "vm-1"
        assert brought.empty()
        await way.hand_on({"nic-1": [CONNECTION], "nic-2": []})
        assert await asyncio.wait_for(brought.get(), 10) == ("vm-1", {"nic-1": (CONNECTION,), "nic-2": ()})
    assert not route.memory.exists() and not route.control.exists()
    for server in servers:
        server.close()
    await target.close()


async def test_only_the_node_that_it_comes_from_may_bring_it(nodes: Nodes) -> None:
    source, target, other = nodes.node("source"), nodes.node("target"), nodes.node("other")
    address = await target.expect("vm-1", "source", SPEC)
    for who, vm in ((other, "vm-1"), (source, "vm-2")):
        with pytest.raises(CloudError, match="is not expected here"):
            async with who.route(vm, "target", address):
                pass
    with pytest.raises(CloudError) as refusal:
        async with source.route("vm-1", "somebody-else", address):
            pass
    assert refusal.value.kind is ErrorKind.FORBIDDEN
    await target.forget("vm-1")
    with pytest.raises(OSError):
        async with source.route("vm-1", "target", address):
            pass


async def test_what_is_on_its_way_is_cut_off_when_it_is_not_expected_any_more(nodes: Nodes, tmp_path: Path) -> None:
    source, target = nodes.node("source"), nodes.node("target")

    async def engine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(5))
        await reader.read(-1)
        writer.close()

    address = await target.expect("vm-1", "source", SPEC)
    server = await asyncio.start_unix_server(engine, str(tmp_path / "target" / "vm-1.memory"))
    async with source.route("vm-1", "target", address) as way:
        reader, writer = await asyncio.open_unix_connection(str(way.route.memory))
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        await target.forget("vm-1")
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
    server.close()
    await target.close()
